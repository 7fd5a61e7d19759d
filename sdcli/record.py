"""What a picture of ours says of its own making, so that it can be made again. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sdcli.errors import SdcliError
from sdcli.foreign_metadata import read_foreign
from sdcli.images import FORMATS, read_text
from sdcli.metadata import Provenance, read_complete_json
from sdcli.recall import settings_of_block
from sdcli.settings import GenerateSettings

GET_AGAIN = "the file was altered; get it again"
FORMAT_OF = {name: file_format for file_format, name in FORMATS.items()}
KINDS = get_type_hints(Provenance)
NEEDED = ("model_name", "device", "precision", "weights", "versions")  # the others came later, and may be empty
OWN_SCHEDULERS = "diffusers."  # of package.module.Class


@dataclass(frozen=True)
class Record:
    """What is written in a picture.

    Args:
        path: of the picture.
        file_format: png, jpg or webp.
        settings: that it was made from.
        provenance: what else decided it.
    """

    path: Path
    file_format: str
    settings: GenerateSettings
    provenance: Provenance


def read_record(path: Path) -> Record:
    """What is written in a picture of ours.

    Raises:
        SdcliError: it is no picture, another program's, or what is written in it is damaged.
    """
    path = path.expanduser()
    texts, _, file_format = read_text(path)
    if "sdcli" not in texts:
        found = read_foreign(texts)
        why = f"was made by {found.maker}" if found else "does not say how it was made"
        hint = f"sdcli generate --from {path} takes the settings that are understood, where there are any"
        raise SdcliError(f"{path} {why}: it cannot be made again to the bit", hint=hint)
    content = read_complete_json(texts["sdcli"])
    values = settings_of_block(content, path, lambda key: None)
    for each in fields(GenerateSettings):
        if each.default is MISSING and each.name not in values:
            raise SdcliError(f"{path} is damaged: its settings lack {each.name}", hint=GET_AGAIN)
    check_sampler_is_known(path, values.get("sampler"))
    provenance = provenance_of(content, path)
    return Record(path, FORMAT_OF.get(file_format, "png"), GenerateSettings(**values), provenance)


def check_sampler_is_known(path: Path, sampler: str | None) -> None:
    """Refuse to import a module because a picture, which may be a stranger's, names it; diffusers' own are known.

    Raises:
        SdcliError: the sampler is a class of another package.
    """
    if sampler is not None and "." in sampler and not sampler.startswith(OWN_SCHEDULERS):
        hint = f"if you trust it: sdcli generate --from {path} --sampler {sampler}"
        raise SdcliError(f"{path} names a scheduler of another package, {sampler}", hint=hint)


def provenance_of(content: Mapping[str, Any], path: Path) -> Provenance:
    """What decided a picture beside its settings; keys that later versions have added are left out.

    Raises:
        SdcliError: something is missing or of another type.
    """
    values = {name: content[name] for name in KINDS if name in content}
    for name in NEEDED:
        if name not in values:
            raise SdcliError(f"{path} is damaged: its sdcli block has no {name}", hint=GET_AGAIN)
    for name, value in values.items():
        of_texts = get_args(KINDS[name])[1:] == (str,)
        good = isinstance(value, str if KINDS[name] is str else dict)
        if not good or (of_texts and not all(isinstance(each, str) for each in value.values())):
            raise SdcliError(f"{path} is damaged: {name} in its sdcli block is of no such kind", hint=GET_AGAIN)
    return Provenance(**values)
