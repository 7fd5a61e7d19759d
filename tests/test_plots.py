"""Curves: a PNG whatever a run has told, and the smoothing that is drawn."""

import io
import json

import pytest
from PIL import Image

from sdcli.plots import smoothed, training_curves
from sdcli.training import run_folder
from sdcli.training.run_folder import RunFolder

UPDATES = [
    {"global_step": step, "loss": 1 / step, "learning_rate": 1e-3, "gradient_norm": 2.0 + step % 3}
    for step in range(1, 41)
]
TENTHS = [{**row, "loss_by_timestep": [row["loss"] if row["global_step"] % 10 == each else None for each in range(10)]}
          for row in UPDATES]  # fmt: skip
VALIDATIONS = [{"global_step": step, "validation_raw": 0.5, "validation_long": 0.4} for step in (20, 40)]


@pytest.mark.parametrize("rows", [[], UPDATES, TENTHS, TENTHS + VALIDATIONS, [{**UPDATES[0], "loss": float("inf")}]])
def test_curves_are_a_picture_of_the_readme_s_size(rows):
    """Also before the first update, of parts without timesteps, and where a loss was no number."""
    assert Image.open(io.BytesIO(training_curves(rows))).size == (900, 600)


def test_what_is_told_is_what_is_drawn():
    """Other losses, validations and tenths each change the picture."""
    pictures = [training_curves(rows) for rows in (UPDATES, TENTHS, UPDATES + VALIDATIONS, UPDATES[:20])]
    assert len(set(pictures)) == 4


def test_smoothing_keeps_a_constant_and_the_middle_of_a_line():
    """The mean around each point: unbiased where the curve is straight, and as long as the curve."""
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    line = [float(value) for value in range(200)]
    assert smoothed(line)[10:190] == pytest.approx(line[10:190])
    assert smoothed([]) == []


def test_of_a_long_run_every_validation_is_drawn(tmp_path, monkeypatch):
    """And of its updates no more than a picture can show, evenly."""
    rows = [row for step in range(1, 1001) for row in
            ([{"global_step": step, "loss": 1.0}] + ([{"global_step": step, "validation_raw": 1.0}] if step % 333 == 0
                                                     else []))]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = []
    monkeypatch.setattr(run_folder, "DRAWN_POINTS", 100)
    monkeypatch.setattr(run_folder, "training_curves", lambda chosen: drawn.extend(chosen) or b"")
    RunFolder(tmp_path).draw_curves()
    assert [row["global_step"] for row in drawn if "loss" not in row] == [333, 666, 999]
    assert 80 <= sum("loss" in row for row in drawn) <= 101
