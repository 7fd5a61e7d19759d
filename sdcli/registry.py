"""How a model's name is found: models.toml files, folders and training runs become a `ModelSpec`. Loads no torch."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.hub import HubModel, cached, fetch
from sdcli.model_config import INDEX, own_defaults, read_json
from sdcli.models_file import DEFAULT_KEYS, OF_HUB, ModelsFile, parse_models_file
from sdcli.settings import GenerationDefaults, did_you_mean

ADAPTER = "adapter.json"  # marks a folder of something that is put onto a model, which it names
ARCHITECTURE_SECTIONS = ("tokenizer", "vae", "text_encoder", "image_encoder", "unet", "scheduler", "train")
PACKAGE_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that the user may name, found but not loaded.

    Args:
        name: what the user calls it: a name in models.toml, or the folder, file or hub id as typed.
        path: the standard diffusers folder, the one that holds model_index.json, or a single file; None where it is on
            the hub only.
        defaults: what generation uses for everything that the user leaves open.
        licence: of the weights; empty when unknown.
        description: one line.
        source: the models.toml that names it; None for a folder.
        hub: where on the hub it comes from.
        adapter: folder of a trained LoRA or word that is put onto it; None for a model as it is.
        vae: another VAE to use, a folder or a file; None is the model's own.
        lora: file of a LoRA that belongs to it, as those that make a model need few steps; None where there is none, or
            it is on the hub only.
        lora_hub: where on the hub that comes from.
        allow_pickle: whether files of it that are no safetensors may be read, by `weights_only`.
    """

    name: str
    path: Path | None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    licence: str = ""
    description: str = ""
    source: Path | None = None
    hub: HubModel | None = None
    adapter: Path | None = None
    vae: Path | None = None
    lora: Path | None = None
    lora_hub: HubModel | None = None
    allow_pickle: bool = False

    @property
    def on_disk(self) -> bool:
        """Whether everything is there to be loaded."""
        has_lora = self.lora_hub is None if self.lora is None else self.lora.is_file()
        return has_lora and self.path is not None and (self.path.is_file() or (self.path / INDEX).is_file())


@dataclass(frozen=True)
class Registry:
    """All models that the models.toml files name, and the one to take when none is asked for."""

    models: dict[str, ModelSpec]
    default: str | None


def find_model(name: str | None = None, models_file: Path | None = None, allow_pickle: bool = False) -> ModelSpec:
    """Find a model by its name in models.toml, or by its folder or training run.

    Args:
        name: of the model; None is the default one.
        models_file: that comes before all others.
        allow_pickle: whether files of it that are no safetensors may be read.

    Raises:
        SdcliError: nothing goes by that name, or a models.toml does not parse.
    """
    registry = load_registry(models_file, allow_pickle)
    if name is None:
        name = registry.default
        if name is None:
            raise SdcliError("no models.toml names a default model", hint="give one with --model")
    if name in registry.models:
        return registry.models[name]
    path = os.path.expanduser(name)
    if os.path.exists(path):  # unlike Path.exists, False for a name that no file system takes
        return spec_of_path(name, Path(path), allow_pickle)
    if os.path.islink(path):
        raise SdcliError(f"{name} is a link that leads nowhere", hint="correct the link, or name what it was for")
    if hub := HubModel.parse(name):
        return spec_of_hub(name, hub, allow_pickle)
    raise SdcliError(
        f"no model named {name!r} in models.toml, and no folder or file of that name",
        hint=did_you_mean(name, registry.models),
    )


def find_loadable(name: str | None = None, models_file: Path | None = None, allow_pickle: bool = False) -> ModelSpec:
    """Find a model as `find_model` does, and see that it is on disk; one of the hub is fetched.

    Raises:
        SdcliError: nothing goes by that name, or it is not there and cannot be fetched.
    """
    model = find_model(name, models_file, allow_pickle)
    if model.on_disk:
        return model
    if model.lora is not None and not model.lora.is_file():
        message = f"the LoRA of model {model.name} is not on disk: {model.source} says {model.lora}"
        raise SdcliError(message, hint="put it there, or correct the path")
    missing = [hub for hub, path in ((model.hub, model.path), (model.lora_hub, model.lora)) if hub and path is None]
    if missing and (model.hub is not None or model.path.exists()):
        for each in missing:
            fetch(each, allow_pickle)
        return find_model(name, models_file, allow_pickle)
    where = f"{model.source} says" if model.source else "its name says"
    raise SdcliError(
        f"model {model.name} is not on disk: {where} {model.path}, which has no model_index.json",
        hint="put the model there, or correct the path; `sdcli models list` shows what there is",
    )


def spec_of_path(name: str, path: Path, allow_pickle: bool = False) -> ModelSpec:
    """The model in a diffusers folder or a single file, or the current model of a training run.

    Raises:
        SdcliError: the path is none of these.
    """
    if path.is_file():
        return ModelSpec(name=name, path=path, defaults=own_defaults(path, allow_pickle), allow_pickle=allow_pickle)
    path = model_folder(path)
    if (path / ADAPTER).is_file():
        base = find_model(read_json(path / ADAPTER).get("model"), allow_pickle=allow_pickle)
        return replace(base, name=name, adapter=path)
    if not (path / INDEX).is_file():
        raise SdcliError(
            f"{name} is no model: it holds neither model_index.json nor model/model_index.json",
            hint="give a folder in the diffusers layout, a single file, or a training run that has a checkpoint",
        )
    return ModelSpec(name=name, path=path, defaults=own_defaults(path), allow_pickle=allow_pickle)


def spec_of_hub(name: str, hub: HubModel, allow_pickle: bool = False) -> ModelSpec:
    """A model of the hub, where the hub's cache has it."""
    path = cached(hub)
    if path is None:
        return ModelSpec(name=name, path=None, hub=hub, allow_pickle=allow_pickle)
    return ModelSpec(name=name, path=path, hub=hub, defaults=own_defaults(path), allow_pickle=allow_pickle)


def model_folder(path: Path) -> Path:
    """The folder itself, or `model` in it when it is a training run."""
    within = path / "model"
    if any((within / mark).is_file() for mark in (INDEX, ADAPTER)) and not (path / INDEX).is_file():
        return within
    return path


def load_registry(models_file: Path | None = None, allow_pickle: bool = False) -> Registry:
    """All models.toml files together; the first file that names a model, or a default, wins.

    Raises:
        SdcliError: a file that was asked for is missing, or one does not parse.
    """
    models: dict[str, ModelSpec] = {}
    default: str | None = None
    for path in models_files(models_file):
        found = read_models_file(path, allow_pickle)
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


def read_models_file(path: Path, allow_pickle: bool = False) -> Registry:
    """The models of one file.

    Raises:
        SdcliError: the file does not parse, or has an unknown key or a value out of range; with the line.
    """
    file = parse_models_file(path)
    models = {name: spec_of_entry(file, name, entry, allow_pickle) for name, entry in file.entries.items()}
    return Registry(models, file.default)


def spec_of_entry(file: ModelsFile, name: str, entry: dict[str, Any], allow_pickle: bool = False) -> ModelSpec:
    """One `[models.NAME]` table as a `ModelSpec`.

    Raises:
        SdcliError: a value out of range; with file and line.
    """
    hub = HubModel(entry["hub"], **{key: entry[key] for key in OF_HUB if key in entry}) if "hub" in entry else None
    if hub is not None:
        path = cached(hub)
    elif "builtin" in entry:
        path = PACKAGE_FOLDER / "builtin" / entry["builtin"]
    else:
        path = model_folder(file.path.parent / Path(entry["path"]).expanduser())
    chosen = {DEFAULT_KEYS[key]: value for key, value in entry.items() if key in DEFAULT_KEYS}
    try:
        GenerationDefaults(**chosen)
    except SdcliError as error:
        key = next((key for key in DEFAULT_KEYS if str(error).startswith(key)), "")
        raise file.mistake(f"models.{name}", key, str(error), error.hint) from error
    try:
        defaults = GenerationDefaults(**chosen) if path is None else own_defaults(path, allow_pickle, **chosen)
    except SdcliError:  # a file of the model is bad, which is told when it is used
        defaults = GenerationDefaults(**chosen)
    about = {key: entry.get(key, "") for key in ("licence", "description")}
    about |= {"source": file.path, "hub": hub, "allow_pickle": allow_pickle, **lora_of_entry(file, name, entry)}
    return ModelSpec(name=name, path=path, defaults=defaults, **about)


def lora_of_entry(file: ModelsFile, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Where the LoRA of an entry lies, as arguments of `ModelSpec`; nothing where it has none.

    Raises:
        SdcliError: it is meant to be on the hub, and is no place there; with file and line.
    """
    if "lora" not in entry:
        return {}
    hub = HubModel.parse_file(entry["lora"])
    if hub is not None:
        return {"lora_hub": hub, "lora": cached(hub)}
    if entry["lora"].startswith("hf:"):
        hint = "write it as hf:OWNER/NAME:FILE.safetensors"
        raise file.mistake(f"models.{name}", "lora", f"lora must be a file, got {entry['lora']!r}", hint)
    return {"lora": file.path.parent / Path(entry["lora"]).expanduser()}
