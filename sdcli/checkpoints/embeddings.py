"""Learned words (textual inversion) in every layout that the field has, to vectors for each text encoder."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdcli.checkpoints.weights import read_any, some
from sdcli.errors import SdcliError

FIRST = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}  # of SDXL, by the names in its files
LARGEST_COUNT = 75  # vectors that a prompt has room for


@dataclass(frozen=True)
class LearnedWord:
    """A word and the vectors that stand for it.

    Args:
        token: the word.
        vectors: (N, D) for each text encoder, by the component's name.
    """

    token: str
    vectors: dict[str, Tensor]

    @property
    def tokens(self) -> list[str]:
        """A name for each vector: the word, word_1, word_2 and so on, as stock has them."""
        count = max(len(vector) for vector in self.vectors.values())
        return [self.token, *(f"{self.token}_{number}" for number in range(1, count))]


def read_word(path: Path, allow_pickle: bool = False) -> LearnedWord:
    """A learned word; it is called as the file says, or else as the file is called.

    Args:
        path: of the file.
        allow_pickle: read a file that is no safetensors, by `weights_only`.

    Raises:
        SdcliError: the file is bad, or holds something else.
    """
    tensors, _ = read_any(path, allow_pickle)
    token = path.stem
    if tensors.keys() <= FIRST.keys() and tensors:
        vectors = {FIRST[name]: rows(tensor) for name, tensor in tensors.items()}
    elif "string_to_param" in tensors:  # A1111's pickles
        inner = tensors["string_to_param"]
        token = str(tensors.get("name") or token)
        vectors = {"text_encoder": rows(next(iter(inner.values())))}
    elif "emb_params" in tensors:
        vectors = {"text_encoder": rows(tensors["emb_params"])}
    elif len(tensors) == 1 and isinstance(next(iter(tensors.values())), Tensor):
        ((token, tensor),) = tensors.items()
        vectors = {"text_encoder": rows(tensor)}
    else:
        keys = some(sorted(map(str, tensors)) or ["nothing"])
        raise SdcliError(f"{path} is no embedding: it has {keys}", hint="it must hold one word's vectors")
    word = LearnedWord(token, vectors)
    sizes = {vector.shape[0] for vector in vectors.values()}
    if len(sizes) != 1 or not 1 <= sizes.pop() <= LARGEST_COUNT or any(each.ndim != 2 for each in vectors.values()):
        shapes = ", ".join(str(tuple(vector.shape)) for vector in vectors.values())
        raise SdcliError(f"{path} is no embedding: its shape is {shapes}", hint="it must hold one word's vectors")
    return word


def rows(tensor: Tensor) -> Tensor:
    """(N, D) of one vector or several."""
    return tensor[None] if tensor.ndim == 1 else tensor
