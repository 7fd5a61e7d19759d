"""What a run keeps on disk: settings, metrics, samples, checkpoints; and the averaged weights."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sdcli.checkpoints.writing import whole_folder, write_text
from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings

STATE = "training_state.pt"


class Ema:
    """Weights averaged over the updates, which make better pictures than the last ones.

    Args:
        parameters: the weights that are trained.
        decay: share of the average that an update keeps; it rises to this from 0.1 in the first updates.

    Reference: Song et al. 2020 (arXiv:2006.09011), technique 5.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.decay = decay
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, global_step: int) -> None:
        """Move the average towards the weights after update number `global_step`."""
        decay = min(self.decay, (1 + global_step) / (10 + global_step))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    def load(self, average: list[Tensor]) -> None:
        """Go on from an average that was saved."""
        for ours, saved in zip(self.average, average, strict=True):
            ours.copy_(saved)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights in the place of the trained ones for a while."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, trained)


class RunFolder:
    """The folder of one training run.

    `settings.json`, `metrics.jsonl`, `samples/`, `checkpoints/step-000500/` (the model as trained, and the training
    state), `checkpoints/latest`, and `model/`, the averaged weights of the newest checkpoint.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"

    def refuse_existing(self) -> None:
        """Raise SdcliError where there is something already: a run is never begun over another one."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise SdcliError(
                f"{self.path} exists already", hint="go on with it by --resume, or choose another --output"
            )

    def create(self) -> None:
        """Make the folders. Raises SdcliError where they cannot be made."""
        try:
            self.checkpoints.mkdir(parents=True)
            (self.path / "samples").mkdir()
        except OSError as error:
            raise SdcliError(
                f"cannot write to {self.path}: {error.strerror}", hint="choose another --output"
            ) from error

    def read_settings(self) -> TrainSettings:
        """The settings of a run to resume. Raises SdcliError where there is none."""
        path = self.path / "settings.json"
        try:
            return TrainSettings(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise SdcliError(f"no run to resume in {self.path}", hint="leave out --resume to start one") from None
        except (json.JSONDecodeError, TypeError) as error:
            raise SdcliError(f"{path} cannot be read: {error}", hint="was it changed by hand?") from error

    def write_settings(self, settings: TrainSettings) -> None:
        """Save the settings beside the run that they make."""
        write_text(self.path / "settings.json", json.dumps(dataclasses.asdict(settings), indent=2) + "\n")

    def log(self, row: dict[str, object]) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_metrics_after(self, global_step: int) -> None:
        """Drop the lines of updates that the run is about to do again."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["global_step"] <= global_step]
        write_text(path, "".join(line + "\n" for line in kept))

    def sample_path(self, global_step: int) -> Path:
        """Where the sample sheet of an update goes."""
        return self.path / "samples" / f"step-{global_step:06d}.png"

    def newest(self) -> Path:
        """The newest whole checkpoint. Raises SdcliError where there is none yet."""
        latest = self.checkpoints / "latest"
        if not (latest / STATE).exists():
            raise SdcliError(f"{self.path} has no checkpoint to go on from", hint="delete it and start anew")
        return latest.resolve()

    def save(self, write_model: Callable[[Path], None], global_step: int, state: dict[str, object], keep: int) -> Path:
        """Write a checkpoint whole: beside its place first, then renamed; older ones go only after that."""
        target = self.checkpoints / f"step-{global_step:06d}"
        with whole_folder(target, mark=STATE) as scratch:
            write_model(scratch)
            with open(scratch / STATE, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        link = self.checkpoints / ".latest.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.replace(self.checkpoints / "latest")
        self._rotate(keep)
        return target

    def _rotate(self, keep: int) -> None:
        by_step = sorted(self.checkpoints.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        for old in by_step[:-keep]:
            shutil.rmtree(old)


def load_state(checkpoint: Path) -> dict[str, object]:
    """The training state of a checkpoint; only tensors and plain values are read."""
    return torch.load(checkpoint / STATE, weights_only=True, map_location="cpu")
