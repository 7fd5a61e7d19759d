"""Everything that an update changes: weights, optimizer, schedule, averages; to a checkpoint and back."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sdcli.training.assembly import load_model
from sdcli.training.averages import Averages, copy_all
from sdcli.training.choices import ADAPTERS
from sdcli.training.optimizers import make_optimizer, make_schedule
from sdcli.training.parts import Part
from sdcli.training.run_folder import load_state
from sdcli.training.settings import TrainSettings
from sdcli.training.sharding import Sharding, gather_all, split_optimizer_state


class State:
    """The state of a run between two updates.

    Args:
        part: whose weights are trained.
        settings: of the run.
        accelerator: scales gradients where they are fp16.
        sharding: of the part's network; None where every process has all of it.
    """

    def __init__(self, part: Part, settings: TrainSettings, accelerator: Accelerator, sharding: Sharding | None = None):
        self.part = part
        self.settings = settings
        self.accelerator = accelerator
        self.sharding = sharding
        self.parameters = part.parameters() if sharding is None else sharding.parameters
        self.averages = Averages(self.parameters, settings.ema)
        optimizer = make_optimizer(part.groups() if sharding is None else self.parameters, settings)
        self.schedule = make_schedule(optimizer, settings)
        self.optimizer = accelerator.prepare(optimizer)
        self.global_step = 0  # updates so far
        self.retreats = 0  # returns to a checkpoint, each of which halved the learning rate

    def update(self) -> float:
        """Take a step along the gradients that are there; gives the learning rate that it had."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.part.updated()
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.global_step += 1
        self.averages.update(self.global_step)
        return rate

    def capture(self) -> dict[str, Any]:
        """All but the weights, which a checkpoint has in files of their own. Every process must come here."""
        scaler = self.accelerator.scaler
        return {
            "global_step": self.global_step,
            "retreats": self.retreats,
            "optimizer": gather_all(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "averages": gather_all(self.averages.state()),
            "scaler": scaler.state_dict() if scaler else None,
            "part": self.part.state(),
            "data": self.part.data.state(self.global_step * self.settings.accumulate),
        }

    def restore(self, checkpoint: Path) -> None:
        """Go on exactly where a checkpoint was written; whole components are in place already."""
        saved = load_state(checkpoint)
        self.global_step, self.retreats = saved["global_step"], saved["retreats"]
        self.part.load(checkpoint, saved["part"])
        self.part.data.restore(saved.get("data", {}))
        self.optimizer.load_state_dict(split_optimizer_state(saved["optimizer"], self.parameters))
        self.schedule.load_state_dict(saved["schedule"])
        self.averages.load(saved["averages"])
        if self.accelerator.scaler and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])

    def retreat(self, checkpoint: Path) -> None:
        """Return to a checkpoint, weights and all, and go on from there at half the learning rate."""
        self.optimizer.zero_grad()
        if self.settings.part not in ADAPTERS:  # theirs come back with `restore`
            self.part.take(load_model(checkpoint, whole_clip=self.settings.part == "clip"))
            if self.sharding is not None:
                self.sharding.scatter()
        retreats = self.retreats + 1
        self.restore(checkpoint)
        lower = 2.0 ** (self.retreats - retreats)  # the checkpoint may have been written after an earlier return
        self.retreats = retreats
        self.schedule.base_lrs = [rate * lower for rate in self.schedule.base_lrs]
        for group in self.optimizer.param_groups:
            group["lr"] *= lower
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Have the part's network whole, with the weights as they are."""
        return contextlib.nullcontext() if self.sharding is None else self.sharding.gathered()

    @contextlib.contextmanager
    def used(self, average: str) -> Iterator[None]:
        """Put the weights in place that are to be used rather than trained further."""
        averages_itself = hasattr(self.optimizer.optimizer, "eval")
        applied = self._averaged_by_optimizer() if averages_itself else self.averages.applied(average)
        self.part.network.eval()
        try:
            with applied, self.whole():
                yield
        finally:
            self.part.network.train()

    @contextlib.contextmanager
    def _averaged_by_optimizer(self) -> Iterator[None]:
        """Let a schedule-free optimizer put its own average in place, and the trained weights back to the bit."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.optimizer.train()
            copy_all(self.parameters, trained)
