"""Every picture of a run looked at before the first update: what cannot be used is found now, not in hour three."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sdcli.data.folder import Contents, Example, Problem
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.files import read_bytes, state_of
from sdcli.images import Image, PictureFacts, describe_picture, load_drawing, load_image

LOOKED_AT_ONCE = 64
DECODERS = 4  # threads; PIL decodes outside of Python's lock


@dataclass(frozen=True)
class Picture:
    """An example whose picture was decoded."""

    example: Example
    sha256: str  # of the file
    facts: PictureFacts
    content: bytes | None = None  # of the file, where it lies nowhere on the disk

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.facts.width, self.facts.height

    def load(self, as_drawing: bool = False) -> Image.Image:
        """The picture as RGB on white, or as RGBA, to be put on a ground."""
        source = self.example.path if self.content is None else self.content
        return (load_drawing if as_drawing else load_image)(source, str(self.example.path))


def scan(contents: Contents, store: Store, need_captions: bool) -> Iterator[Picture | Problem]:
    """Look at every example of a folder, in order; a picture that was looked at before is known by its file's state.

    Args:
        contents: of the folder.
        store: where facts are kept.
        need_captions: whether a picture without one is a problem.
    """
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(contents.examples), LOOKED_AT_ONCE):
            some = contents.examples[start : start + LOOKED_AT_ONCE]
            yield from pool.map(lambda example: look(example, store, need_captions), some)


def look(example: Example, store: Store, need_captions: bool) -> Picture | Problem:
    """One example with what its picture is, or why it cannot be used."""
    if need_captions and not example.captions:
        return Problem("no-caption", example.place, f"has no caption for {example.path.name}", example.path)
    try:
        sha256, facts = describe(example.path, store)
    except SdcliError as error:
        message = str(error).removeprefix(f"{example.path} ")
        return Problem("bad-picture", str(example.path), message, example.path, named_at=example.place)
    return Picture(example, sha256, facts)


def describe(path: Path, store: Store) -> tuple[str, PictureFacts]:
    """The hash of a picture file, and what it holds.

    Raises:
        SdcliError: it cannot be used.
    """
    key = f"facts 2 {state_of(path)}"
    known = store.get(key)
    if known is not None:
        about = json.loads(known)
        return about.pop("sha256"), PictureFacts(**about)
    content = read_bytes(path)
    facts = describe_picture(content, str(path))
    sha256 = hashlib.sha256(content).hexdigest()
    store.put([(key, json.dumps({"sha256": sha256, **dataclasses.asdict(facts)}).encode())])
    return sha256, facts


def hash_of(pictures: list[Picture], folder: Path) -> str:
    """SHA-256 of everything that a run learns from: names, files, captions and repeats, in order."""
    digest = hashlib.sha256()
    for picture in pictures:
        example = picture.example
        row = [str(example.path.relative_to(folder)), picture.sha256, example.captions, example.repeats]
        row += [] if example.label is None else [example.label]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def refuse(problems: list[Problem], folder: Path) -> None:
    """Raise SdcliError with the first of the problems and their number; nothing where there is none."""
    if not problems:
        return
    others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise SdcliError(
        f"{problems[0].place} {problems[0].message}{others}",
        hint=f"`sdcli data check {folder}` lists all that is wrong; --on-error skip leaves it out",
    )
