"""Safetensors files to tensors that stay in the file until they are used, and from there onto a component."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdcli import pickles
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.headers import COPIED_IN_PART, FETCH_AGAIN, check_start

# How diffusers and transformers name a component's weights, now and in the time of pickles.
STEMS = {".safetensors": ("diffusion_pytorch_model", "model"), ".bin": ("diffusion_pytorch_model", "pytorch_model")}
NOT_WEIGHED = ("safety_checker", "feature_extractor")  # folders of a model whose pickles nothing here reads
TRAINING = "sdcli.training"  # entry of a weights file's metadata that says how it was made


def read_tensors(path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, or of a pickle where that is allowed, mapped from the disk and not yet read.

    Raises:
        SdcliError: the file is missing, empty, cut off, damaged or a pickle.
    """
    if pickles.is_pickle(path):
        return pickles.read_tensors(path, allow_pickle)
    with open_weights(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def open_weights(path: Path) -> safe_open:
    """An open safetensors file.

    Raises:
        SdcliError: as for `read_tensors`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            check_start(file.read(8), size, path)
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise SdcliError(f"{path} is missing", hint=COPIED_IN_PART) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except SafetensorError as error:
        raise SdcliError(f"{path} is damaged: {error}", hint=FETCH_AGAIN) from error


def training_of(path: Path) -> dict[str, Any] | None:
    """What a weights file says of its own training; None where it says nothing.

    Raises:
        SdcliError: as for `read_tensors`.
    """
    with open_weights(path) as file:
        text = (file.metadata() or {}).get(TRAINING)
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def weight_file(folder: Path) -> Path:
    """The file in a component's folder that holds its weights, or that lists the files which do.

    The full-precision file is taken where there is one, else the `fp16` variant; a pickle only where there is nothing
    else, and whether it may be read is another question.

    Raises:
        SdcliError: there is none.
    """
    for ending, stems in STEMS.items():
        for variant in ("", ".fp16"):
            for stem in stems:
                for name in (f"{stem}{variant}{ending}", f"{stem}{ending}.index{variant}.json"):
                    if (folder / name).is_file():
                        return folder / name
    looked_for = " nor ".join(f"{stem}.safetensors" for stem in STEMS[".safetensors"])
    raise SdcliError(f"{folder} has no weights: neither {looked_for} is there", hint=COPIED_IN_PART)


def shards(index: Path) -> dict[str, list[str]]:
    """The files that an index of a sharded component names, each with its keys.

    Raises:
        SdcliError: the index is no such file, or names files outside its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise SdcliError(f"{index} has no weight_map", hint=FETCH_AGAIN)
    keys_of: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise SdcliError(f"{index}: {key} lies in {name!r}, which is no file beside the index", hint=FETCH_AGAIN)
        keys_of.setdefault(name, []).append(key)
    return keys_of


def read_weights(folder: Path, allow_pickle: bool = False) -> tuple[dict[str, Tensor], Path]:
    """All tensors of a component's folder, and the file that an error should name.

    Raises:
        SdcliError: a file is missing or bad, or lacks a key that the index says it holds.
    """
    path = weight_file(folder)
    if path.suffix != ".json":
        return read_tensors(path, allow_pickle), path
    tensors = {}
    for name, keys in shards(path).items():
        shard = read_tensors(folder / name, allow_pickle)
        absent = [key for key in keys if key not in shard]
        if absent:
            lacks = f"{folder / name} lacks {some(absent)}, which {path.name} says it holds"
            raise SdcliError(lacks, hint="do the index and the files belong together?")
        tensors |= {key: shard[key] for key in keys}
    return tensors, path


def assign(component: nn.Module, tensors: Mapping[str, Tensor], source: Path, placement: Placement) -> None:
    """Give a component built without memory (on the meta device) its weights; those that need no cast stay in the file.

    Args:
        component: has parameters of the right shapes.
        tensors: key to tensor, keys as in the component's state dict.
        source: the file, for messages.
        placement: where the weights go, and what the floating ones become.

    Raises:
        SdcliError: a key is missing or has no place, or a shape differs.
    """
    expected = component.state_dict()
    misfit = f"{source} does not fit this {type(component).__name__}"
    for key in expected.keys() & tensors.keys():
        found, wanted = tuple(tensors[key].shape), tuple(expected[key].shape)
        if found != wanted:
            inpainting = key == "conv_in.weight" and found[1] == 9
            hint = (
                "9 input channels is an inpainting checkpoint"
                if inpainting
                else "do config.json and weights belong together?"
            )
            raise SdcliError(f"{misfit}: {key} is {found}, expected {wanted}", hint=hint)
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise SdcliError(f"{misfit}: {some(missing)} missing", hint="do config.json and weights belong together?")
    unexpected = sorted(tensors.keys() - expected.keys())
    if unexpected:
        raise SdcliError(
            f"{misfit}: no place for {some(unexpected)}", hint="do config.json and weights belong together?"
        )
    cast = {
        key: tensor.to(placement.device, placement.dtype if tensor.is_floating_point() else tensor.dtype)
        for key, tensor in tensors.items()
    }
    component.load_state_dict(cast, assign=True)


def some(keys: list[str]) -> str:
    """The first of many keys, and how many more there are."""
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def read_json(path: Path) -> dict:
    """A JSON file with an object in it.

    Raises:
        SdcliError: it is missing, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SdcliError(f"{path} is missing", hint=COPIED_IN_PART) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except ValueError as error:  # JSON's own error and that of text which is not UTF-8
        raise SdcliError(f"{path} is not JSON: {error}", hint=FETCH_AGAIN) from error
    if not isinstance(content, dict):
        raise SdcliError(f"{path} must hold a JSON object, got a {type(content).__name__}", hint=FETCH_AGAIN)
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that a model folder is loaded from, by component and name."""
    files = []
    for component in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        endings = (".safetensors",) if component.name in NOT_WEIGHED else (*STEMS,)
        if not any(path.suffix in endings for path in component.iterdir()):
            continue
        path = weight_file(component)
        files += [path] if path.suffix != ".json" else [component / name for name in sorted(shards(path))]
    return files


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_read(path: object, error: OSError) -> SdcliError:
    """The error for a file that the system refuses to read."""
    return SdcliError(f"cannot read {path}: {error.strerror or error}", hint="is it a file, and may you read it?")


def read_any(path: Path, allow_pickle: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a file that people share: safetensors, or a pickle where that is allowed.

    Args:
        path: of the file.
        allow_pickle: read one that is no safetensors, by `weights_only`, which runs no code.

    Raises:
        SdcliError: the file is missing, bad, or a pickle.
    """
    if pickles.is_pickle(path):
        return pickles.read_pickle(path, allow_pickle), {}
    with open_weights(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
