"""The types of settings, for values that come from files."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints

from sdcli.errors import SdcliError
from sdcli.settings import GenerateSettings

KINDS = get_type_hints(GenerateSettings)
PLAIN = {  # types that need no second look: not lists, and not the floats that are no numbers
    name: {each for each in get_args(kind) or (kind,) if each in (str, int, NoneType) and ... not in get_args(kind)}
    for name, kind in KINDS.items()
}
ALIASES = {"steps": "num_inference_steps"}  # flags that are called otherwise than their field
WORDS_FOR = {str: "a text", int: "a whole number", float: "a number", NoneType: "null"}


def check_type(name: str, value: Any, called: str) -> Any:
    """A value as its field has it: whole numbers are numbers, a list is a tuple.

    Raises:
        SdcliError: it has another type.
    """
    if type(value) in PLAIN[name]:
        return value
    kinds = get_args(KINDS[name]) or (KINDS[name],)
    if kinds[-1] is ...:
        item = kinds[0]
        if isinstance(value, list) and all(is_of(item, each) for each in value):
            return tuple(item(each) for each in value)
        raise SdcliError(f"{called} must be {in_words(KINDS[name])}, got {shown(value)}", hint="such as []")
    if not any(is_of(each, value) for each in kinds):
        hint = "write it without quotes" if isinstance(value, str) else "a text stands in quotes, a number does not"
        raise SdcliError(f"{called} must be {in_words(KINDS[name])}, got {shown(value)}", hint=hint)
    return float(value) if float in kinds and value is not None else value


def in_words(kind: Any) -> str:
    """A setting's type, as people say it."""
    kinds = get_args(kind) or (kind,)
    if kinds[-1] is ...:
        return f"a list of {WORDS_FOR[kinds[0]][2:]}s"
    return " or ".join(WORDS_FOR[each] for each in kinds)


def is_of(kind: type, value: Any) -> bool:
    """Whether a value has a type; a whole number is a number too, true and false are none."""
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= 2**1023
    return isinstance(value, kind)


def shown(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
