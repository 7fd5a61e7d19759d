"""What a training run tells whoever watches it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The data is read and the model stands; the first update comes next."""

    part: str
    images: int
    parameters: int  # numbers that are trained
    global_step: int  # updates done by earlier runs
    steps: int
    device: str


@dataclass(frozen=True)
class Preparing:
    """So many pictures are encoded of those that have to be before the first update."""

    done: int
    total: int


@dataclass(frozen=True)
class Stepped:
    """One optimizer update is done."""

    global_step: int
    steps: int
    losses: dict[str, float]  # "loss" and the terms it is made of
    learning_rate: float
    gradient_norm: float
    images_per_s: float
    elapsed_s: float
    eta_s: float

    def row(self) -> dict[str, float]:
        """A line of metrics.jsonl."""
        numbers = dataclasses.asdict(self)
        losses = numbers.pop("losses")
        return {"global_step": numbers.pop("global_step"), **losses, **numbers}


@dataclass(frozen=True)
class Sampled:
    """A picture shows what the averaged weights can do."""

    path: Path


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk, whole."""

    path: Path
    global_step: int


@dataclass(frozen=True)
class Interrupted:
    """Somebody asked the run to end; a checkpoint was written."""

    global_step: int


Event = Started | Preparing | Stepped | Sampled | Saved | Interrupted
