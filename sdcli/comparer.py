"""A CLIP with its tokenizer: texts and pictures to vectors that can be compared. Knows no files.

I pictures, N texts, E width that both are compared in.

Reference: Radford et al. 2021 (arXiv:2103.00020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sdcli.components.clip import CLIP
from sdcli.errors import SdcliError
from sdcli.pipeline import require_finite


@dataclass(frozen=True)
class Comparer:
    """A CLIP with its tokenizer.

    Args:
        clip: both towers.
        tokenizer: text to tokens.
        truncate: cut texts off that are too long; else they are refused.
    """

    clip: CLIP
    tokenizer: PreTrainedTokenizerBase
    truncate: bool = False

    @property
    def length(self) -> int:
        """Tokens that the text tower takes, with those that begin and end a text."""
        return min(self.tokenizer.model_max_length, self.clip.text_model.config.max_position_embeddings)

    def check(self, texts: Sequence[str]) -> list[str]:
        """The texts that are longer than the text tower takes.

        Raises:
            SdcliError: there is one, and it is not to be cut off.
        """
        lengths = [len(each) for each in self.tokenizer(list(texts), verbose=False).input_ids]
        too_long = [(text, count) for text, count in zip(texts, lengths, strict=True) if count > self.length]
        if too_long and not self.truncate:
            text, count = max(too_long, key=lambda each: each[1])
            others = f" ({len(too_long)} captions are too long)" if len(too_long) > 1 else ""
            message = f"a caption has {count} tokens, CLIP's text tower takes {self.length}{others}: {text[:60]} …"
            raise SdcliError(message, hint="shorten it, or cut off what does not fit by --truncate")
        return [text for text, _ in too_long]

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """(N, E) vectors of length 1; what does not fit is cut off."""
        rows = []
        for start in range(0, len(texts), batch_size):
            options = {"padding": "longest", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
            input_ids = self.tokenizer(list(texts[start : start + batch_size]), **options).input_ids
            rows.append(self.clip.embed_texts(input_ids.to(self.clip.device)).float().cpu())
        return require_finite(torch.cat(rows), "CLIP text tower", self.clip.dtype)

    @torch.inference_mode()
    def embed_images(self, pictures: Tensor) -> Tensor:
        """Pictures (I, 3, image_size, image_size), as `normalize_for_clip` makes them, to (I, E) of length 1."""
        embeds = self.clip.embed_images(pictures.to(self.clip.device, self.clip.dtype)).float().cpu()
        return require_finite(embeds, "CLIP image tower", self.clip.dtype)
