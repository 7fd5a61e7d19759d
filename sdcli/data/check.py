"""What is wrong with a training folder, what is only worth knowing, and mending it without losing a file."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy

from sdcli.data.folder import CAPTION_SUFFIXES, Contents, Problem, read_contents, read_csv
from sdcli.data.order import Size, bucket_sizes, nearest_size
from sdcli.data.scan import Picture, scan
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.files import make_folder, write_whole
from sdcli.images import PICTURES

NEAR = 6  # bits of 256 in which the outlines of near-duplicates differ at most
OUTLINE_BYTES, COLOUR_BYTES = 32, 48
NEAR_COLOUR = 16  # of 255, by which a colour of theirs differs at most
TOKENS_APART = 8  # width of a class of the token histogram
PLAIN_MODES = ("RGB", "RGBA", "P", "L", "LA", "1")  # of pixels that every tool reads alike


@dataclass
class Report:
    """What a look at a folder has found."""

    folder: Path
    images: int = 0  # usable ones
    captions: int = 0
    problems: list[Problem] = field(default_factory=list)  # what no run can use
    notes: list[Problem] = field(default_factory=list)  # what a run takes, but its owner should know
    sizes: dict[str, int] = field(default_factory=dict)  # pictures by size
    buckets: dict[str, int] = field(default_factory=dict)  # pictures by the size that they are trained at
    tokens: dict[str, int] = field(default_factory=dict)  # captions by their length in tokens


@dataclass(frozen=True)
class Wanted:
    """What the pictures are looked at for."""

    resolution: int  # that training is going to have, in pixels
    multiple: int = 64  # what divides the sides of a bucket
    most_tokens: int = 77  # of a caption, start and end among them
    need_captions: bool = True


def check(
    folder: Path, store: Store, wanted: Wanted, count_tokens: Callable[[str], int], look: Callable[[int, int], None]
) -> Report:
    """Read every file of a training folder.

    Args:
        folder: to check.
        store: where facts about pictures are kept.
        wanted: what training will ask of them.
        count_tokens: the length of a caption, start and end among them.
        look: called with the pictures looked at and their number.

    Raises:
        SdcliError: there is no such folder.
    """
    contents = read_contents(folder)
    report = Report(folder, problems=list(contents.problems))
    pictures = []
    for number, item in enumerate(scan(contents, store, wanted.need_captions), start=1):
        (pictures if isinstance(item, Picture) else report.problems).append(item)
        look(number, len(contents.examples))
    if not contents.examples and not contents.problems:
        report.problems.append(Problem("empty", str(folder), "holds no pictures", folder))
    report.images = len(pictures)
    report.notes += [*unnamed(contents), *twins(pictures)]
    for picture in pictures:
        report.notes += oddities(picture, wanted)
    buckets = bucket_sizes(wanted.resolution, wanted.multiple)
    report.sizes = counted(by_size(picture.size) for picture in pictures)
    report.buckets = counted(by_size(nearest_size(picture.size, buckets)) for picture in pictures)
    count_captions(report, pictures, wanted, count_tokens)
    return report


def count_captions(report: Report, pictures: list[Picture], wanted: Wanted, count_tokens: Callable[[str], int]) -> None:
    """Add lengths of captions to a report, and a note for each that is too long."""
    lengths = []
    for example in (picture.example for picture in pictures):
        for caption in example.captions:
            lengths.append(count_tokens(caption))
            if lengths[-1] > wanted.most_tokens:
                says = f"has a caption of {lengths[-1]} tokens, of which {wanted.most_tokens} are seen: {caption[:60]}"
                report.notes.append(Problem("long-caption", example.place, says, example.path))
    starts = sorted(length // TOKENS_APART * TOKENS_APART for length in lengths)
    report.captions = len(lengths)
    report.tokens = {f"{start}-{start + TOKENS_APART - 1}": number for start, number in Counter(starts).items()}


def oddities(picture: Picture, wanted: Wanted) -> Iterator[Problem]:
    """What is done to a picture before it is trained on, where that is more than scaling it down."""
    facts, path = picture.facts, picture.example.path
    if min(picture.size) < wanted.resolution and facts.width * facts.height < wanted.resolution**2:
        yield Problem("small", str(path), f"is {by_size(picture.size)}, and is scaled up to {wanted.resolution}", path)
    if facts.rotated:
        yield Problem("rotated", str(path), "is turned as its EXIF says", path)
    if facts.transparent:
        yield Problem("transparent", str(path), "has transparent parts, which become white", path)
    if facts.mode not in PLAIN_MODES:
        yield Problem("converted", str(path), f"is {facts.mode}, and becomes 8-bit RGB", path)


def unnamed(contents: Contents) -> Iterator[Problem]:
    """Pictures of a folder with metadata that no line of it names."""
    if contents.metadata is None:
        return
    root = contents.folder
    named = {example.path for example in contents.examples}
    named |= {problem.path for problem in contents.problems}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in PICTURES and path not in named:
            yield Problem("unnamed", str(path), f"is not named in {contents.metadata.name}, and not trained on", path)


def twins(pictures: list[Picture]) -> Iterator[Problem]:
    """Pictures that are the same as an earlier one, or look nearly so."""
    first: dict[str, Path] = {}
    different = []
    for picture in pictures:
        path = picture.example.path
        if picture.sha256 in first:
            yield Problem("identical", str(path), f"is the same file as {first[picture.sha256]}", path)
        else:
            first[picture.sha256] = path
            different.append(picture)
    outlines, colours = (
        numpy.frombuffer(b"".join(bytes.fromhex(getattr(each.facts, name)) for each in different), numpy.uint8)
        for name in ("outline", "colours")
    )
    for earlier, later in near_pairs(outlines.reshape(-1, OUTLINE_BYTES), colours.reshape(-1, COLOUR_BYTES)):
        path = different[later].example.path
        yield Problem("near-duplicate", str(path), f"looks like {different[earlier].example.path}", path)


def near_pairs(outlines: numpy.ndarray, colours: numpy.ndarray) -> list[tuple[int, int]]:
    """Pairs of pictures that look alike.

    Outlines that differ in at most NEAR bits are equal in one of NEAR + 1 bands of bytes, so only those that share a
    band are compared.

    Args:
        outlines: (N, bytes) uint8.
        colours: (N, numbers) uint8.

    Returns:
        For each picture that looks like an earlier one, the first of these and its own index.
    """
    nearest: dict[int, int] = {}
    for band in numpy.array_split(numpy.arange(outlines.shape[1]), NEAR + 1):
        alike = defaultdict(list)
        for index, key in enumerate(outlines[:, band]):
            alike[key.tobytes()].append(index)
        for group in (numpy.array(indices) for indices in alike.values() if len(indices) > 1):
            for place, index in enumerate(group[1:], start=1):
                before = group[:place]
                bits = numpy.bitwise_count(outlines[before] ^ outlines[index]).sum(axis=1)
                apart = numpy.abs(colours[before].astype(int) - colours[index]).max(axis=1)
                for earlier in before[(bits <= NEAR) & (apart <= NEAR_COLOUR)][:1].tolist():
                    nearest[int(index)] = min(earlier, nearest.get(int(index), earlier))
    return sorted((earlier, later) for later, earlier in nearest.items())


def by_size(size: Size) -> str:
    """Width and height as people write them."""
    return f"{size[0]}x{size[1]}"


def counted(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first."""
    return dict(Counter(names).most_common())


def mend(report: Report) -> list[Path]:
    """Put aside what no run can use, so that the rest can be trained on. Nothing is deleted.

    Pictures and captions move to a folder beside, FOLDER.rejected, under the same names; lines of metadata that name
    them, or that cannot be read, move to a file of the same name there.

    Returns:
        What was moved, by its old path.

    Raises:
        SdcliError: a file cannot be moved.
    """
    folder = report.folder.resolve()
    aside = folder.with_name(f"{folder.name}.rejected")
    contents = read_contents(report.folder)
    places = [place for each in report.problems for place in (each.place, each.named_at)]
    lines = {int(place.rpartition(":")[2]) for place in places if place.startswith(f"{contents.metadata}:")}
    moved = []
    if lines:
        mend_metadata(contents.metadata, lines, aside / contents.metadata.name)
    for path in dict.fromkeys(problem.path for problem in report.problems):
        if path is None or not path.is_file() or path == contents.metadata:
            continue
        beside = [path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES if path.suffix.lower() in PICTURES]
        for each in (path, *(caption for caption in beside if caption.is_file())):
            move(each, aside / each.resolve().relative_to(folder))
            moved.append(each)
    return moved


def mend_metadata(metadata: Path, lines: set[int], aside: Path) -> None:
    """Move lines of a metadata file, counted from 1, to another one."""
    numbered = list(enumerate(metadata.read_text(encoding="utf-8-sig").splitlines(keepends=True), start=1))
    if metadata.suffix == ".csv" and len(numbered) != 1 + sum(1 for _ in read_csv(metadata)):
        raise SdcliError(f"{metadata} has rows over several lines", hint="mend it by hand, or make it a metadata.jsonl")
    before = aside.read_text(encoding="utf-8") if aside.exists() else ""
    write_whole((before + "".join(line for number, line in numbered if number in lines)).encode(), aside)
    write_whole("".join(line for number, line in numbered if number not in lines).encode(), metadata)


def move(path: Path, target: Path) -> None:
    """Move a file, without ever replacing another one.

    Raises:
        SdcliError: there is a file of that name, or it cannot be moved.
    """
    make_folder(target.parent)
    if target.exists():
        raise SdcliError(f"{target} exists already", hint="an earlier --fix put it there; move it away")
    try:
        shutil.move(path, target)
    except OSError as error:
        raise SdcliError(f"cannot move {path}: {error.strerror}", hint="check its permissions") from error


def as_json_line(report: Report) -> str:
    """A report as one line of JSON."""
    listed = {
        name: [{"kind": each.kind, "place": each.place, "message": each.message} for each in getattr(report, name)]
        for name in ("problems", "notes")
    }
    plain = {name: getattr(report, name) for name in ("images", "captions", "sizes", "buckets", "tokens")}
    return json.dumps({"folder": str(report.folder), **plain, **listed}, ensure_ascii=False)
