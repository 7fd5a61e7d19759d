"""Textual inversion: a new word whose vector is all that is learned.

Reference: Gal et al. 2022 (arXiv:2208.01618), section 3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.checkpoints.adapters import EMBEDDING, add_token, write_embedding
from sdcli.checkpoints.embeddings import read_word
from sdcli.data.pictures import Pictures
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.training.assembly import Model
from sdcli.training.parts.unet import UnetPart
from sdcli.training.settings import TrainSettings


class Word(nn.Module):
    """The vectors of a new word, and the network that is told them.

    Args:
        text_encoder: whose last token is the new one.
        unet: which predicts.
        vector: what the new token starts from, (1, D).
    """

    def __init__(self, text_encoder: nn.Module, unet: nn.Module, vector: Tensor):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet
        self.vector = nn.Parameter(vector.clone())

    def forward(
        self, noisy_latents: Tensor, timesteps: Tensor, input_ids: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """(B, C, h, w), (B,), tokens (B, L) and perhaps classes (B,) to the UNet's output (B, C, h, w)."""
        name, table = token_table(self.text_encoder)
        weights = {name: torch.cat([table[:-1].detach(), self.vector.to(table.dtype)])}
        output = torch.func.functional_call(self.text_encoder, weights, (input_ids,))
        return self.unet(noisy_latents, timesteps, output.last_hidden_state, class_labels)


class EmbeddingPart(UnetPart):
    """The denoising loss, of captions that hold the new word."""

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings, store: Store):
        super().__init__(model, data, settings, store)
        pipeline = self.pipeline
        if pipeline.text_encoder is None:
            raise SdcliError(
                "--part embedding needs a text encoder, and the model has none", hint="give another --model"
            )
        start = self._start(pipeline)
        add_token(pipeline.tokenizer, pipeline.text_encoder, settings.token, start)
        self.network = Word(pipeline.text_encoder, pipeline.unet, start)

    def parameters(self) -> list[nn.Parameter]:
        """The vector of the word."""
        return [self.network.vector]

    def finish(self) -> None:
        """Put the vector where the text encoder looks it up."""
        with torch.no_grad():
            token_table(self.pipeline.text_encoder)[1][-1:] = self.network.vector

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Go on with the vector of a checkpoint."""
        with torch.no_grad():
            self.network.vector.copy_(read_word(checkpoint / EMBEDDING).vectors["text_encoder"])
        self.finish()

    def write(self, folder: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """The vector under the word's name, and beside it what it is put onto."""
        settings = self.settings
        write_embedding(folder, settings.token, self.network.vector.detach(), settings.model, dtype, metadata)

    def sample(self) -> Tensor:
        """Pictures of the word, with its vector as it is now."""
        self.finish()
        return super().sample()

    def _embed(self, input_ids: Tensor) -> Tensor:
        """The tokens themselves: `Word` looks them up, so that gradients reach its vector."""
        return input_ids

    def _start(self, pipeline) -> Tensor:
        """What the vector starts from, (1, D): that of a text's first token; without one, the mean of all tokens."""
        settings, table = self.settings, token_table(pipeline.text_encoder)[1].detach()
        if settings.initialize_from is None:
            return table.mean(dim=0, keepdim=True)
        tokens = pipeline.tokenizer(settings.initialize_from, add_special_tokens=False).input_ids
        if not tokens:
            raise SdcliError("--initialize-from is no word", hint="such as --initialize-from cat")
        return table[tokens[:1]].clone()


def token_table(text_encoder: nn.Module) -> tuple[str, Tensor]:
    """The name and the weight of the vectors of all tokens, (vocabulary, D)."""
    names = [name for name, _ in text_encoder.named_parameters() if name.endswith("token_embedding.weight")]
    return names[0], text_encoder.get_parameter(names[0])
