"""Captions as a UNet is told them: the features that text encoders give for tokens, computed once for each caption.

B captions, L tokens, D width of the features, P width of the pooled ones.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.components.towers import TextOutput
from sdcli.data.store import Store
from sdcli.pipeline import SdPipeline
from sdcli.prompts import Reader

KEPT_BYTES = 2 * 2**30  # features that stay in memory
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class CaptionFeatures:
    """Features of tokens, from memory, from the cache, or computed now.

    Args:
        pipeline: whose text encoders read.
        store: of what was computed before.
        come_again: whether captions do, which those of a stream hardly do; else nothing is kept.
    """

    def __init__(self, pipeline: SdPipeline, store: Store, come_again: bool):
        self.readers = pipeline.readers
        self.store = store
        self.come_again = come_again
        # SDXL is told the pooled features as well. They are kept as one more row, with zeros behind.
        sdxl = pipeline.unet.config.addition_embed_type is not None
        self.pooled_width = self.readers[-1].text_encoder.config.projection_dim if sdxl else None
        self._known: dict[bytes, Tensor] = {}

    def features(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of tokens as `SdPipeline.tokenize` gives them: (B, L, D), and of SDXL the pooled ones, (B, P)."""
        rows = self._rows(input_ids)
        if self.pooled_width is None:
            return rows, None
        return rows[:, :-1], rows[:, -1, : self.pooled_width]

    @cached_property
    def _hash(self) -> str:
        """Of all text encoders; taken when it is first needed, which it is not where a word is learned."""
        return "".join(hash_of_weights(reader.text_encoder) for reader in self.readers)

    @torch.no_grad()
    def _rows(self, input_ids: Tensor) -> Tensor:
        keys = [row.numpy().tobytes() for row in input_ids.cpu()]
        found: dict[bytes, Tensor] = {}
        for key in dict.fromkeys(keys):
            known = self._known.get(key)
            if known is None:
                kept = self.store.get_array(self._stored_as(key))
                known = None if kept is None else torch.from_numpy(kept)
            if known is not None:
                found[key] = known
        missing = {key: row for key, row in zip(keys, input_ids, strict=True) if key not in found}
        if missing:
            fresh = self._read(torch.stack(list(missing.values()))).float().cpu()
            found |= (computed := dict(zip(missing, fresh, strict=True)))
            if self._has_room(fresh[0]):
                self.store.put_arrays((self._stored_as(key), rows.numpy()) for key, rows in computed.items())
        for key, rows in found.items():
            if self._has_room(rows):
                self._known[key] = rows
        return torch.stack([found[key] for key in keys]).to(input_ids.device)

    def _read(self, input_ids: Tensor) -> Tensor:
        """What is kept of tokens: (B, L, D), or (B, L + 1, D)."""
        features, pooled = read_tokens(self.readers, input_ids)
        if self.pooled_width is None:
            return features
        row = nn.functional.pad(pooled, (0, features.shape[2] - self.pooled_width))
        return torch.cat([features, row[:, None]], dim=1)

    def _stored_as(self, tokens: bytes) -> str:
        """Everything that the features of tokens follow from."""
        kind = "text" if self.pooled_width is None else "pooled text"
        return f"{kind} 1 {hashlib.sha256(tokens).hexdigest()} {self._hash}"

    def _has_room(self, rows: Tensor) -> bool:
        return self.come_again and len(self._known) * rows.nbytes < KEPT_BYTES


class ReadingUnet(nn.Module):
    """Text encoders and the UNet that is told what they read, as one network, where both learn.

    Args:
        readers: the text encoders.
        unet: which predicts.
    """

    def __init__(self, readers: Sequence[Reader], unet: nn.Module):
        super().__init__()
        self.readers = readers
        self.text_encoders = nn.ModuleList(reader.text_encoder for reader in readers)
        self.unet = unet

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        input_ids: Tensor,
        time_ids: Tensor | None = None,
        kept: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """(B, C, h, w), (B,), tokens (B, L), and what `text_arguments` takes, to the UNet's output (B, C, h, w)."""
        told = text_arguments(*read_tokens(self.readers, input_ids, self.read), time_ids, kept)
        return self.unet(noisy_latents, timesteps, class_labels=class_labels, **told)

    def read(self, text_encoder: nn.Module, tokens: Tensor) -> TextOutput:
        """What a text encoder makes of its tokens, (B, L)."""
        return text_encoder(tokens)


def weights_read(reader: Reader) -> list[nn.Parameter]:
    """The weights of a text encoder that its features follow from; SDXL's first one is not asked for its last layer."""
    text_encoder, unread = reader.text_encoder, ()
    if reader.before_last and not text_encoder.config.with_projection:
        unread = (f"encoder.layers.{text_encoder.config.num_hidden_layers - 1}.", "final_layer_norm.")
    return [weight for name, weight in text_encoder.named_parameters() if not name.startswith(unread)]


def read_tokens(
    readers: Sequence[Reader],
    input_ids: Tensor,
    call: Callable[[nn.Module, Tensor], TextOutput] = lambda text_encoder, tokens: text_encoder(tokens),
) -> tuple[Tensor, Tensor | None]:
    """Text features of tokens of all text encoders.

    Args:
        readers: the text encoders.
        input_ids: their tokens side by side, as `SdPipeline.tokenize` gives them.
        call: what reads tokens by a text encoder.

    Returns:
        (B, L, D), and the pooled ones of the last text encoder, (B, P), where it has a projection.
    """
    tokens = input_ids.split([reader.length for reader in readers], dim=1)
    read = [call(reader.text_encoder, each) for reader, each in zip(readers, tokens, strict=True)]
    features = [reader.layer(output) for reader, output in zip(readers, read, strict=True)]
    return torch.cat(features, dim=-1), read[-1].text_embeds


def text_arguments(
    features: Tensor, pooled: Tensor | None, time_ids: Tensor | None, kept: Tensor | None
) -> dict[str, Any]:
    """The arguments of `UNet.forward` that tell of a text.

    Args:
        features: (B, L, D).
        pooled: (B, P); told together with sizes only.
        time_ids: sizes, (B, 5) or (B, 6), of SDXL.
        kept: which captions are told, (B,); zeros stand for the others. None tells all.
    """
    if kept is not None:
        features, pooled = features * kept[:, None, None], pooled * kept[:, None]
    if time_ids is None:
        return {"encoder_hidden_states": features}
    added = {"text_embeds": pooled, "time_ids": time_ids.float()}
    return {"encoder_hidden_states": features, "added_cond_kwargs": added}


def hash_of_weights(network: nn.Module) -> str:
    """SHA-256 of the weights of a network, whatever file they come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
