"""One picture's settings on their way into our words: each is taken as ours, or kept in the words of who wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from sdcli.errors import SdcliError
from sdcli.foreign_metadata.names import translate_sampler, translate_schedule
from sdcli.settings import GenerateSettings

LONGEST_TEXT = 10_000  # letters of a prompt; more than anybody writes, and looked through in no time
KINDS = get_type_hints(GenerateSettings)
# Enough to have one more setting checked as GenerateSettings checks it, with what it needs beside it.
PLAIN = {
    "prompt": "",
    "model": "",
    "seed": 0,
    "width": 512,
    "height": 512,
    "num_inference_steps": 1000,
    "guidance_scale": 1.0,
    "init_image": "a.png",
}


@dataclass(frozen=True)
class ForeignMetadata:
    """What a picture of another program says.

    Args:
        maker: the program, as it calls itself.
        settings: fields of GenerateSettings. Models, LoRAs and files have the names that they have there.
        others: what has no counterpart here, in that program's own words.
    """

    maker: str
    settings: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)


class Translation:
    """Collects settings; nothing gets lost, and nothing that GenerateSettings would refuse gets in."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.others: dict[str, Any] = {}

    def accept(self, name: str, value: Any) -> bool:
        """Whether a value can be ours; if so it is taken.

        Args:
            name: of a field of GenerateSettings.
            value: a text is read as the number that the field needs.
        """
        try:
            ours = as_kind(KINDS[name], value)
            beside = {each: given for each, given in self.settings.items() if not each.endswith("prompt")}
            GenerateSettings(**{**PLAIN, **beside, name: ours})
        except (SdcliError, ValueError, TypeError, OverflowError):
            return False
        self.settings[name] = ours
        return True

    def take(self, name: str, value: Any, theirs: str, original: Any = None) -> bool:
        """Take a value as ours, if it can be; else keep it.

        Args:
            name: of a field of GenerateSettings.
            value: for it.
            theirs: what the other program calls it.
            original: what it wrote, where `value` was computed from that.
        """
        taken = self.accept(name, value)
        if not taken:
            self.keep(theirs, value if original is None else original)
        return taken

    def take_size(self, width: Any, height: Any, theirs: str, original: Any) -> None:
        """Take both sides of a picture, or keep what was written."""
        if self.take("width", width, theirs, original) and not self.take("height", height, theirs, original):
            del self.settings["width"]

    def take_all(self, names: Mapping[str, str], content: Mapping[str, Any]) -> None:
        """Take values by a table of their names and ours, those that are not None."""
        for theirs, name in names.items():
            if content.get(theirs) is not None:
                self.take(name, content[theirs], theirs)

    def take_sampler(self, sampler: Any, schedule: Any, theirs: tuple[str, str]) -> None:
        """Take a sampler and a schedule, either of which may be None.

        Args:
            sampler: its name there; it may name the schedule as well.
            schedule: its name there.
            theirs: what the other program calls the two.
        """
        found = translate_sampler(sampler) if isinstance(sampler, str) else None
        if found is None:
            self.keep(theirs[0], sampler)
            self.keep(theirs[1], schedule)
            return
        self.settings |= found
        if schedule is not None:
            named = translate_schedule(schedule, found["sampler"]) if isinstance(schedule, str) else None
            if named is None:
                self.keep(theirs[1], schedule)
            elif named:
                self.settings["schedule"] = named

    def keep(self, theirs: str, value: Any) -> None:
        """Keep what cannot be translated; None is nothing. A name that is taken gets another."""
        if value is None:
            return
        while theirs in self.others:
            theirs += "'"
        self.others[theirs] = value

    def keep_rest(self, content: Mapping[str, Any], known: Mapping[str, Any] | tuple[str, ...]) -> None:
        """Keep everything but the keys that are known, what is empty left aside."""
        for theirs, value in content.items():
            if theirs not in known and value not in (None, "", [], {}):
                self.keep(theirs, value)

    def finish(self, maker: str) -> ForeignMetadata:
        """All that was collected."""
        return ForeignMetadata(maker, self.settings, self.others)


def as_kind(kind: Any, value: Any) -> Any:
    """A value as a type of GenerateSettings has it.

    Raises:
        ValueError: it is none, or unreasonably long.
    """
    if kind is int or kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{value!r} is no number")
        if isinstance(value, str) and len(value) > 40:
            raise ValueError("too long for a number")
        number = kind(value)
        if isinstance(value, float) and number != value:
            raise ValueError(f"{value!r} is no whole number")
        return number
    if kind == float | None:
        return as_kind(float, value)
    if kind in (str, str | None):
        if not isinstance(value, str) or len(value) > LONGEST_TEXT:
            raise ValueError("no text, or a very long one")
        return value
    return tuple(as_kind(kind.__args__[0], each) for each in value)
