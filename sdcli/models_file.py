"""A models.toml: its keys, their types, and the line of each mistake. Knows no model."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.hub import HubModel
from sdcli.settings import did_you_mean

LOCATIONS = ("path", "builtin", "hub")  # of which an entry has one
DEFAULT_KEYS = {  # and what the settings call them
    "width": "width",
    "height": "height",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "sampler": "sampler",
    "schedule": "schedule",
    "eta": "eta",
    "clip_skip": "clip_skip",
    "prediction_type": "prediction_type",
    "timestep_spacing": "timestep_spacing",
}
KEY_TYPES = {
    **dict.fromkeys((*LOCATIONS, "revision", "variant", "file", "lora", "description", "licence"), str),
    **dict.fromkeys(("sampler", "schedule", "prediction_type", "timestep_spacing"), str),
    **dict.fromkeys(("width", "height", "steps", "clip_skip"), int),
    **dict.fromkeys(("guidance_scale", "eta"), (int, float)),
}
OF_HUB = ("revision", "variant", "file")


@dataclass(frozen=True)
class ModelsFile:
    """What a models.toml says.

    Args:
        path: of the file.
        text: of it, in which lines are counted.
        default: the model to take when none is named.
        entries: the tables by the model's name.
    """

    path: Path
    text: str
    default: str | None
    entries: dict[str, dict[str, Any]]

    def mistake(self, table: str, key: str, message: str, hint: str) -> SdcliError:
        """An error that says where in the file it is; without a key, or when it is not found, the table's line."""
        line = line_of(self.text, table, key) or line_of(self.text, table, "")
        return SdcliError(f"{self.path}, line {line}: {message}" if line else f"{self.path}: {message}", hint=hint)


def parse_models_file(path: Path) -> ModelsFile:
    """The entries of a file.

    Raises:
        SdcliError: the file does not parse, or has an unknown key or a value of another type; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SdcliError(
            f"cannot read {path}: {error}", hint="it must be TOML; the shipped models.toml shows the form"
        ) from error
    file = ModelsFile(path, text, content.get("default"), content.get("models", {}))
    for key in content.keys() - {"default", "models"}:
        raise file.mistake("", key, f"unknown key {key!r}", did_you_mean(key, ("default", "models")))
    if not isinstance(file.default, str | None):
        raise file.mistake("", "default", "default must be the name of a model", 'write default = "NAME"')
    if not isinstance(file.entries, dict):
        raise file.mistake("", "models", "models must be tables", "write [models.NAME]")
    for name, entry in file.entries.items():
        check_entry(file, name, entry)
    return file


def check_entry(file: ModelsFile, name: str, entry: Any) -> None:
    """Raise SdcliError for an unknown key, a value of the wrong type, or a place that is missing or given twice."""
    if not isinstance(entry, dict):
        raise file.mistake("models", name, f"{name} must be a table", f"write [models.{name}]")
    table = f"models.{name}"
    for key, value in entry.items():
        if key not in KEY_TYPES:
            raise file.mistake(table, key, f"unknown key {key!r}", did_you_mean(key, KEY_TYPES))
        if not isinstance(value, KEY_TYPES[key]) or isinstance(value, bool):
            kind = "a text in quotes" if KEY_TYPES[key] is str else "a number"
            raise file.mistake(table, key, f"{key} must be {kind}, got {value!r}", f"write it as {kind}")
    if len(entry.keys() & {*LOCATIONS}) != 1:
        raise file.mistake(table, "", f"{name} needs one of path, builtin and hub", 'add path = "FOLDER"')
    for key in OF_HUB:
        if key in entry and "hub" not in entry:
            raise file.mistake(table, key, f"{key} goes with hub only", "leave it out")
    if "hub" in entry and HubModel.parse(entry["hub"]) != HubModel(entry["hub"]):
        hint = 'a branch, tag or commit of it is said by revision = "…"'
        raise file.mistake(table, "hub", f"hub must be OWNER/NAME, got {entry['hub']!r}", hint)


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
