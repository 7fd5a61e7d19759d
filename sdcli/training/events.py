"""What a training run tells whoever watches it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checking:
    """So many pictures are looked at of those in the folder."""

    done: int
    total: int


@dataclass(frozen=True)
class Started:
    """The data is read and the model stands."""

    part: str
    images: int | None  # None of a stream, whose end nobody knows
    held_out: int  # pictures that only the validation sees
    parameters: int  # numbers that are trained
    global_step: int  # updates done by earlier runs
    steps: int
    device: str
    processes: int


@dataclass(frozen=True)
class Preparing:
    """So many pictures are encoded of those that have to be before the first update."""

    done: int
    total: int


@dataclass(frozen=True)
class Warned:
    """Something that the user should know, and that does not stop the run."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One optimizer update is done."""

    global_step: int
    steps: int
    losses: dict[str, float]  # "loss" and the terms it is made of
    by_timestep: list[float | None] | None  # the mean loss in each tenth of the timesteps, None where no image was
    learning_rate: float
    gradient_norm: float  # before it was clipped
    images_per_s: float
    waiting: float  # share of the time in which the network waited for data
    memory_mib: float  # at its largest so far
    elapsed_s: float
    eta_s: float

    def row(self) -> dict[str, object]:
        """A line of metrics.jsonl."""
        numbers = dataclasses.asdict(self)
        losses, by_timestep = numbers.pop("losses"), numbers.pop("by_timestep")
        told_apart = {} if by_timestep is None else {"loss_by_timestep": by_timestep}
        return {"global_step": numbers.pop("global_step"), **losses, **told_apart, **numbers}


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The loss of pictures that are held out, at fixed noise and timesteps."""

    global_step: int
    losses: dict[str, float]  # of the weights as trained ("raw") and of each average ("long", "short")

    def row(self) -> dict[str, object]:
        """A line of metrics.jsonl."""
        return {"global_step": self.global_step, **{f"validation_{name}": loss for name, loss in self.losses.items()}}


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


Event = Checking | Started | Preparing | Warned | Stepped | Validated | Sampled | Saved | Interrupted
