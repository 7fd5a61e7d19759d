"""What is put onto a model: LoRAs and learned words, to disk and back.

A folder of adapters holds `adapter.json`, which names the model that they are for, and the weights beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdcli.checkpoints.embeddings import FIRST, LearnedWord, read_word
from sdcli.checkpoints.lora import COMPONENTS, OTHER_MODEL, layers_of, read_lora
from sdcli.checkpoints.writing import to_dtype, whole_folder, write_tensors, write_text
from sdcli.components.clip import TextEncoder
from sdcli.errors import SdcliError
from sdcli.pipeline import SdPipeline
from sdcli.registry import ADAPTER

LORA = "pytorch_lora_weights.safetensors"  # diffusers' name, with peft's keys
KOHYA = "lora_kohya.safetensors"
EMBEDDING = "learned_embeds.safetensors"  # diffusers' name
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def write_lora(
    folder: Path,
    tensors: Mapping[str, Tensor],
    alpha: float,
    model: str,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
) -> None:
    """Write a LoRA in the two layouts that the field reads, whole or not at all.

    Args:
        folder: where to.
        tensors: by peft's names, such as unet.mid_block.attentions.0.….to_q.lora_A.weight, (rank, D_in) and (D_out,
            rank).
        alpha: what the product is multiplied by, times the rank.
        model: that it is for.
        dtype: on disk; None keeps each one's own.
        metadata: where it comes from.

    Raises:
        SdcliError: it cannot be written.
    """
    ready = to_dtype(tensors, dtype, "lora")
    kohya = {}
    for name, tensor in ready.items():
        below = "lora_down" if name.endswith(DOWN) else "lora_up"
        layer = "lora_" + name.removesuffix(DOWN).removesuffix(UP).replace(".", "_")
        kohya |= {f"{layer}.{below}.weight": tensor, f"{layer}.alpha": torch.tensor(float(alpha))}
    rank = min(tensor.shape[0] for name, tensor in ready.items() if name.endswith(DOWN))
    # Where a file has peft's names, stock reads the alpha from this entry of its metadata.
    layers = sorted({name.removeprefix("unet.").removesuffix(DOWN) for name in ready if name.endswith(DOWN)})
    config = {"unet.r": rank, "unet.lora_alpha": alpha, "unet.target_modules": layers}
    about = {"lora_adapter_metadata": json.dumps(config)}
    with whole_folder(folder, ADAPTER) as beside:
        write_tensors(beside / LORA, ready, {**metadata, **about})
        write_tensors(beside / KOHYA, kohya, {**metadata, "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})
        write_text(beside / ADAPTER, json.dumps({"model": model, "kind": "lora", "alpha": alpha}, indent=2) + "\n")


def put_lora(
    pipeline: SdPipeline, path: Path, share: float = 1.0, allow_pickle: bool = False, lenient: bool = False
) -> "Undo":
    """Add a LoRA to the weights of the layers that it is for.

    Args:
        pipeline: to change.
        path: of the LoRA, in any layout.
        share: how much of it counts; 1 is all.
        allow_pickle: see `read_any`.
        lenient: leave out what does not fit, where something does.

    Returns:
        What takes it off again, and tells what was left out.

    Raises:
        SdcliError: the file is bad, or does not fit the model in every layer.
    """
    networks = {name: getattr(pipeline, name) for name in COMPONENTS if getattr(pipeline, name, None) is not None}
    layers = layers_of(networks)
    lora = read_lora(path, layers, pipeline.unet.config, allow_pickle, lenient)
    undo = Undo(left_out=lora.left_out)
    for name, change in lora.changes.items():
        parameter = layers[name].weight
        undo.before.append((parameter, parameter.data))
        changed = change.applied(parameter.detach().cpu(), share)
        parameter.data = changed.to(parameter)  # weights that are read from the disk cannot be written to
    return undo


@dataclass
class Undo:
    """What takes changes of weights back; the last first, where there are several.

    Args:
        before: parameters and what they were.
        left_out: a sentence on what of the changes was not made; empty where nothing was left out.
    """

    before: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    left_out: str = ""

    def __call__(self) -> None:
        """Put the weights back, to the bit."""
        for parameter, data in reversed(self.before):
            parameter.data = data
        self.before.clear()


def write_embedding(
    folder: Path, word: LearnedWord, model: str, dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """Write a new word, whole or not at all. Raises SdcliError where that is not possible.

    The key of a vector is the word; of a model with a second text encoder, those of SDXL's files, clip_l and clip_g.
    """
    if "text_encoder_2" in word.vectors:
        vectors = {name: word.vectors[component] for name, component in FIRST.items() if component in word.vectors}
    else:
        vectors = {word.token: word.vectors["text_encoder"]}
    about = {"model": model, "kind": "embedding", "token": word.token}
    with whole_folder(folder, ADAPTER) as beside:
        write_tensors(beside / EMBEDDING, to_dtype(vectors, dtype, "embedding"), metadata)
        write_text(beside / ADAPTER, json.dumps(about, indent=2) + "\n")


def put_word(pipeline: SdPipeline, word: LearnedWord) -> None:
    """Teach a pipeline a learned word.

    Raises:
        SdcliError: a text encoder that it has vectors for is missing, or one that it has none for is there, or widths
            differ.
    """
    pairs = {"text_encoder": pipeline.tokenizer, "text_encoder_2": getattr(pipeline, "tokenizer_2", None)}
    encoders = {name: getattr(pipeline, name, None) for name in pairs}
    there = {name for name, encoder in encoders.items() if encoder is not None}
    if there != word.vectors.keys():
        told = (
            f"{word.token} has vectors for {', '.join(sorted(word.vectors))}, the model has {', '.join(sorted(there))}"
        )
        raise SdcliError(told, hint=OTHER_MODEL)
    for name, vectors in word.vectors.items():
        for token, vector in zip(word.tokens, vectors, strict=True):
            add_token(pairs[name], encoders[name], token, vector[None])


def add_token(tokenizer: CLIPTokenizer, text_encoder: TextEncoder, token: str, vector: Tensor) -> None:
    """Teach a tokenizer and its text encoder a new word of one vector.

    Args:
        tokenizer: to change.
        text_encoder: to change.
        token: the word.
        vector: what the text encoder sees for it, (1, D).

    Raises:
        SdcliError: the tokenizer knows the word, or the vector has another width than its own.
    """
    table = text_encoder.tower.embeddings.token_embedding
    if vector.shape[1] != table.embedding_dim:
        widths = f"{vector.shape[1]} numbers wide, the text encoder's {table.embedding_dim}"
        raise SdcliError(f"the vector of {token} is {widths}", hint=OTHER_MODEL)
    if {token, f"{token.lower()}</w>"} & tokenizer.get_vocab().keys():
        raise SdcliError(f"the tokenizer knows {token!r} already", hint="choose a word of your own, such as '<my-cat>'")
    tokenizer.add_tokens([AddedToken(token, normalized=False)])
    # Some models have room for more tokens than their tokenizer knows; new ones go where the tokenizer puts them.
    first = tokenizer.convert_tokens_to_ids(token)
    weight = table.weight.detach()[:first]
    weight = torch.cat([weight, vector.to(weight)])
    larger = nn.Embedding(*weight.shape, _weight=weight)
    text_encoder.tower.embeddings.token_embedding = larger.requires_grad_(table.weight.requires_grad)


def apply_adapters(pipeline: SdPipeline, folder: Path) -> None:
    """Put what a folder of adapters holds onto a pipeline.

    Raises:
        SdcliError: a file is missing or bad, or does not fit the model.
    """
    about = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    if about["kind"] == "lora":
        put_lora(pipeline, folder / LORA)
    else:
        word = read_word(folder / EMBEDDING)
        put_word(pipeline, replace(word, token=about.get("token", word.token)))
