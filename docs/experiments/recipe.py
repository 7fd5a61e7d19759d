"""What both experiments share: the data, the judge, and one UNet trained, measured and sampled by sdcli's own commands.

B pictures of 8x8 grey pixels, D features.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import multiprocessing
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from sdcli import load_pipeline
from sdcli.cli import run
from sdcli.evaluation.distance import frechet_distance

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INK = 16  # levels of scikit-learn's pixels beyond 0
ARCHITECTURE = Path(__file__).with_name("digits.toml")
SAMPLERS = {"still": 0.0, "fresh": 1.0}  # DDIM's eta: no noise on the way, or all of DDPM's
LAST = 0.1  # share of the updates whose mean is the training loss
NOISE = 100_000  # seeds of a run's samples begin at this many times its own


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides a figure, but for the variant and its seed."""

    steps: int = 800
    clip_steps: int = 200
    train: int = 1437  # pictures of the 1,797
    held_out: int = 360  # the others
    per_digit: int = 50  # samples
    sampling_steps: int = 30
    timesteps: int = 64  # of the bound
    draws: int = 4  # timesteps in each tenth, of the held-out loss


TINY = Plan(steps=3, clip_steps=2, train=40, held_out=20, per_digit=2, sampling_steps=2, timesteps=2, draws=1)


@dataclass(frozen=True)
class Variant:
    """A UNet that is compared.

    Args:
        name: of its folder; variants with one name in two experiments are the same.
        label: in tables and figures.
        told: whether the UNet is told the timestep.
        loss: of `sdcli train --loss`.
    """

    name: str
    label: str
    told: bool = True
    loss: str = "mse"


def command(*arguments: object) -> str:
    """Run an sdcli command and give what it prints, telling it on stderr first."""
    words = ["sdcli", *map(str, arguments)]
    print("  $", *words, file=sys.stderr, flush=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run(words[1:])
    if code:
        raise SystemExit(code)
    return printed.getvalue()


class Judge:
    """A classifier of digits: what it calls a picture, and the hidden layer by which the Fréchet distance goes.

    Trained on the training pictures alone. No UNet learns from it, so it favours none.
    """

    def __init__(self, ink: numpy.ndarray, digits: numpy.ndarray, iterations: int = 300):
        self._network = MLPClassifier(
            (64,), alpha=1e-2, max_iter=iterations, random_state=0, tol=0, n_iter_no_change=999
        )
        with warnings.catch_warnings(action="ignore"):  # it says that it could go on
            self._network.fit(ink.reshape(len(ink), -1) / INK, digits)

    def accuracy(self, ink: numpy.ndarray, digits: numpy.ndarray) -> float:
        """Share of pictures (B, 8, 8), from 0 to 16, that it calls what they should be."""
        return float(self._network.score(ink.reshape(len(ink), -1) / INK, digits))

    def features(self, ink: numpy.ndarray) -> torch.Tensor:
        """Its hidden layer, (B, 64)."""
        hidden = ink.reshape(len(ink), -1) / INK @ self._network.coefs_[0] + self._network.intercepts_[0]
        return torch.from_numpy(hidden.clip(min=0))


class Bench:
    """A folder in which runs are made once and their figures kept, and all that they share.

    Args:
        output: the folder.
        plan: what decides the figures.
    """

    def __init__(self, output: Path, plan: Plan):
        self.output, self.plan = output, plan
        self._keep_plan()
        digits = load_digits()
        sizes = {"train_size": plan.train, "test_size": plan.held_out}
        everything = numpy.arange(len(digits.target))
        places = train_test_split(everything, **sizes, stratify=digits.target, random_state=0)
        (self.train_ink, self.held_ink), (self.train_digits, self.held_digits) = (
            [values[sorted(some)] for some in places] for values in (digits.images, digits.target)
        )
        self.held_folder = write_pictures(output / "data" / "held-out", self.held_ink, self.held_digits)
        self.train_folder = write_pictures(output / "data" / "train", self.train_ink, self.train_digits)
        self.judge = Judge(self.train_ink, self.train_digits)
        self.clip = self._trained("clip", ARCHITECTURE, "clip", "--steps", plan.clip_steps)

    def _keep_plan(self) -> None:
        """Refuse a folder whose figures another plan has decided."""
        self.output.mkdir(parents=True, exist_ok=True)
        kept, plan = self.output / "plan.json", dataclasses.asdict(self.plan)
        if kept.exists() and json.loads(kept.read_text()) != plan:
            raise SystemExit(f"error: {self.output} has figures of other settings ({kept})\nhint: another --output")
        if not kept.exists():
            kept.write_text(json.dumps(plan))

    def _trained(self, name: str, config: Path, part: str, *flags: object) -> Path:
        """The run of a part, made now unless it is there whole."""
        folder = self.output / name
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            cache = self.output / "cache.sqlite3"
            where = ("--data", self.train_folder, "--config", config, "-o", folder, "--device", "cpu")
            command("train", "--part", part, *where, *flags, "--cache", cache, "--progress", "none")
            (folder / "whole").touch()
        return folder

    def references(self) -> dict[str, float]:
        """What the judge is worth, and the figures of real pictures in the place of samples."""
        wanted = numpy.repeat(numpy.arange(10), self.plan.per_digit)
        chance = numpy.random.default_rng(0)
        places = [numpy.flatnonzero(self.train_digits == digit) for digit in range(10)]
        some = [chance.choice(each, self.plan.per_digit, replace=False) for each in places]
        real = self.train_ink[numpy.concatenate(some)]
        clip = self._clip_distance(write_pictures(self.output / "data" / "real", real, wanted))
        flags = ("--data", self.held_folder, "--model", self.clip, "--device", "cpu", "--json", "--progress", "none")
        found = json.loads(command("evaluate", "clip", *flags))
        held = self.judge.features(self.held_ink)
        return {
            "clip_accuracy": found["image_to_text"]["r@1"],
            "judge_accuracy": self.judge.accuracy(self.held_ink, self.held_digits),
            "frechet": frechet_distance(held, self.judge.features(real)),
            "clip_frechet": clip["frechet_distance"],
            "precision": clip["precision"],
            "recall": clip["recall"],
        }

    def _clip_distance(self, samples: Path) -> dict:
        """Distance, precision and recall in the features of the CLIP that the UNets read."""
        flags = ("--data", self.held_folder, "--samples", samples, "--model", self.clip, "--device", "cpu")
        return json.loads(command("evaluate", "samples", *flags, "--json", "--progress", "none"))

    def all_figures(self, variants: Sequence[Variant], seeds: Sequence[int], jobs: int) -> list[dict]:
        """Figures of every variant with every seed, seed by seed; so many runs are made at a time."""
        wanted = [(variant, seed) for seed in seeds for variant in variants]
        if jobs > 1:
            start_anew = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, start_anew, torch.set_num_threads, (1,)) as processes:
                for made in [processes.submit(make_run, self.output, self.plan, *each) for each in wanted]:
                    made.result()
        return [self.figures(*each) for each in wanted]

    def figures(self, variant: Variant, seed: int) -> dict:
        """Everything measured of one run, from the folder where it has been measured before."""
        folder = self.output / f"{variant.name}-{seed}"
        kept = folder / "figures.json"
        if not kept.exists():
            print(f"{variant.label}, seed {seed}", file=sys.stderr, flush=True)
            began, computed = time.perf_counter(), time.process_time()
            found = self._measure(variant, seed)
            found |= {"elapsed_s": time.perf_counter() - began, "cpu_s": time.process_time() - computed}
            kept.write_text(json.dumps(found))
        return json.loads(kept.read_text()) | {"label": variant.label}

    def _measure(self, variant: Variant, seed: int) -> dict:
        config = self.output / f"{variant.name}-{seed}.toml"
        told = ARCHITECTURE.read_text()
        config.write_text(told if variant.told else told.replace('"positional"', '"none"'))
        flags = ("--model", self.clip, "--steps", self.plan.steps, "--seed", seed, "--loss", variant.loss)
        folder = self._trained(f"{variant.name}-{seed}", config, "unet", *flags)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows[-max(1, round(LAST * len(rows))) :]]

        common = ("--data", self.held_folder, "--model", folder, "--batch-size", self.plan.held_out)
        common += ("--device", "cpu", "--json", "--progress", "none")
        denoiser = json.loads(command("evaluate", "denoiser", *common, "--draws", self.plan.draws))
        bound = json.loads(command("evaluate", "likelihood", *common, "--timesteps", self.plan.timesteps))
        pipeline = load_pipeline(str(folder), device="cpu")
        found = {
            "variant": variant.name,
            "seed": seed,
            "weights": sum(weight.numel() for weight in pipeline.unet.parameters()),
            "train_loss": sum(losses) / len(losses),
            "held_out_loss": denoiser["loss"],
            "loss_by_timestep": [each["loss"] for each in denoiser["bins"]],
            "bits_per_dim": bound["bits_per_dim"],
            "bits_sampling_error": bound["bits_per_dim_sampling_error"],
            "nats": bound["nats"],
        }
        for name, eta in SAMPLERS.items():
            found[name] = self._judge_samples(folder, seed, name, eta)
        return found

    def _judge_samples(self, folder: Path, seed: int, name: str, eta: float) -> dict[str, float]:
        """Draw every digit, keep the pictures, and measure them."""
        wanted = numpy.repeat(numpy.arange(10), self.plan.per_digit)
        generators = [torch.Generator().manual_seed(NOISE * (seed + 1) + place) for place in range(len(wanted))]
        images = load_pipeline(str(folder), device="cpu")(
            [NAMES[digit] for digit in wanted],
            num_inference_steps=self.plan.sampling_steps,
            guidance_scale=1.0,
            eta=eta,
            generator=generators,
            output_type="np",
        ).images
        ink = images[..., 0] * INK  # (B, 8, 8)
        clip = self._clip_distance(write_pictures(folder / "samples" / name, ink, wanted))
        return {
            "accuracy": self.judge.accuracy(ink, wanted),
            "frechet": frechet_distance(self.judge.features(self.held_ink), self.judge.features(ink)),
            "clip_frechet": clip["frechet_distance"],
            "precision": clip["precision"],
            "recall": clip["recall"],
        }

    def samples(self, variant: Variant, seed: int, name: str) -> list[Path]:
        """Files of a run's samples, all of a digit together."""
        return sorted((self.output / f"{variant.name}-{seed}" / "samples" / name).glob("*.png"))


def make_run(output: Path, plan: Plan, variant: Variant, seed: int) -> None:
    """Measure a run in a process of its own, where all that runs share is there already."""
    Bench(output, plan).figures(variant, seed)


def write_pictures(folder: Path, ink: numpy.ndarray, digits: Sequence[int]) -> Path:
    """A training folder of pictures (B, 8, 8) from 0, black, to 16, white, with the name of the digit as caption.

    One that is there whole stays: its metadata come last.
    """
    if (folder / "metadata.jsonl").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (values, digit) in enumerate(zip(ink, digits, strict=True)):
        file = f"{number:04}.png"
        Image.fromarray((values / INK * 255).round().astype("uint8")).save(folder / file)
        lines.append(json.dumps({"file_name": file, "text": NAMES[digit]}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def spread(values: Sequence[float], places: int, unit: float = 1.0) -> str:
    """Mean and standard deviation of the seeds."""
    values = numpy.array(values) * unit
    mean = f"{values.mean():.{places}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{places}f}"


def read_arguments(description: str) -> tuple[Path, Plan, range, int]:
    """Folder, plan, seeds and runs at a time that the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=Path("runs/experiments"), help="folder of runs and results")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--steps", type=int, help=f"updates of each run (default: {Plan.steps})")
    parser.add_argument("--jobs", type=int, default=1, help="runs made at a time, each with one thread if several")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal in seconds, whose figures mean nothing")
    asked = parser.parse_args()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of a font weight that it replaces
    plan = TINY if asked.tiny else Plan()
    if asked.steps is not None:
        plan = dataclasses.replace(plan, steps=asked.steps)
    if min(asked.seeds, asked.jobs, plan.steps) < 1:
        parser.error("--seeds, --jobs and --steps must be at least 1")
    return asked.output, plan, range(asked.seeds), asked.jobs


def real_files(bench: Bench) -> list[Path]:
    """Files of the training pictures that stand in the place of samples, all of a digit together."""
    return sorted((bench.output / "data" / "real").glob("*.png"))
