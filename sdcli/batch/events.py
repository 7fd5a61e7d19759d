"""What a run tells while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sdcli.errors import SdcliError
from sdcli.output import Picture


@dataclass(frozen=True)
class Loaded:
    """A model is ready."""

    model: str
    device: str
    precision: str
    elapsed_s: float


@dataclass(frozen=True)
class Stepped:
    """One denoising step is done, of `pictures` pictures at once; `step` counts from 1."""

    index: int
    pictures: int
    step: int
    steps: int


@dataclass(frozen=True)
class Made:
    """A picture is on disk, at a path that may have got a number; its settings are the resolved ones.

    Args:
        picture: as it was made.
        elapsed_s: its own share.
        content: of its file, where it goes to stdout.
        ranking: why it was kept, where there were others; see `Provenance`.
    """

    picture: Picture
    elapsed_s: float
    content: bytes | None = None
    ranking: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A candidate is not kept, or need not be made, or cannot be."""

    picture: Picture
    made: bool


@dataclass(frozen=True)
class There:
    """A picture is on disk since an earlier run, or another process has made it."""

    picture: Picture


@dataclass(frozen=True)
class Failed:
    """A picture could not be made, and the run goes on."""

    picture: Picture
    error: SdcliError


@dataclass(frozen=True)
class Warned:
    """Something that the user should know."""

    message: str


@dataclass(frozen=True)
class Estimated:
    """What a run would make with one model, and what it would take.

    Args:
        model: its name.
        device: where.
        precision: in which number format.
        to_make: pictures.
        there: pictures that are on disk already.
        seconds: to make them, after loading; None where nothing is known of the model's family.
        size: bytes that the process would have on the device.
        room: bytes that it may have.
    """

    model: str
    device: str
    precision: str
    to_make: int
    there: int
    seconds: float | None = None
    size: int | None = None
    room: int | None = None


Event = Loaded | Stepped | Made | Dropped | There | Failed | Warned | Estimated
Report = Callable[[Event], None]
