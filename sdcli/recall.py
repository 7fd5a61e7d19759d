"""Settings that a file names: a picture by us or another program, JSON, or TOML. Knows no flag and no model."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.files import read_bytes
from sdcli.foreign_metadata import read_foreign
from sdcli.images import PICTURES, read_text
from sdcli.metadata import SCHEMA, read_complete_json
from sdcli.models_file import line_of
from sdcli.setting_types import ALIASES, KINDS, WORDS_FOR, check_type, shown
from sdcli.settings import did_you_mean
from sdcli.untrusted_json import parse_json

LARGEST_FILE = 2**22  # bytes of settings; a prompt has some hundred
KNOWN = (*KINDS, *ALIASES)
# Files that a picture of another program names are not here, or are others of the same name.
FILES_OF_OTHERS = ("model", "lora", "embedding", "vae", "controlnet", "init_image", "mask", "control_image")
OUR_BLOCK = ("settings", "schema")  # keys that tell a block of ours from plain settings


@dataclass(frozen=True)
class Recalled:
    """What a file says of a picture that is to be made.

    Args:
        settings: fields of GenerateSettings with values of their types, perhaps a few of them; ranges are not checked.
        maker: the program that wrote it, "sdcli" for ours and for files of settings.
        left_out: what could not be taken over, in the words of who wrote it.
    """

    settings: dict[str, Any]
    maker: str = "sdcli"
    left_out: dict[str, Any] = field(default_factory=dict)


def recall(path: Path) -> Recalled:
    """The settings that a file names.

    Args:
        path: a picture, which may have no suffix; a .json with settings, or with the `sdcli` block of a picture; or a
            .toml with settings.

    Raises:
        SdcliError: there is no such file, it is damaged or names no settings, a key is unknown or given twice, or a
            value has the wrong type.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return recall_json(path)
    if suffix == ".toml":
        return recall_toml(path)
    if suffix and suffix not in PICTURES:
        raise SdcliError(f"{path} is no picture, no .json and no .toml", hint="name a file that has settings in it")
    return recall_picture(path)


def recall_picture(path: Path) -> Recalled:
    """The settings in a picture.

    Raises:
        SdcliError: it is no picture, or names none.
    """
    texts = read_text(path)[0]
    if "sdcli" in texts:
        return Recalled(settings_of_block(read_complete_json(texts["sdcli"]), path, lambda key: None))
    found = read_foreign(texts)
    if found is None or not found.settings:
        raise SdcliError(
            f"{path} names no settings that are understood", hint=f"sdcli info {path} shows what is in the file"
        )
    files = {name: found.settings[name] for name in FILES_OF_OTHERS if name in found.settings}
    settings = {name: value for name, value in found.settings.items() if name not in files}
    return Recalled(settings, found.maker, {**files, **found.others})


def recall_json(path: Path) -> Recalled:
    """The settings in a JSON file, flat or as a block of ours.

    Raises:
        SdcliError: with the line, where one is to blame.
    """
    text = read_settings_file(path)
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise SdcliError(f"{path}, line {error.lineno}: {error.msg}", hint="it must be JSON") from error
    except ValueError as error:
        raise SdcliError(f"{path}: {error}", hint="it must be JSON, each key once, as settings need it") from error
    if not isinstance(content, dict):
        hint = 'such as {"prompt": "a cat", "seed": 1}'
        raise SdcliError(f"{path} must hold one object of settings, not {kind_of(content)}", hint=hint)

    def line(key: str) -> int | None:
        found = re.search(rf"{re.escape(json.dumps(key, ensure_ascii=False))}\s*:", text)
        return text.count("\n", 0, found.start()) + 1 if found else None

    if isinstance(content.get("settings"), dict) and content.keys() >= {*OUR_BLOCK}:
        return Recalled(settings_of_block(content, path, line))
    return Recalled(check_settings(content, path, line))


def recall_toml(path: Path) -> Recalled:
    """The settings in a TOML file, flat.

    Raises:
        SdcliError: with the line, where one is to blame.
    """
    text = read_settings_file(path)
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise SdcliError(f"cannot read {path}: {why}", hint='it must be TOML, such as prompt = "a cat"') from error
    return Recalled(check_settings(content, path, lambda key: line_of(text, "", key)))


def read_settings_file(path: Path) -> str:
    """The text of a file of settings.

    Raises:
        SdcliError: it is missing, too large, or no text.
    """
    content = read_bytes(path, LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise SdcliError(f"{path} is too large for settings", hint=f"{LARGEST_FILE // 2**20} MiB are read at most")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SdcliError(f"{path}, line {line}: it is not UTF-8", hint="save it as UTF-8") from error


Line = Callable[[str], int | None]  # where in a file a key stands, if that can be told


def settings_of_block(content: Mapping[str, Any], path: Path, line: Line) -> dict[str, Any]:
    """The settings in a block of ours.

    Raises:
        SdcliError: it is of another kind, of a later version, or damaged.
    """
    if content["schema"] != SCHEMA:
        hint = f"{SCHEMA} can be; a picture of a later version needs that version"
        raise SdcliError(f"{path} is {content['schema']}, which no picture can be made from", hint=hint)
    if not isinstance(content.get("settings"), dict):
        raise SdcliError(f"{path} is damaged: its sdcli block has no settings", hint="get the file again")
    return check_settings(content["settings"], path, line)


def check_settings(content: Mapping[str, Any], path: Path, line: Line) -> dict[str, Any]:
    """Settings by the names of their fields, with values of their types.

    Raises:
        SdcliError: a key is unknown or given twice, or a value has the wrong type.
    """
    settings: dict[str, Any] = {}
    for key, value in content.items():
        number = line(key)
        where = f"{path}, line {number}" if number else f"{path}"
        name = key.replace("-", "_")
        name = ALIASES.get(name, name)
        if name not in KINDS:
            raise SdcliError(f"{where}: unknown key {shown(key)}", hint=did_you_mean(key[:60], KNOWN))
        if name in settings:
            raise SdcliError(f"{where}: {key} is the same as {name}, which is given too", hint="leave one of them out")
        settings[name] = check_type(name, value, f"{where}: {key}")
    return settings


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    return "a list" if isinstance(value, list) else WORDS_FOR.get(type(value), "true or false")
