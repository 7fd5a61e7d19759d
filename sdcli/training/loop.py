"""The training loop: batches in, events out. It prints nothing and knows no part by name."""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import torch

from sdcli.data.store import Store
from sdcli.device import DTYPES, choose_placement
from sdcli.errors import EXIT_NOT_A_NUMBER, SdcliError
from sdcli.images import save_png, to_image
from sdcli.training.assembly import check_architecture, load_model, start_model, with_classes
from sdcli.training.choices import ADAPTERS, DENOISERS
from sdcli.training.events import (
    Event,
    Interrupted,
    Preparing,
    Sampled,
    Saved,
    Started,
    Stepped,
    Validated,
    Warned,
)
from sdcli.training.feed import Feed
from sdcli.training.material import Material, gather, left_out, open_store, too_long
from sdcli.training.objectives import BINS
from sdcli.training.optimizers import make_optimizer
from sdcli.training.pace import Pace, peak_memory_mib
from sdcli.training.parts import make_part
from sdcli.training.parts.base import Batch
from sdcli.training.processes import start_accelerator
from sdcli.training.provenance import provenance
from sdcli.training.run_folder import RunFolder
from sdcli.training.settings import TrainSettings
from sdcli.training.sharding import Sharding, asked_split, gather_all
from sdcli.training.state import State
from sdcli.training.trackers import plain

MOST_RETREATS = 2  # returns to the last checkpoint, each with half the learning rate, before a run is given up
VALIDATED_ON = 16  # batches of held-out pictures, at most


class NotFinite(Exception):
    """The loss or the gradient is not a number."""


def train(
    settings: TrainSettings, resume: bool = False, stop: Callable[[], bool] = lambda: False, dry_run: bool = False
) -> Iterator[Event]:
    """Train one part of a model in a run folder.

    Args:
        settings: of the run; the saved ones, when it goes on.
        resume: go on from the newest checkpoint of the folder instead of beginning it.
        stop: asked after every update, and while pictures are encoded before the first one; a yes ends the run with a
            checkpoint.
        dry_run: end before the first update, and leave nothing on the disk.

    Yields:
        What happens, in order.

    Raises:
        SdcliError: data, model or settings are not usable, or the loss is not a number (exit code 4).
    """
    folder = RunFolder(Path(settings.output))
    checkpoint = folder.newest() if resume else None
    if not resume:
        folder.refuse_existing()
    store = open_store(settings)
    material = None
    for item in gather(settings, store):
        if isinstance(item, Material):
            material = item
        else:
            yield item
    if resume:
        yield from folder.check_data(material.sha256, settings.allow_data_change)
    if dry_run:
        yield rehearse(settings, material, store)
        return
    trainer = Trainer(settings, folder, checkpoint, material, store)
    with contextlib.closing(trainer):
        if (yield from trainer.prepare(stop)):
            yield from trainer.run(stop)


def rehearse(settings: TrainSettings, material: Material, store: Store) -> Event:
    """Make everything up to the first batch, and tell what would be trained.

    Raises:
        SdcliError: what `train` would raise before its first update.
    """
    placement = choose_placement(settings.device, settings.precision)
    model = start_model(settings, material.captions)
    if settings.part in DENOISERS:
        model = with_classes(model, material.labels)
    data, held_out = material.shown(settings, model)
    part = make_part(model, data, settings, store)
    make_optimizer(part.groups(), settings)
    part.batch(data, 0)
    return Started(
        part=settings.part,
        images=material.images,
        held_out=0 if held_out is None else len(held_out),
        parameters=sum(parameter.numel() for parameter in part.parameters()),
        global_step=0,
        steps=settings.steps,
        device=str(placement.device),
        processes=1,
    )


class Trainer:
    """A run: model, data, optimizer, averages, and the folder that they are kept in.

    Args:
        settings: of the run.
        folder: of the run.
        checkpoint: to go on from; None begins.
        material: what is learned from.
        store: of what was computed before.
    """

    def __init__(self, settings, folder: RunFolder, checkpoint: Path | None, material: Material, store):
        self.settings = settings
        self.folder = folder
        self.material = material
        self.split = asked_split(settings)
        self.accelerator = start_accelerator(settings, folder)
        torch.manual_seed(settings.seed)
        if checkpoint is not None and settings.part not in ADAPTERS:
            self.model = load_model(checkpoint, whole_clip=settings.part == "clip")
            check_architecture(self.model, settings, checkpoint)
        else:
            self.model = start_model(settings, material.captions)
        if settings.part in DENOISERS:
            self.model = with_classes(self.model, material.labels)
        self.data, self.held_out = material.shown(settings, self.model, self.accelerator.num_processes)
        self.part = make_part(self.model, self.data, settings, store)
        self._place()
        split = self.split
        sharding = None if split is None else Sharding(self.part.network, self.accelerator.device, split)
        network = self.part.network if sharding is None else sharding.network
        network = torch.compile(network) if settings.compile else network
        self.network = self.accelerator.prepare(network) if sharding is None else network
        self.state = State(self.part, settings, self.accelerator, sharding)
        if self.accelerator.is_main_process:
            if checkpoint is None:
                folder.create()
            folder.lock()
            folder.sweep()
            folder.write_settings(settings)
            folder.write_data(material.sha256, material.images, len(material.held_out))
        self.accelerator.init_trackers(folder.path.name, config=plain(settings))
        self.accelerator.wait_for_everyone()
        self.metadata = provenance(settings, material, self.model)
        if checkpoint is not None:
            self.state.restore(checkpoint)
            self._forget_metrics()
        self.feed = Feed(self.part, self.data, self.accelerator, settings.num_workers)

    def close(self) -> None:
        """Give back what is held: the thread that reads ahead, and the folder."""
        self.feed.close()
        for tracker in self.accelerator.trackers:  # not `end_training`, which leaves the other processes for good
            tracker.finish()
        if self.accelerator.is_main_process:
            self.folder.unlock()

    def prepare(self, stop: Callable[[], bool]) -> Generator[Event, None, bool]:
        """Tell what is begun, and compute what every pass needs; False if the run was asked to end."""
        yield Started(
            part=self.settings.part,
            images=self.material.images,
            held_out=0 if self.held_out is None else len(self.held_out),
            parameters=sum(parameter.numel() for parameter in self.part.parameters()),
            global_step=self.global_step,
            steps=self.settings.steps,
            device=str(self.accelerator.device),
            processes=self.accelerator.num_processes,
        )
        if self.split is not None and self.split.stands_for:
            yield Warned(f"{self.split.stands_for} is done by PyTorch's FSDP; DeepSpeed itself is not used")
        if self.part.reads_captions:
            reader = self.model.reader
            yield from too_long(self.material.captions, reader.tokenizer, reader.length)
        if self.global_step == 0 and not self.state.retreats:
            yield self._save()  # now, for what follows takes minutes in which the run may be ended
        for done, total in self.part.prepare():
            yield Preparing(done, total)
            if self._agreed(stop()):
                yield Interrupted(self.global_step)
                return False
        return True

    @property
    def global_step(self) -> int:
        """Updates so far."""
        return self.state.global_step

    def run(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Update by update, with reports, samples and checkpoints between them."""
        settings = self.settings
        if self.global_step >= settings.steps:
            self._write_used()
            return
        pace = Pace(self.global_step)
        while self.global_step < settings.steps:
            try:
                stepped = self._update(pace)
            except NotFinite as error:
                yield self._retreat(error)
                pace = Pace(self.global_step)
                continue
            self._log(stepped.row())
            yield stepped
            yield from left_out(self.data.new_problems())
            last, stopped = self.global_step == settings.steps, self._agreed(stop())
            if self.held_out is not None and (last or self.global_step % settings.validate_every == 0):
                validated = self._validate()
                self._log(validated.row())
                yield validated
            if last or stopped or self.global_step % settings.checkpoint_every == 0:
                yield self._save()
            if stopped and not last:
                yield Interrupted(self.global_step)
                return
            if settings.sample_every and (last or self.global_step % settings.sample_every == 0):
                yield from self._sample()

    def _place(self) -> None:
        """Put every network on its device; only the part's own weights learn."""
        for component in (*self.model.components.values(), self.part.network):
            if isinstance(component, torch.nn.Module):
                component.to(self.accelerator.device).eval().requires_grad_(False)
        self.part.network.train()
        for parameter in self.part.parameters():
            parameter.requires_grad_(True)
        if self.settings.gradient_checkpointing:
            for network in self.part.network.modules():
                if getattr(network, "_supports_gradient_checkpointing", False):
                    network.enable_gradient_checkpointing()
        if self.settings.channels_last:
            self.part.network.to(memory_format=torch.channels_last)

    def _update(self, pace: "Pace") -> Stepped:
        """One step of the optimizer, over all its passes."""
        settings, accelerator = self.settings, self.accelerator
        totals: Batch = {}
        for turn in range(settings.accumulate):
            with pace.waiting():
                batch = self.feed.batch(self.global_step * settings.accumulate + turn)
            last = turn == settings.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.network):
                with accelerator.autocast():
                    losses = self.part.losses(self.network, batch)
                accelerator.backward(losses["loss"] / settings.accumulate)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach()
        gradient_norm = gather_all(accelerator.clip_grad_norm_(self.state.parameters, settings.max_grad_norm))
        values, by_timestep = self._reduce(totals)
        if not math.isfinite(values["loss"]) or not (accelerator.scaler or math.isfinite(gradient_norm)):
            raise NotFinite(f"after {self.global_step} updates")
        rate = self.state.update()
        images = settings.batch_size * settings.accumulate
        return Stepped(
            global_step=self.global_step,
            steps=settings.steps,
            losses=values,
            by_timestep=by_timestep,
            learning_rate=rate,
            gradient_norm=float(gradient_norm),
            memory_mib=peak_memory_mib(self.accelerator.device),
            **pace.after(self.global_step, images, settings.steps),
        )

    def _reduce(self, totals: Batch) -> tuple[dict[str, float], list[float | None] | None]:
        """Losses as means over the passes and processes, and the loss in each tenth of the timesteps."""
        reduce = self.accelerator.reduce
        told_apart = totals.pop("by_timestep", None)
        values = {name: (reduce(loss, "mean") / self.settings.accumulate).item() for name, loss in totals.items()}
        if told_apart is None:
            return values, None
        sums, counts = reduce(told_apart, "sum").tolist()
        return values, [sums[each] / counts[each] if counts[each] else None for each in range(BINS)]

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was asked to end."""
        if self.accelerator.num_processes == 1:
            return stop
        asked = torch.tensor(float(stop), device=self.accelerator.device)
        return self.accelerator.reduce(asked, "sum").item() > 0

    @torch.no_grad()
    def _validate(self) -> Validated:
        """The loss of held-out pictures, for the weights as trained and for each average."""
        count = min(VALIDATED_ON, max(1, self.held_out.order.per_epoch // self.held_out.order.batch_size))
        batches = [self.feed.share(self.part.batch(self.held_out, number, validating=True)) for number in range(count)]
        losses = {}
        for name in ("none", *self.state.averages.decays):
            with self.state.used(name), self.accelerator.autocast():
                each = [self.part.losses(self.part.network, batch)["loss"] for batch in batches]
            mean = self.accelerator.reduce(torch.stack(each).mean(), "mean")
            losses["raw" if name == "none" else name] = mean.item()
        return Validated(global_step=self.global_step, losses=losses)

    def _sample(self) -> Iterator[Event]:
        """Show what the weights that are used can do."""
        with self.state.used(self.settings.average), torch.no_grad():
            picture = self.part.sample() if self.accelerator.is_main_process else None
        if picture is not None:
            path = self.folder.sample_path(self.global_step)
            save_png(to_image(picture), path)
            yield Sampled(path)
        self.accelerator.wait_for_everyone()

    def _save(self) -> Event:
        """Write a checkpoint as it is trained, then the weights that are used."""
        path = self.folder.checkpoints / f"step-{self.global_step:06d}"
        state = self.state.capture()
        with self.state.whole():
            if self.accelerator.is_main_process:
                self.part.finish()
                path = self.folder.save(self._write, self.global_step, state, self.settings.keep)
                self.folder.draw_curves()
        self._write_used()
        return Saved(path, self.global_step)

    def _write_used(self) -> None:
        """Write RUN/model, which `generate` uses."""
        with self.state.used(self.settings.average):
            if self.accelerator.is_main_process:
                self.part.finish()
                self._write(self.folder.model, DTYPES[self.settings.save_precision])
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        about = {**self.metadata, "global_step": str(self.global_step)}
        self.part.write(folder, dtype, about)

    def _retreat(self, error: NotFinite) -> Event:
        """Return to the last checkpoint with half the learning rate.

        Raises:
            SdcliError: that was done often enough.
        """
        message = f"the loss is not a number {error}"
        if self.state.retreats >= MOST_RETREATS:
            raise SdcliError(
                f"{message}, after {self.state.retreats} returns to the last checkpoint",
                hint="try a smaller --learning-rate; the checkpoints are still there",
                exit_code=EXIT_NOT_A_NUMBER,
            ) from error
        self.feed.forget()  # first: what it has begun goes on from elsewhere
        self.state.retreat(self.folder.newest())
        self._forget_metrics()
        rate = f"1/{2**self.state.retreats} of the learning rate"
        return Warned(f"{message}; back to update {self.global_step}, with {rate}")

    def _forget_metrics(self) -> None:
        """Drop what was told of updates that are done again."""
        if self.accelerator.is_main_process:
            self.folder.forget_metrics_after(self.global_step)

    def _log(self, row: dict[str, object]) -> None:
        if self.accelerator.is_main_process:
            self.folder.log(row)
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=self.global_step)
