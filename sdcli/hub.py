"""Models of the Hugging Face hub: where its cache has them, and how they get there. Loads its library to fetch only."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdcli import pickles
from sdcli.errors import SdcliError

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")  # OWNER/NAME, and a branch, tag or commit
HUB_FILE = re.compile(r"hf:([^:]+):([\w./ -]+)")  # a file of a repository, where there may be paths as well
INDEX = "model_index.json"
CONFIG = "config.json"
WHOLE = (INDEX, "*/*.json", "*/*.txt", "*/*.model")  # of a folder, beside weights
WEIGHTS, PICKLED = ".safetensors", ".bin"
STEMS = ("diffusion_pytorch_model", "pytorch_model")  # of pickles; there are other files of that ending
UNUSED = ("safety_checker", "feature_extractor")  # components that nothing here runs


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Args:
        repo: OWNER/NAME.
        revision: a branch, tag or commit.
        variant: of the weights that is wanted, such as fp16, where there is a choice; empty takes the plain ones.
        file: a single file of the repository; empty takes the folder in the diffusers layout.
    """

    repo: str
    revision: str = "main"
    variant: str = ""
    file: str = ""

    @classmethod
    def parse(cls, name: str) -> HubModel | None:
        """OWNER/NAME or OWNER/NAME@REVISION; None where it is neither."""
        found = HUB_ID.fullmatch(name)
        return cls(found[1], found[2] or "main") if found and ".." not in name else None

    @classmethod
    def parse_file(cls, name: str) -> HubModel | None:
        """hf:OWNER/NAME:FILE or hf:OWNER/NAME@REVISION:FILE; None where it is neither."""
        found = HUB_FILE.fullmatch(name)
        model = cls.parse(found[1]) if found and ".." not in name else None
        return None if model is None else replace(model, file=found[2])

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"

    @property
    def place(self) -> str:
        """With its file, as `parse_file` reads it, where it is one."""
        return f"hf:{self}:{self.file}" if self.file else str(self)


def cache_folder() -> Path:
    """Where the hub's library keeps what it fetches, by the variables that it knows."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(home) if home else Path(cache) / "huggingface").expanduser() / "hub"


def cached(model: HubModel) -> Path | None:
    """The folder, or the single file, of a model in the cache; None where it is not there, or not whole."""
    snapshot = snapshot_folder(model)
    if model.file:
        return snapshot / model.file if (snapshot / model.file).is_file() else None
    return snapshot if (snapshot / INDEX).is_file() and is_whole(snapshot) else None


def cached_config(model: HubModel) -> Path | None:
    """The folder of a component that is a repository of its own, such as a ControlNet; None where it is not there."""
    snapshot = snapshot_folder(model)
    return snapshot if (snapshot / CONFIG).is_file() and any(snapshot.glob(f"*{WEIGHTS}")) else None


def snapshot_folder(model: HubModel) -> Path:
    """Where the cache has a revision, if it has."""
    repo = repo_folder(model)
    ref = repo / "refs" / model.revision
    commit = ref.read_text().strip() if ref.is_file() else model.revision
    return repo / "snapshots" / commit


def repo_folder(model: HubModel) -> Path:
    """Where the cache has a repository, if it has."""
    return cache_folder() / f"models--{model.repo.replace('/', '--')}"


def is_whole(folder: Path) -> bool:
    """Whether every network of a folder has its weights, if only as pickles: files appear in the cache one by one."""
    for config in folder.glob("*/config.json"):
        files = [path.name for path in config.parent.iterdir()]
        indices = [name for name in files if f"{WEIGHTS}.index" in name or f"{PICKLED}.index" in name]
        shards = {each for name in indices for each in shards_of(config.parent / name)}
        if config.parent.name in UNUSED or (shards and shards <= {*files}):
            continue
        if not any(name.endswith((WEIGHTS, PICKLED)) and not re.search(r"-\d+-of-\d+\.", name) for name in files):
            return False
    return True


def shards_of(index: Path) -> set[str]:
    """The files that an index of a sharded component names."""
    return set(json.loads(index.read_text()).get("weight_map", {}).values())


def fetch(model: HubModel, allow_pickle: bool = False) -> None:
    """Bring a model into the cache.

    Args:
        model: which.
        allow_pickle: where a component has no other weights.

    Raises:
        SdcliError: it does not exist, may not be had, is a pickle, or the hub cannot be reached, or must not be.
    """
    from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download

    with told(model):
        if model.file:
            hf_hub_download(model.repo, model.file, revision=model.revision)
            return
        files = list_repo_files(model.repo, revision=model.revision)
        if INDEX not in files:
            singles = [name for name in files if name.endswith(WEIGHTS) and "/" not in name]
            hint = f"it has {', '.join(singles[:3])}: name one in models.toml as file" if singles else "name another"
            raise SdcliError(f"{model} on the hub has no {INDEX}", hint=hint)
        wanted = [*WHOLE, *weights_to_fetch(files, model.variant)]
        whole = {name.partition("/")[0] for name in wanted}
        pickled = [name for name in weights_to_fetch(files, model.variant, PICKLED) if name.split("/")[0] not in whole]
        if pickled and not allow_pickle:
            raise SdcliError(f"{model} on the hub has only a pickle of {pickled[0]}", hint=pickles.ALLOW)
        wanted += pickled
        snapshot_download(model.repo, revision=model.revision, allow_patterns=wanted)


def fetch_component(model: HubModel) -> None:
    """Bring a component that is a repository of its own into the cache; errors as for `fetch`."""
    from huggingface_hub import list_repo_files, snapshot_download

    with told(model):
        files = [f"./{name}" for name in list_repo_files(model.repo, revision=model.revision)]
        if f"./{CONFIG}" not in files:
            raise SdcliError(f"{model} on the hub has no {CONFIG}", hint="name another")
        chosen = [name.removeprefix("./") for name in weights_to_fetch(files, model.variant)]
        snapshot_download(model.repo, revision=model.revision, allow_patterns=[CONFIG, *chosen])


@contextlib.contextmanager
def told(model: HubModel) -> Iterator[None]:
    """Turn what the hub's library says of a failure into one error."""
    from huggingface_hub import constants, errors

    http_error = errors.HfHubHTTPError.__mro__[1]  # of the client that this version of the library uses

    if constants.HF_HUB_OFFLINE:
        raise SdcliError(f"{model} is not in the hub's cache", hint="run once without --offline, or name a folder")
    try:
        yield
    except errors.HFValidationError as error:
        hint = "it must be OWNER/NAME: letters, digits, single hyphens, dots and underscores"
        raise SdcliError(f"{model} is no name of a model on the hub", hint=hint) from error
    except errors.GatedRepoError as error:
        hint = f"accept its terms at https://huggingface.co/{model.repo}, then run `hf auth login`"
        raise SdcliError(f"{model} on the hub is gated", hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise SdcliError(f"{model.repo} on the hub has no revision {model.revision}", hint="try without it") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check its spelling; if it is private, run `hf auth login`"
        raise SdcliError(f"the hub has no model {model.repo}", hint=hint) from error
    except errors.RemoteEntryNotFoundError as error:
        raise SdcliError(f"{model} on the hub has no {model.file or INDEX}", hint="check its spelling") from error
    except (http_error, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SdcliError(f"cannot fetch {model} from the hub: {reason}", hint="check the network; try again") from error


def weights_to_fetch(files: Iterable[str], variant: str, ending: str = WEIGHTS) -> Sequence[str]:
    """Which weight files of an ending to fetch of a folder: of each component one variant."""
    by_component: dict[str, dict[str, list[str]]] = {}
    for name in files:
        component, _, file = name.rpartition("/")
        named = file.endswith(ending) and (ending == WEIGHTS or file.startswith(STEMS))
        if named and component and "/" not in component and component not in UNUSED:
            found = re.search(r"\.(fp16|bf16|fp32|non_ema|ema_only)(?=[.-])", file)
            by_component.setdefault(component, {}).setdefault(found[1] if found else "", []).append(name)
    chosen = []
    for variants in by_component.values():
        order = (variant, "", "fp16", *variants)
        chosen += variants[next(each for each in order if each in variants)]
    return chosen
