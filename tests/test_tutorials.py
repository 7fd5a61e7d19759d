"""The README's tutorials, run as they are written, and what they promise measured on what they make."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from sdcli import load_pipeline

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SEEDS = 20  # of each digit
pytestmark = [pytest.mark.slow, pytest.mark.alone]


def follow(title: str, folder: Path) -> None:
    """Run the script and the commands below a heading; what they install is there already."""
    section = README.split(f"### {title}\n")[1].split("\n## ")[0].split("\n### ")[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL):
        commands = "\n".join(line for line in block.splitlines() if not line.startswith("pip install"))
        program = [sys.executable, "-c", commands] if kind == "python" else ["bash", "-euc", commands]
        subprocess.run(program, cwd=folder, env=environment, check=True)


def pictures_of(model: str, prompts: list[str], seed: int = 0) -> list[Image.Image]:
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    return load_pipeline(model)(prompts, generator=generators).images


def test_digits_are_named_by_a_classifier_of_real_ones(tmp_path, monkeypatch):
    """At least 90 % of 200, by logistic regression on the 1,797 pictures of the library as it has them, 8x8."""
    datasets, linear_model = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.linear_model")
    follow("From scratch: handwritten digits", tmp_path)
    assert len(list((tmp_path / "threes").glob("*.png"))) == 8
    monkeypatch.chdir(tmp_path)
    real = datasets.load_digits()
    classifier = linear_model.LogisticRegression(max_iter=5000).fit(real.data, real.target)
    names = "zero one two three four five six seven eight nine".split()
    wanted = numpy.repeat(numpy.arange(10), SEEDS)
    made = pictures_of("runs/digits", [f"a handwritten {names[digit]}" for digit in wanted], seed=1000)
    small = [each.convert("L").resize((8, 8), Image.Resampling.BOX) for each in made]
    ink = [16 - numpy.asarray(each, dtype=float) * 16 / 255 for each in small]
    named = classifier.predict(numpy.stack(ink).reshape(len(ink), -1))
    assert (named == wanted).mean() >= 0.9


def test_a_lora_of_twelve_pictures_draws_the_thing(tmp_path, monkeypatch):
    """The error to the nearest of the twelve is at most half of what the model without it makes of the same words.

    To the nearest one: they differ in where they stand, so each of the twelve is 27/255 away from their mean.
    """
    pytest.importorskip("peft")
    follow("A LoRA: one new thing from a dozen pictures", tmp_path)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 4
    monkeypatch.chdir(tmp_path)
    learned = numpy.stack([numpy.asarray(Image.open(f"snurfs/{number}.png"), float) for number in range(12)])

    def error(model: str) -> float:
        made = [numpy.asarray(each, float) for each in pictures_of(model, ["a snurf"] * 8)]
        return numpy.mean([abs(learned - each).mean(axis=(1, 2, 3)).min() for each in made])

    assert error("runs/snurf") <= 0.5 * error("emoji")
