"""A folder of pictures with captions, in the layouts that the field uses. Opens no picture."""

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.images import PICTURES

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_SUFFIXES = (".txt", ".caption")
CONDITION = re.compile(r"(\w+)(!?=)(.+)")
REPEATED = re.compile(r"(\d+)_(.+)")  # kohya's folders: how often an epoch shows their pictures, and what they show
LAYOUTS = 'metadata.jsonl or .csv with "file_name" and "text", or x.png beside x.txt, or folders such as 10_cat/'


@dataclass(frozen=True)
class Example:
    """One picture and everything that is said of it."""

    path: Path
    captions: tuple[str, ...]
    repeats: int = 1  # times that an epoch shows it
    place: str = ""  # the file, and the line in it, that names or captions it
    label: str | None = None  # the class of what it shows


@dataclass(frozen=True)
class Problem:
    """Something that a run cannot use."""

    kind: str  # one of a few fixed words, such as no-caption
    place: str  # the file, or the file and its line
    message: str  # what is wrong, to be read after the place
    path: Path | None = None  # the file that is to blame
    named_at: str = ""  # the file and the line that name it, where that is another place


@dataclass
class Contents:
    """What a folder holds: usable examples in a fixed order, and everything that is not usable."""

    folder: Path
    examples: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    metadata: Path | None = None  # the file that names the pictures, in the layout that has one


@dataclass(frozen=True)
class Condition:
    """What a column of metadata must be, or must not be, for its row to be used."""

    column: str
    values: frozenset[str]
    excluded: bool  # whether it must be none of the values

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read COLUMN=VALUE,VALUE or COLUMN!=VALUE,VALUE.

        Raises:
            SdcliError: it is neither.
        """
        matched = CONDITION.fullmatch(text)
        if not matched:
            raise SdcliError(
                f"--where takes COLUMN=VALUE, got {text!r}", hint="such as family=noto or group!=symbol,flag"
            )
        column, sign, values = matched.groups()
        return cls(column, frozenset(value.strip() for value in values.split(",")), excluded=sign == "!=")

    def admits(self, row: dict[str, object]) -> bool:
        """Whether a row is to be used; of a list, one item decides."""
        found = {str(value) for value in as_list(row.get(self.column))}
        return bool(found & self.values) != self.excluded


def read_contents(folder: Path, where: Sequence[str] = ()) -> Contents:
    """Read a folder to its end, whatever is wrong in it.

    Args:
        folder: Hugging Face's imagefolder (metadata.jsonl or .csv), or pictures with a caption file of the same stem
            beside each, or folders of such pictures, whose name is the caption of those that have none.
        where: conditions that rows of metadata must meet, all of them; see `Condition.parse`.

    Raises:
        SdcliError: there is no such folder, or no such column in it.
    """
    if not folder.is_dir():
        raise SdcliError(f"no folder {folder}", hint=f"--data takes a folder: {LAYOUTS}")
    contents = Contents(folder)
    found = [folder / name for name in METADATA if (folder / name).exists()]
    if len(found) == 2:
        contents.problems.append(Problem("two-metadata", str(folder), f"has both {METADATA[0]} and {METADATA[1]}"))
    if found:
        contents.metadata = found[0]
        rows = read_jsonl(found[0]) if found[0].suffix == ".jsonl" else read_csv(found[0])
        items = (read_row(row, place, folder) for row, place in chosen_rows(list(rows), where, found[0]))
    elif where:
        raise SdcliError(f"--where {where[0]}: {folder} has no metadata.jsonl or .csv", hint="leave it out")
    else:
        items = read_files(folder)
    for item in items:
        (contents.examples if isinstance(item, Example) else contents.problems).append(item)
    return contents


def chosen_rows(rows: list[tuple[object, str]], where: Sequence[str], path: Path) -> list[tuple[object, str]]:
    """The rows that meet all conditions, and those that cannot be read.

    Raises:
        SdcliError: a condition is about a column that no row has.
    """
    conditions = [Condition.parse(text) for text in where]
    columns = {name: None for row, _ in rows if isinstance(row, dict) for name in row}
    for condition in conditions:
        if condition.column not in columns:
            raise SdcliError(f"{path} has no column {condition.column!r}", hint=f"it has {', '.join(columns)}")
    admitted = [not isinstance(row, dict) or all(each.admits(row) for each in conditions) for row, _ in rows]
    return [row for row, admit in zip(rows, admitted, strict=True) if admit]


def read_jsonl(path: Path) -> Iterator[tuple[object, str]]:
    """The rows of a metadata.jsonl, each with its place; a line that is not JSON is given as a Problem."""
    for number, line in enumerate(read_lines(path), start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            yield json.loads(line), place
        except json.JSONDecodeError as error:
            yield Problem("bad-line", place, f"is not JSON: {error}", path), place


def read_csv(path: Path) -> Iterator[tuple[object, str]]:
    """The rows of a metadata.csv with a line of headings, each with its place."""
    reader = csv.DictReader(read_lines(path))
    try:
        for row in reader:
            yield {name: value for name, value in row.items() if name and value}, f"{path}:{reader.line_num}"
    except csv.Error as error:
        place = f"{path}:{reader.line_num}"
        yield Problem("bad-line", place, f"is not CSV: {error}", path), place


def read_row(row: object, place: str, folder: Path) -> Example | Problem:
    """The example that a row of metadata names, or what is wrong with it; links may lead out of the folder."""
    if isinstance(row, Problem):
        return row
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        return Problem("bad-line", place, 'has no "file_name"')
    path = folder / os.path.normpath(row["file_name"])
    if not path.is_relative_to(folder) or ".." in path.relative_to(folder).parts:
        return Problem("outside", place, f"leaves the folder: {row['file_name']}")
    if not path.is_file():
        return Problem("missing-picture", place, f"names a picture that is not there: {row['file_name']}")
    captions = [*as_list(row.get("text")), *as_list(row.get("captions"))]
    if not all(isinstance(caption, str) for caption in captions):
        return Problem("bad-line", place, "has a caption that is no text", path)
    label = row.get("label")
    if not isinstance(label, str | int | None) or isinstance(label, bool):
        return Problem("bad-line", place, "has a label that is neither a text nor a whole number", path)
    label = label_of(label)
    return Example(path, told_apart(captions or as_list(label)), place=place, label=label)


def label_of(value: str | int | None) -> str | None:
    """The name of a class; a blank one is none."""
    return None if value is None else str(value).strip() or None


def as_list(value: object) -> list:
    """A list as it is, None as nothing, anything else as the only one of its kind."""
    return value if isinstance(value, list) else [] if value is None else [value]


def read_files(folder: Path) -> Iterator[Example | Problem]:
    """The pictures of a folder and of the folders in it, captioned by files beside them."""
    yield from read_pairs(folder, repeats=1, name=None)
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        repeated = REPEATED.fullmatch(below.name)
        repeats, name = (int(repeated[1]), repeated[2]) if repeated else (1, below.name)
        if repeats < 1:
            yield Problem("bad-repeats", str(below), "says that its pictures are shown 0 times", below)
            continue
        yield from read_pairs(below, repeats, name)


def read_pairs(folder: Path, repeats: int, name: str | None) -> Iterator[Example | Problem]:
    """The pictures of one folder.

    Args:
        folder: whose pictures, and not those of folders below.
        repeats: of each picture.
        name: caption of the pictures that have none of their own; None where they must.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    stems = {path.stem for path in pictures}
    for path in pictures:
        texts = [path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES if path.with_suffix(suffix).is_file()]
        if len(texts) == 2:
            yield Problem("two-captions", str(path), f"has both {texts[0].name} and {texts[1].name}", texts[1])
        captions = read_lines(texts[0]) if texts else [name] if name else []
        yield Example(path, told_apart(captions), repeats, str(texts[0] if texts else path))
    for path in files:
        if path.suffix.lower() in CAPTION_SUFFIXES and path.stem not in stems and pictures:
            yield Problem("no-picture", str(path), "is a caption without a picture", path)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, with or without a byte order mark.

    Raises:
        SdcliError: it is no text in UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SdcliError(f"{path} is not UTF-8: {error.reason}", hint="save it again as UTF-8 text") from error
    except OSError as error:
        raise SdcliError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error


def told_apart(captions: list[str]) -> tuple[str, ...]:
    """Captions without blanks around them, without empty ones, each once."""
    return tuple(dict.fromkeys(stripped for caption in captions if (stripped := caption.strip())))
