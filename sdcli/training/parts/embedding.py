"""Textual inversion: a new word whose vector is all that is learned.

Reference: Gal et al. 2022 (arXiv:2208.01618), section 3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.checkpoints.adapters import EMBEDDING, add_token, write_embedding
from sdcli.checkpoints.embeddings import LearnedWord, read_word
from sdcli.components.towers import TextOutput
from sdcli.data.pictures import Pictures
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.prompts import Reader
from sdcli.training.assembly import Model
from sdcli.training.parts.captions import TEXT_ENCODERS, ReadingUnet
from sdcli.training.parts.unet import UnetPart
from sdcli.training.settings import TrainSettings


class Word(ReadingUnet):
    """The vectors of a new word, one for each text encoder, and the network that is told them.

    Args:
        readers: text encoders whose last token is the new one.
        unet: which predicts.
        vectors: what the new token starts from, (1, D) for each of them.
    """

    def __init__(self, readers: Sequence[Reader], unet: nn.Module, vectors: Sequence[Tensor]):
        super().__init__(readers, unet)
        self.vectors = nn.ParameterList(vector.clone() for vector in vectors)

    def read(self, text_encoder: nn.Module, tokens: Tensor) -> TextOutput:
        """What a text encoder makes of its tokens, (B, L), with the vector of the new one."""
        vectors = dict(zip(self.text_encoders, self.vectors, strict=True))
        name, table = token_table(text_encoder)
        weights = {name: torch.cat([table[:-1].detach(), vectors[text_encoder].to(table.dtype)])}
        return torch.func.functional_call(text_encoder, weights, (tokens,))


class EmbeddingPart(UnetPart):
    """The denoising loss, of captions that hold the new word."""

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings, store: Store):
        super().__init__(model, data, settings, store)
        readers = self.pipeline.readers
        if not readers:
            raise SdcliError(
                "--part embedding needs a text encoder, and the model has none", hint="give another --model"
            )
        starts = [self._start(reader) for reader in readers]
        for reader, start in zip(readers, starts, strict=True):
            add_token(reader.tokenizer, reader.text_encoder, settings.token, start)
        self.network = Word(readers, self.pipeline.unet, starts)
        self.names = [name for name in TEXT_ENCODERS if getattr(self.pipeline, name) is not None]

    def parameters(self) -> list[nn.Parameter]:
        """The vectors of the word."""
        return list(self.network.vectors)

    def finish(self) -> None:
        """Put the vectors where the text encoders look them up."""
        with torch.no_grad():
            for text_encoder, vector in zip(self.network.text_encoders, self.network.vectors, strict=True):
                token_table(text_encoder)[1][-1:] = vector

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Go on with the vectors of a checkpoint."""
        saved = read_word(checkpoint / EMBEDDING).vectors
        with torch.no_grad():
            for name, vector in zip(self.names, self.network.vectors, strict=True):
                vector.copy_(saved[name])
        self.finish()

    def write(self, folder: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """The vectors under the word's name, and beside them what they are put onto."""
        vectors = [vector.detach() for vector in self.network.vectors]
        word = LearnedWord(self.settings.token, dict(zip(self.names, vectors, strict=True)))
        write_embedding(folder, word, self.settings.model, dtype, metadata)

    def sample(self) -> Tensor:
        """Pictures of the word, with its vectors as they are now."""
        self.finish()
        return super().sample()

    def _start(self, reader: Reader) -> Tensor:
        """What a vector starts from, (1, D): that of a text's first token; without one, the mean of all tokens."""
        settings, table = self.settings, token_table(reader.text_encoder)[1].detach()
        if settings.initialize_from is None:
            return table.mean(dim=0, keepdim=True)
        tokens = reader.tokenizer(settings.initialize_from, add_special_tokens=False).input_ids
        if not tokens:
            raise SdcliError("--initialize-from is no word", hint="such as --initialize-from cat")
        return table[tokens[:1]].clone()


def token_table(text_encoder: nn.Module) -> tuple[str, Tensor]:
    """The name and the weight of the vectors of all tokens, (vocabulary, D)."""
    names = [name for name, _ in text_encoder.named_parameters() if name.endswith("token_embedding.weight")]
    return names[0], text_encoder.get_parameter(names[0])
