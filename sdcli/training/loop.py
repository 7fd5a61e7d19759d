"""The training loop: batches in, events out. It prints nothing and knows no part by name but to choose it."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from sdcli.checkpoints import save_components
from sdcli.checkpoints.clip import clip_parts
from sdcli.device import DTYPES, choose_placement
from sdcli.errors import EXIT_NOT_A_NUMBER, SdcliError
from sdcli.images import save_png, to_image
from sdcli.pipeline import SdPipeline
from sdcli.training.assembly import Model, load_model, start_model
from sdcli.training.dataset import ImageFolder, read_folder
from sdcli.training.events import Event, Interrupted, Preparing, Sampled, Saved, Started, Stepped
from sdcli.training.parts import ClipPart, Part, UnetPart, VaePart
from sdcli.training.settings import TrainSettings
from sdcli.training.state import Ema, RunFolder, load_state

MEASURED_STEPS = 20  # the speed is told over so many updates


def train(settings: TrainSettings, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Train one part of a model in a run folder.

    Args:
        settings: of the run; the saved ones, when it goes on.
        resume: go on from the newest checkpoint of the folder instead of beginning it.
        stop: asked after every update; a yes ends the run with a checkpoint.

    Yields:
        What happens, in order.

    Raises:
        SdcliError: data, model or settings are not usable, or the loss is not a number (exit code 4).
    """
    trainer = Trainer(settings, resume)
    yield from trainer.prepare()
    yield from trainer.run(stop)


class Trainer:
    """A run: model, data, optimizer, average, and the folder that they are kept in."""

    def __init__(self, settings: TrainSettings, resume: bool):
        self.settings = settings
        self.folder = RunFolder(Path(settings.output))
        checkpoint = self.folder.newest() if resume else None
        if not resume:
            self.folder.refuse_existing()
        placement = choose_placement(settings.device, settings.precision)
        examples = read_folder(Path(settings.data), need_captions=settings.part != "vae")
        torch.manual_seed(settings.seed)
        if resume:
            self.model = load_model(checkpoint, whole_clip=settings.part == "clip")
        else:
            self.model = start_model(settings, [caption for each in examples for caption in each.captions])
        self.accelerator = Accelerator(cpu=placement.device.type == "cpu", mixed_precision=placement.mixed_precision)
        self.part = choose_part(self.model, ImageFolder(examples, self._resolution(), settings.seed), settings)
        for component in self.model.components.values():
            if isinstance(component, torch.nn.Module):
                component.to(self.accelerator.device).eval().requires_grad_(False)
        trained = self.part.model.to(self.accelerator.device).train().requires_grad_(True)
        self.ema = Ema(trained.parameters(), settings.ema)
        self.optimizer = torch.optim.AdamW(
            trained.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, settings.warmup, settings.steps)
        self.network, self.optimizer = self.accelerator.prepare(trained, self.optimizer)
        self.global_step = 0
        if resume:
            self._load(checkpoint)
        else:
            self.folder.create()
        self.folder.write_settings(settings)
        self.started = Started(
            part=settings.part,
            images=len(examples),
            parameters=sum(parameter.numel() for parameter in trained.parameters()),
            global_step=self.global_step,
            steps=settings.steps,
            device=str(self.accelerator.device),
        )

    def prepare(self) -> Iterator[Event]:
        """Compute what every step needs."""
        yield self.started
        for done, total in self.part.prepare():
            yield Preparing(done, total)

    def run(self, stop: Callable[[], bool]) -> Iterator[Event]:
        """Update by update, with samples and checkpoints between them."""
        settings = self.settings
        started_at, first = time.perf_counter(), self.global_step
        marks = [(started_at, first)]
        while self.global_step < settings.steps:
            losses, gradient_norm = self._update()
            now = time.perf_counter()
            marks = [*marks, (now, self.global_step)][-MEASURED_STEPS:]
            (then, before) = marks[0]
            seconds_per_step = (now - then) / (self.global_step - before)
            stepped = Stepped(
                global_step=self.global_step,
                steps=settings.steps,
                losses=losses,
                learning_rate=self.schedule.get_last_lr()[0],
                gradient_norm=gradient_norm,
                images_per_s=settings.batch_size / seconds_per_step,
                elapsed_s=now - started_at,
                eta_s=(settings.steps - self.global_step) * seconds_per_step,
            )
            self.folder.log(stepped.row())
            yield stepped
            last, stopped = self.global_step == settings.steps, stop()
            if last or stopped or self.global_step % settings.checkpoint_every == 0:
                yield self._save()
            if stopped and not last:
                yield Interrupted(self.global_step)
                return
            if last or self.global_step % settings.sample_every == 0:
                yield from self._sample()

    def _update(self) -> tuple[dict[str, float], float]:
        """One step of the optimizer: its losses, and the norm of the gradient before it was clipped."""
        batch = {name: self._share(tensor) for name, tensor in self.part.batch(self.global_step).items()}
        losses = self.part.losses(self.network, batch)
        self.accelerator.backward(losses["loss"])
        gradient_norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        values = {name: self.accelerator.reduce(loss.detach(), "mean").item() for name, loss in losses.items()}
        if not math.isfinite(values["loss"]):
            raise SdcliError(
                f"the loss is not a number after {self.global_step} updates",
                hint="try a smaller --learning-rate; the last checkpoint is still there",
                exit_code=EXIT_NOT_A_NUMBER,
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.global_step += 1
        self.ema.update(self.global_step)
        return values, float(gradient_norm)

    def _share(self, tensor: Tensor) -> Tensor:
        """This process's part of a batch, on its device."""
        processes = self.accelerator.num_processes
        return tensor.chunk(processes)[self.accelerator.process_index].to(self.accelerator.device)

    def _sample(self) -> Iterator[Event]:
        """Show what the averaged weights can do."""
        with self.ema.applied(), torch.no_grad():
            picture = self.part.sample()
        if picture is not None and self.accelerator.is_main_process:
            path = self.folder.sample_path(self.global_step)
            save_png(to_image(picture), path)
            yield Sampled(path)

    def _save(self) -> Event:
        """Write a checkpoint as it is trained, then the averaged weights for `generate`."""
        self.part.finish()
        state = {
            "global_step": self.global_step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.ema.average,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }
        path = self.folder.save(self._write_model, self.global_step, state, self.settings.keep)
        with self.ema.applied():
            self.part.finish()
            self._write_model(self.folder.model, DTYPES[self.settings.save_precision])
        return Saved(path, self.global_step)

    def _write_model(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        clip = {} if self.model.clip is None else clip_parts(self.model.clip)
        save_components(self.model.components | clip, folder, dtype=dtype)

    def _load(self, checkpoint: Path) -> None:
        """Go on exactly where a checkpoint was written; its weights are in place already."""
        state = load_state(checkpoint)
        self.global_step = state["global_step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.ema.load(state["average"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.folder.forget_metrics_after(self.global_step)

    def _resolution(self) -> int:
        """The side of the training pictures: as asked, else what the model was made for."""
        if self.settings.resolution is not None:
            return self.settings.resolution
        components = self.model.components
        if self.settings.part == "unet":
            return components["unet"].config.sample_size * components["vae"].stride
        if self.settings.part == "clip":
            return components["image_encoder"].config.image_size
        return components["vae"].config.sample_size


def choose_part(model: Model, data: ImageFolder, settings: TrainSettings) -> Part:
    """The part that --part names, over the components of a model."""
    if settings.part == "vae":
        return VaePart(model.components["vae"], data, settings)
    if settings.part == "clip":
        return ClipPart(model.clip, model.components["tokenizer"], data, settings)
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    return UnetPart(SdPipeline(**{name: model.components[name] for name in names}), data, settings)
