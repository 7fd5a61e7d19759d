"""Names of results: templates with fields in braces, and texts made safe for them. Loads no torch."""

from __future__ import annotations

import os
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.images import SUFFIXES
from sdcli.settings import did_you_mean

LONGEST_TEXT_IN_NAME = 80  # bytes


class Day(datetime):
    """A moment that a template writes as its day, or by any strftime pattern: {date}, {date:%H%M%S}."""

    def __format__(self, pattern: str) -> str:
        return self.strftime(pattern or "%Y-%m-%d")


class Names:
    """A template, taken apart once, that names many results.

    Args:
        flag: where the template comes from, for messages.
        template: with fields in braces.
        known: the fields that there are.

    Raises:
        SdcliError: an unknown field, or braces that do not match.
    """

    def __init__(self, flag: str, template: str, known: Sequence[str]):
        self.flag, self.template, self.known = flag, template, known
        self.parts: list[tuple[str, str | None, str]] = []  # text before a field, its name, how it is written
        try:
            for text, name, pattern, conversion in string.Formatter().parse(os.path.expanduser(template)):
                if name is not None and (name not in known or conversion):
                    listing = did_you_mean(name, known) + "; {{ writes a brace"
                    raise SdcliError(f"{flag} knows no field {{{name}{'!' if conversion else ''}}}", hint=listing)
                self.parts.append((text, name, pattern or ""))
        except ValueError as error:
            raise self._wrong(error) from error

    def name(self, values: Mapping[str, Any]) -> str:
        """The name of the result whose fields have these values; texts become safe parts of a file name.

        Raises:
            SdcliError: a pattern that its field does not take.
        """
        name = ""
        try:
            for text, field, pattern in self.parts:
                name += text
                if field is not None:
                    value = values[field]
                    name += format(slug(value) if isinstance(value, str) else value, pattern)
        except ValueError as error:
            raise self._wrong(error) from error
        return name

    def _wrong(self, error: ValueError) -> SdcliError:
        return SdcliError(f"{self.flag} {self.template}: {error}", hint="for example {index:05d}; {{ writes a brace")

    @property
    def folder(self) -> str:
        """The folder that all results are in or below, as far as the template says it without fields."""
        start = self.parts[0][0] if self.parts else ""
        return os.path.dirname(start)


def name_files(flag: str, template: str, fields: Sequence[Mapping[str, Any]]) -> list[Path]:
    """One path for each result, all different; arguments and errors as for `Names` and `check_different`."""
    names = Names(flag, template, tuple(fields[0]))
    paths = [names.name(values) for values in fields]
    check_different(flag, paths, tuple(fields[0])[0])
    return [Path(path) for path in paths]


def check_different(flag: str, paths: Sequence[str], field: str) -> None:
    """Refuse results of one name; `field` would tell them apart.

    Raises:
        SdcliError: two are equal.
    """
    if len(set(paths)) == len(paths):
        return
    double, count = Counter(paths).most_common(1)[0]
    hint = f"put {{{field}}} into the name, or name a folder: {os.path.splitext(double)[0]}/"
    raise SdcliError(f"{flag}: {count} files would all be {double}", hint=hint)


def picture_template(output: str, name_in_folder: str, file_format: str | None = None, flag: str = "--output") -> str:
    """The template, with a suffix, that `--output` and `--format` stand for.

    Args:
        output: a path or template, or a folder (ending in a slash, or there already).
        name_in_folder: template of names in a folder, without a suffix.
        file_format: png, jpg or webp; None is what `output` says, else png.
        flag: where `output` comes from, for messages.

    Raises:
        SdcliError: the suffix is none of ours, or contradicts the format.
    """
    if output.endswith(("/", os.sep)) or os.path.isdir(os.path.expanduser(output)):
        return os.path.join(output, f"{name_in_folder}.{file_format or 'png'}")
    suffix = os.path.splitext(output)[1].lower()
    if suffix not in SUFFIXES:
        what = f"{suffix} is no picture format of ours" if suffix else "the name has no suffix"
        hint = f"write {output}.png for a file, or {output}/ for a folder of pictures"
        raise SdcliError(f"{flag} {output}: {what}", hint=hint)
    if file_format and SUFFIXES[suffix] != file_format:
        raise SdcliError(f"{flag} {output} contradicts --format {file_format}", hint="leave --format out")
    return output


@lru_cache(maxsize=4096)
def slug(text: str) -> str:
    """A text as a part of a file name: words joined by hyphens, in any script, cut at a word's end."""
    words = re.sub(r"\W+", "-", text).strip("-_")
    if len(words.encode()) > LONGEST_TEXT_IN_NAME:
        cut = words.encode()[:LONGEST_TEXT_IN_NAME].decode(errors="ignore")
        words = cut.rpartition("-")[0] or cut
    return words or "untitled"
