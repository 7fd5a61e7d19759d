"""What is put onto a model: LoRAs and learned words, to disk and back.

A folder of adapters holds `adapter.json`, which names the model that they are for, and the weights beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdcli.checkpoints.weights import read_tensors
from sdcli.checkpoints.writing import to_dtype, whole_folder, write_tensors, write_text
from sdcli.components.clip import TextEncoder
from sdcli.errors import SdcliError
from sdcli.pipeline import SdPipeline
from sdcli.registry import ADAPTER

LORA = "pytorch_lora_weights.safetensors"  # diffusers' name, with peft's keys
KOHYA = "lora_kohya.safetensors"
EMBEDDING = "learned_embeds.safetensors"  # diffusers' name
OTHER_MODEL = "it was trained for another model"
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


def read_lora(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA by peft's names. Raises SdcliError where the file is missing or bad."""
    return read_tensors(path)


def apply_lora(unet: nn.Module, tensors: Mapping[str, Tensor], alpha: float, weight: float = 1.0) -> None:
    """Add a LoRA to the weights of the layers that it is for.

    Args:
        unet: to change.
        tensors: see `write_lora`.
        alpha: see `write_lora`.
        weight: how much it counts; 1 is all of it.

    Raises:
        SdcliError: a layer does not exist, or has another shape.
    """
    layers = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    for layer in layers:
        down, up = tensors[layer + DOWN].float(), tensors[layer + UP].float()
        try:
            parameter = unet.get_parameter(f"{layer.removeprefix('unet.')}.weight")
        except AttributeError as error:
            raise SdcliError(f"the LoRA is for a layer {layer}, which the model lacks", hint=OTHER_MODEL) from error
        if parameter.shape[:2] != (up.shape[0], down.shape[1]):
            shapes = f"{up.shape[0]}x{down.shape[1]}, the model's {tuple(parameter.shape)}"
            raise SdcliError(f"the LoRA's {layer} is {shapes}", hint=OTHER_MODEL)
        change = (weight * alpha / len(down)) * (up @ down)
        changed = parameter.detach().float() + change.to(parameter.device).view(parameter.shape)
        parameter.data = changed.to(parameter.dtype)  # weights that are read from the disk cannot be written to


def write_embedding(
    folder: Path, token: str, vector: Tensor, model: str, dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """Write the vector (1, D) of a new word, whole or not at all. Raises SdcliError where that is not possible."""
    with whole_folder(folder, ADAPTER) as beside:
        write_tensors(beside / EMBEDDING, to_dtype({token: vector}, dtype, "embedding"), metadata)
        write_text(beside / ADAPTER, json.dumps({"model": model, "kind": "embedding"}, indent=2) + "\n")


def read_embedding(path: Path) -> tuple[str, Tensor]:
    """A new word and its vector (1, D).

    Raises:
        SdcliError: the file is missing, bad, or holds something else.
    """
    tensors = read_tensors(path)
    if len(tensors) != 1 or next(iter(tensors.values())).ndim != 2 or len(next(iter(tensors.values()))) != 1:
        raise SdcliError(f"{path} is no embedding: it must hold one word's vector", hint="make one by sdcli train")
    return next(iter(tensors.items()))


def add_token(tokenizer: CLIPTokenizer, text_encoder: TextEncoder, token: str, vector: Tensor) -> None:
    """Teach a tokenizer and its text encoder a new word.

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
        apply_lora(pipeline.unet, read_lora(folder / LORA), about["alpha"])
    else:
        add_token(pipeline.tokenizer, pipeline.text_encoder, *read_embedding(folder / EMBEDDING))
