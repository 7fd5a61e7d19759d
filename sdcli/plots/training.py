"""The curves of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sdcli.plots.style import BLUE, GREEN, GREY, ORANGE, content_of, look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, object]
HEIGHT_IN = 6.0
SMOOTHED_OVER = 0.05  # of a curve's points, for the line that is drawn over them


def training_curves(rows: Sequence[Row], file_format: str = "png") -> bytes:
    """What a training run has done so far, as four panels.

    Args:
        rows: of metrics.jsonl: updates, and validations between them.
        file_format: png or svg.
    """
    with look():
        figure = new_figure(HEIGHT_IN)
        updates = [row for row in rows if "loss" in row]
        validations = [row for row in rows if "loss" not in row]
        (losses, validation), (by_timestep, rate) = figure.subplots(2, 2)
        draw_losses(losses, updates)
        draw_validation(validation, validations)
        draw_by_timestep(by_timestep, updates)
        draw_rate(rate, updates)
        for axes in (by_timestep, rate):
            axes.set_xlabel("updates")
        return content_of(figure, file_format)


def draw_losses(axes: Axes, rows: Sequence[Row]) -> None:
    """The loss of every update, and its course."""
    axes.set_title("loss")
    steps, values = series(rows, "loss")
    axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed(values), color=BLUE, linewidth=1.8, label="training")
    logarithmic(axes, values)


def draw_validation(axes: Axes, rows: Sequence[Row]) -> None:
    """The loss of held-out pictures, for the weights as trained and for their averages."""
    axes.set_title("validation loss")
    for name, colour in (("raw", GREY), ("long", BLUE), ("short", ORANGE)):
        steps, values = series(rows, f"validation_{name}")
        if values:
            label = "as trained" if name == "raw" else f"{name} average"
            axes.plot(steps, values, color=colour, marker="o", markersize=3, label=label)
    if rows:
        axes.legend(frameon=False)
    else:
        say(axes, "no held-out pictures so far\n(--validation-split)")


def draw_by_timestep(axes: Axes, rows: Sequence[Row]) -> None:
    """The course of the loss in each tenth of the timesteps, from the clean ones, dark, to the noisy ones, bright."""
    from matplotlib import colormaps

    axes.set_title("loss by timestep, from clean (dark) to noisy (bright)")
    told = [row for row in rows if row.get("loss_by_timestep")]
    tenths = len(told[0]["loss_by_timestep"]) if told else 0
    for tenth in range(tenths):
        pairs = [(row["global_step"], row["loss_by_timestep"][tenth]) for row in told]
        pairs = [(step, value) for step, value in pairs if value is not None]
        if pairs:
            steps, values = zip(*pairs, strict=True)
            axes.plot(steps, smoothed(values), color=colormaps["viridis"](tenth / tenths), linewidth=1.2)
    if tenths:
        axes.set_yscale("log")
    else:
        say(axes, "this part has no timesteps")


def draw_rate(axes: Axes, rows: Sequence[Row]) -> None:
    """Learning rate, and the gradient's norm before it was clipped."""
    axes.set_title("learning rate and gradient norm")
    steps, values = series(rows, "learning_rate")
    axes.plot(steps, values, color=GREEN)
    axes.tick_params(axis="y", labelcolor=GREEN)
    beside = axes.twinx()
    steps, values = series(rows, "gradient_norm")
    beside.plot(steps, smoothed(values), color=ORANGE, linewidth=1.2)
    beside.tick_params(axis="y", labelcolor=ORANGE)
    logarithmic(beside, values)


def series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    """Updates and values of one figure, where it is a number."""
    pairs = [(row["global_step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and those around it; at the ends of as many as there are."""
    reach = int(len(values) * SMOOTHED_OVER / 2)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    around = [(max(0, index - reach), min(len(values), index + reach + 1)) for index in range(len(values))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in around]


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Draw values over more than a factor of ten by their logarithm."""
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def say(axes: Axes, text: str) -> None:
    """A panel that has nothing to draw says why."""
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
