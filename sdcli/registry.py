"""How a model's name is found: models.toml files, folders and training runs become a `ModelSpec`. Loads no torch."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.settings import GenerationDefaults, did_you_mean

INDEX = "model_index.json"  # marks a model folder
ADAPTER = "adapter.json"  # marks a folder of something that is put onto a model, which it names
ARCHITECTURE_SECTIONS = ("tokenizer", "vae", "text_encoder", "image_encoder", "unet", "scheduler", "train")
PACKAGE_FOLDER = Path(__file__).parent
DEFAULT_KEYS = {
    "width": "width",
    "height": "height",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "sampler": "sampler",
    "schedule": "schedule",
    "clip_skip": "clip_skip",
}
KEY_TYPES = {
    "path": str,
    "builtin": str,
    "description": str,
    "licence": str,
    "sampler": str,
    "schedule": str,
    "width": int,
    "height": int,
    "steps": int,
    "clip_skip": int,
    "guidance_scale": (int, float),
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that the user may name, found but not loaded.

    Args:
        name: what the user calls it: a name in models.toml, or the folder as typed.
        folder: the standard diffusers folder, the one that holds model_index.json.
        defaults: what generation uses for everything that the user leaves open.
        licence: of the weights; empty when unknown.
        description: one line.
        source: the models.toml that names it; None for a folder.
        adapter: folder of a trained LoRA or word that is put onto it; None for a model as it is.
    """

    name: str
    folder: Path
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    licence: str = ""
    description: str = ""
    source: Path | None = None
    adapter: Path | None = None

    @property
    def on_disk(self) -> bool:
        """Whether there is something to load."""
        return (self.folder / INDEX).is_file()


@dataclass(frozen=True)
class Registry:
    """All models that the models.toml files name, and the one to take when none is asked for."""

    models: dict[str, ModelSpec]
    default: str | None


def find_model(name: str | None = None, models_file: Path | None = None) -> ModelSpec:
    """Find a model by its name in models.toml, or by its folder or training run; None is the default model.

    Raises:
        SdcliError: nothing goes by that name, or a models.toml does not parse.
    """
    registry = load_registry(models_file)
    if name is None:
        name = registry.default
        if name is None:
            raise SdcliError("no models.toml names a default model", hint="give one with --model")
    if name in registry.models:
        return registry.models[name]
    path = os.path.expanduser(name)
    if os.path.exists(path):  # unlike Path.exists, False for a name that no file system takes
        return spec_of_folder(name, Path(path))
    raise SdcliError(
        f"no model named {name!r} in models.toml, and no folder of that name",
        hint=did_you_mean(name, registry.models),
    )


def find_loadable(name: str | None = None, models_file: Path | None = None) -> ModelSpec:
    """Find a model as `find_model` does, and see that it is on disk.

    Raises:
        SdcliError: nothing goes by that name, or it is not there.
    """
    model = find_model(name, models_file)
    if not model.on_disk:
        where = f"{model.source} says" if model.source else "its name says"
        raise SdcliError(
            f"model {model.name} is not on disk: {where} {model.folder}, which has no model_index.json",
            hint="put the model there, or correct the path; `sdcli models list` shows what there is",
        )
    return model


def spec_of_folder(name: str, path: Path) -> ModelSpec:
    """The model in a diffusers folder, or the current model of a training run.

    Raises:
        SdcliError: the path is no such folder.
    """
    if path.is_file():
        raise SdcliError(f"{name} is a file; a model is a folder", hint="give the folder that holds model_index.json")
    folder = model_folder(path)
    if (folder / ADAPTER).is_file():
        return replace(find_model(read_json(folder / ADAPTER).get("model")), name=name, adapter=folder)
    if not (folder / INDEX).is_file():
        raise SdcliError(
            f"{name} is no model: it holds neither model_index.json nor model/model_index.json",
            hint="give a folder in the diffusers layout, or a training run that has written a checkpoint",
        )
    width, height = native_size(folder)
    return ModelSpec(name=name, folder=folder, defaults=GenerationDefaults(width=width, height=height))


def model_folder(path: Path) -> Path:
    """The folder itself, or `model` in it when it is a training run."""
    within = path / "model"
    if any((within / mark).is_file() for mark in (INDEX, ADAPTER)) and not (path / INDEX).is_file():
        return within
    return path


def native_size(folder: Path) -> tuple[int, int]:
    """Width and height in pixels that the model was trained on, from its configuration files.

    A value that is missing there counts as Stable Diffusion 1's: a UNet for 64 by 64 latents, a VAE with stride 8.
    """
    stride = vae_stride(folder)
    sample_size = read_config(folder / "unet").get("sample_size")
    if isinstance(sample_size, list):
        rows, columns = sample_size
        return columns * stride, rows * stride
    return ((sample_size or 64) * stride,) * 2


def vae_stride(folder: Path) -> int:
    """Pixels per latent, each way, of a model's VAE, from its configuration file; 8 where that does not say.

    A model without a VAE denoises pixels: 1.
    """
    if read_json(folder / INDEX).get("vae", [""])[0] is None:
        return 1
    channels = read_config(folder / "vae").get("block_out_channels")
    return 2 ** (len(channels) - 1) if isinstance(channels, list) else 8


def read_config(folder: Path) -> dict[str, Any]:
    """A component's config.json; empty when there is none.

    Raises:
        SdcliError: the file is no JSON object.
    """
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file; empty when there is none.

    Raises:
        SdcliError: the file is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SdcliError(f"cannot read {path}: {error}", hint="copy the model again") from error
    if not isinstance(content, dict):
        raise SdcliError(f"{path} is no component's configuration", hint="copy the model again")
    return content


def load_registry(models_file: Path | None = None) -> Registry:
    """All models.toml files together; the first file that names a model, or a default, wins.

    Raises:
        SdcliError: a file that was asked for is missing, or one does not parse.
    """
    models: dict[str, ModelSpec] = {}
    default: str | None = None
    for path in models_files(models_file):
        found = read_models_file(path)
        default = default or found.default
        models = {**found.models, **models}
    if default is not None and default not in models:
        raise SdcliError(f"models.toml: default is {default!r}, which is no model", hint=did_you_mean(default, models))
    return Registry(models, default)


def find_architecture(name: str) -> dict[str, dict[str, Any]]:
    """What a named architecture, or a TOML file, says of the components to build: their constructor arguments.

    Args:
        name: of an architecture that comes with the program, or a file.

    Returns:
        A table for each component, and perhaps `train`, with settings of a training run.

    Raises:
        SdcliError: there is no such architecture, or it does not parse.
    """
    known = {path.stem: path for path in (PACKAGE_FOLDER / "training" / "architectures").glob("*.toml")}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise SdcliError(f"no architecture and no file named {name!r}", hint=did_you_mean(name, known))
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SdcliError(f"cannot read {path}: {error}", hint="the shipped architectures show the form") from error
    for section in found.keys() - set(ARCHITECTURE_SECTIONS):
        raise SdcliError(f"{path}: unknown section [{section}]", hint=did_you_mean(section, ARCHITECTURE_SECTIONS))
    return found


def models_files(models_file: Path | None = None) -> list[Path]:
    """The models.toml files that count, the strongest first, the shipped one last.

    Raises:
        SdcliError: a file that was asked for does not exist.
    """
    named = {"--models-file": models_file, "$SDCLI_MODELS": os.environ.get("SDCLI_MODELS")}
    files = []
    for origin, value in named.items():
        if value:
            files.append(Path(value).expanduser())
            if not files[-1].is_file():
                raise SdcliError(f"{origin}: there is no file {value}", hint="the shipped models.toml shows the form")
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    files += [path for path in (Path("models.toml"), config_home / "sdcli" / "models.toml") if path.is_file()]
    return [*files, shipped_models_file()]


def shipped_models_file() -> Path:
    """The models.toml that comes with the program: in the package when installed, beside it in a checkout."""
    inside = PACKAGE_FOLDER / "models.toml"
    return inside if inside.is_file() else PACKAGE_FOLDER.parent / "models.toml"


def read_models_file(path: Path) -> Registry:
    """The models of one file.

    Raises:
        SdcliError: the file does not parse, or has an unknown key or a value out of range; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SdcliError(
            f"cannot read {path}: {error}", hint="it must be TOML; the shipped models.toml shows the form"
        ) from error
    for key in content.keys() - {"default", "models"}:
        raise mistake_in(path, text, "", key, f"unknown key {key!r}", did_you_mean(key, ("default", "models")))
    default, entries = content.get("default"), content.get("models", {})
    if not isinstance(default, str | None):
        raise mistake_in(path, text, "", "default", "default must be the name of a model", 'write default = "NAME"')
    if not isinstance(entries, dict):
        raise mistake_in(path, text, "", "models", "models must be tables", "write [models.NAME]")
    return Registry({name: spec_of_entry(path, text, name, entry) for name, entry in entries.items()}, default)


def spec_of_entry(path: Path, text: str, name: str, entry: Any) -> ModelSpec:
    """One `[models.NAME]` table as a `ModelSpec`.

    Raises:
        SdcliError: an unknown key, or a value of the wrong type or out of range; with file and line.
    """
    if not isinstance(entry, dict):
        raise mistake_in(path, text, "models", name, f"{name} must be a table", f"write [models.{name}]")
    table = f"models.{name}"
    for key, value in entry.items():
        if key not in KEY_TYPES:
            raise mistake_in(path, text, table, key, f"unknown key {key!r}", did_you_mean(key, KEY_TYPES))
        if not isinstance(value, KEY_TYPES[key]) or isinstance(value, bool):
            kind = "a text in quotes" if KEY_TYPES[key] is str else "a number"
            raise mistake_in(path, text, table, key, f"{key} must be {kind}, got {value!r}", f"write it as {kind}")
    if ("path" in entry) == ("builtin" in entry):
        raise mistake_in(path, text, table, "", f"{name} needs one of path and builtin", 'add path = "FOLDER"')
    if "builtin" in entry:
        folder = PACKAGE_FOLDER / "builtin" / entry["builtin"]
    else:
        folder = model_folder(path.parent / Path(entry["path"]).expanduser())
    width, height = native_size(folder)
    chosen = {DEFAULT_KEYS[key]: value for key, value in entry.items() if key in DEFAULT_KEYS}
    try:
        defaults = GenerationDefaults(**{"width": width, "height": height, **chosen})
    except SdcliError as error:
        key = next((key for key in DEFAULT_KEYS if str(error).startswith(key)), "")
        raise mistake_in(path, text, table, key, str(error), error.hint) from error
    about = {key: entry.get(key, "") for key in ("licence", "description")}
    return ModelSpec(name=name, folder=folder, defaults=defaults, source=path, **about)


def mistake_in(path: Path, text: str, table: str, key: str, message: str, hint: str) -> SdcliError:
    """An error that says where in a models.toml it is; without a key, or when it is not found, the table's line."""
    line = line_of(text, table, key) or line_of(text, table, "")
    return SdcliError(f"{path}, line {line}: {message}" if line else f"{path}: {message}", hint=hint)


def line_of(text: str, table: str, key: str) -> int | None:
    """Line number of a key in a TOML table, or of the table's header when the key is empty (tomllib keeps none)."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = re.sub(r"[\"'\s]", "", header[1])
            if not key and current == table.replace(" ", ""):
                return number
            if key and f"{current}.".startswith(f"{table}.{key}.".removeprefix(".")):
                return number
        elif key and current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return None
