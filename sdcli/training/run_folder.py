"""What a run keeps on disk: settings, metrics, samples, checkpoints. One process writes to it at a time."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sdcli.checkpoints.writing import BESIDE, whole_folder, write_text
from sdcli.errors import SdcliError
from sdcli.files import delete_unfinished, write_whole
from sdcli.plots import training_curves
from sdcli.training.events import Warned
from sdcli.training.settings import TrainSettings

STATE = "training_state.pt"
DRAWN_POINTS = 2000  # of a curve, at most
VALIDATION = '"validation_'  # in lines of metrics.jsonl that are about held-out pictures


class RunFolder:
    """The folder of one training run.

    `settings.json`, `metrics.jsonl`, `curves.png`, `samples/`, `checkpoints/step-000500/` (the model as trained, and
    the training state), `checkpoints/latest`, and `model/`, the averaged weights of the newest checkpoint.
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

    def lock(self) -> None:
        """Keep every other process from training into this folder, until this one ends.

        Raises:
            SdcliError: another one does so already, or the folder cannot be written.
        """
        try:
            self._lock = open(self.path / ".lock", "a")
        except OSError as error:
            hint = "choose another --output"
            raise SdcliError(f"cannot write to {self.path}: {error.strerror}", hint=hint) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SdcliError(
                f"another process is training into {self.path}", hint="wait for it, or choose another --output"
            ) from None
        except OSError:  # a file system without locks
            return

    def unlock(self) -> None:
        """Let other processes train into this folder."""
        self._lock.close()

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

    def check_data(self, sha256: str, change_allowed: bool) -> Iterator[Warned]:
        """Compare the data with what the run has learned from.

        Raises:
            SdcliError: it is other data, and that is not allowed.
        """
        path = self.path / "data.json"
        if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["sha256"] == sha256:
            return
        if not change_allowed:
            raise SdcliError(
                "the data is not what this run has learned from: pictures, captions or their names have changed",
                hint="put it back as it was, or go on with the new data by --allow-data-change",
            )
        yield Warned("going on with other data than before")

    def write_data(self, sha256: str, images: int | None, held_out: int) -> None:
        """Say what the run learns from."""
        about = {"sha256": sha256, "images": images, "held_out": held_out}
        write_text(self.path / "data.json", json.dumps(about, indent=2) + "\n")

    def write_settings(self, settings: TrainSettings) -> None:
        """Save the settings beside the run that they make."""
        write_text(self.path / "settings.json", json.dumps(dataclasses.asdict(settings), indent=2) + "\n")

    def sweep(self) -> None:
        """Delete what writing left unfinished when a process was killed."""
        for folder in (self.path, self.path / "samples"):
            delete_unfinished(folder)
        for folder in (self.path, self.checkpoints):
            for path in folder.iterdir():
                if not re.fullmatch(BESIDE, path.name):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def log(self, row: dict[str, object]) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def drawn_rows(self) -> list[dict[str, object]]:
        """What metrics.jsonl tells: of a long run every so-manieth update, and every validation.

        Raises:
            SdcliError: a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines and not lines[-1].endswith("}"):  # it is being written
            lines.pop()
        every = -(-len(lines) // DRAWN_POINTS)
        chosen = [line for number, line in enumerate(lines) if number % every == 0 or VALIDATION in line]
        try:
            return [json.loads(line) for line in chosen]
        except json.JSONDecodeError as error:
            raise SdcliError(f"{path} is damaged: {error}", hint="was it changed by hand?") from error

    def draw_curves(self) -> None:
        """Draw metrics.jsonl as curves.png."""
        if rows := self.drawn_rows():
            write_whole(training_curves(rows), self.path / "curves.png")

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
        if not self.has_checkpoint():
            raise SdcliError(f"{self.path} has no checkpoint to go on from", hint="delete it and start anew")
        return latest.resolve()

    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return (self.checkpoints / "latest" / STATE).exists()

    def use(self, run: "RunFolder") -> None:
        """Let RUN/model be the model of a run within this one."""
        link = self.path / ".model.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(run.model.relative_to(self.path))
        link.replace(self.model)

    def save(self, write_model: Callable[[Path], None], global_step: int, state: dict[str, object], keep: int) -> Path:
        """Write a checkpoint whole: beside its place first, then renamed; older ones go only after that."""
        target = self.checkpoints / f"step-{global_step:06d}"
        with whole_folder(target, mark=STATE) as scratch:
            write_model(scratch)
            write_state(state, scratch / STATE)
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


def write_state(state: dict[str, object], path: Path) -> None:
    """Write a training state to the disk. Raises OSError where that is full."""
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own writer stumbles over the file that it could not finish
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())


def finished_steps(run: RunFolder) -> int:
    """Updates that the newest checkpoint of a run holds."""
    return int(run.newest().name.removeprefix("step-"))


def load_state(checkpoint: Path) -> dict[str, object]:
    """The training state of a checkpoint; only tensors and plain values are read."""
    return torch.load(checkpoint / STATE, weights_only=True, map_location="cpu")
