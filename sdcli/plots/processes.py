"""Pictures on their way: the forward process from picture to noise, and a trajectory from noise to picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcli.plots.style import BLUE, ORANGE, content_of, look, new_figure, plain, show_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAM_BINS = 61
FARTHEST = 3.5  # value that a histogram shows


@dataclass(frozen=True)
class Frame:
    """A picture at one level of noise.

    Args:
        title: which level.
        pixels: what it looks like, (H, W, 3) of whole numbers from 0 to 255.
        values: of its numbers, of whatever shape.
        predicted: the clean picture that a model takes it for; None where there is no model.
        timestep: of the level.
    """

    title: str
    pixels: object
    values: object
    predicted: object = None
    timestep: float = 0.0


def forward_process(
    frames: Sequence[Frame], divergences: Sequence[float], what: str, file_format: str = "png"
) -> bytes:
    """A picture under more and more noise, its numbers against the normal curve, and the divergence from the prior.

    Args:
        frames: from clean to noisy.
        divergences: of the distribution of x_t from the standard normal, in nats per number, one per timestep.
        what: the numbers are of: pixels or latents.
        file_format: png or svg.
    """
    with look():
        columns = len(frames)
        side = 9.0 / columns
        figure = new_figure(side + 1.25 + 2.3)
        grid = figure.add_gridspec(3, columns, height_ratios=(side, 1.25, 2.0))
        highest = highest_density(frames)
        for column, frame in enumerate(frames):
            show_picture(figure.add_subplot(grid[0, column]), frame.pixels, frame.title)
            axes = figure.add_subplot(grid[1, column])
            draw_histogram(axes, frame.values, highest)
        below = figure.add_subplot(grid[2, :])
        positive = [(timestep, nats) for timestep, nats in enumerate(divergences) if nats > 0]
        below.plot(*zip(*positive, strict=True), color=BLUE, linewidth=1.6)
        chosen = [(frame.timestep, divergences[int(frame.timestep)]) for frame in frames]
        below.plot(*zip(*((at, nats) for at, nats in chosen if nats > 0), strict=True), "o", color=ORANGE, markersize=5)
        below.set_yscale("log")
        below.set_xlim(left=0)
        below.set_xlabel("timestep, from clean to noise")
        below.set_ylabel("nats per number")
        last = f"{divergences[-1]:.2g}" if divergences[-1] else "exactly 0"
        below.set_title(rf"divergence of $q(x_t \, | \, x_0)$ from the prior, of {what}; {last} at the last timestep")
        return content_of(figure, file_format)


def trajectory(frames: Sequence[Frame], title: str, what: str, file_format: str = "png") -> bytes:
    """A row for each step: the noisy picture, the clean one that the model takes it for, and the numbers of the first.

    Args:
        frames: from noise to picture.
        title: of the whole.
        what: the numbers are of: pixels or latents.
        file_format: png or svg.
    """
    with look():
        rows = len(frames)
        figure = new_figure(1.35 * rows + 0.75, 6.6)
        figure.suptitle(plain(textwrap.shorten(title, 80, placeholder=" …")), fontsize=11)
        grid = figure.subplots(rows, 3, squeeze=False, width_ratios=(1, 1, 1.6))
        highest = highest_density(frames)
        for axes, frame in zip(grid, frames, strict=True):
            show_picture(axes[0], frame.pixels)
            show_picture(axes[1], frame.predicted)
            draw_histogram(axes[2], frame.values, highest)
            axes[2].tick_params(labelbottom=frame is frames[-1])
            axes[0].text(-0.07, 0.5, frame.title, ha="right", va="center", fontsize=9, transform=axes[0].transAxes)
        for axes, name in zip(grid[0], ("$x_t$", r"predicted $x_0$", f"numbers of $x_t$ ({what})"), strict=True):
            axes.set_title(name)
        return content_of(figure, file_format)


def highest_density(frames: Sequence[Frame]) -> float:
    """Up to where histograms are drawn: the highest of them, between that of the normal curve and 1."""
    import numpy

    densities = (density(frame.values)[0].max() for frame in frames)
    return float(numpy.clip(1.05 * max(densities), 0.45, 1.0))


def density(values: object) -> tuple[object, object]:
    """Heights of a histogram of numbers, and the edges between its bins; what is too far out is in the outermost."""
    import numpy

    numbers = numpy.ravel(values).clip(-FARTHEST, FARTHEST)
    return numpy.histogram(numbers, HISTOGRAM_BINS, range=(-FARTHEST, FARTHEST), density=True)


def draw_histogram(axes: Axes, values: object, highest: float) -> None:
    """How numbers are distributed, and the standard normal curve, up to a height that other panels share."""
    import numpy

    axes.stairs(*density(values), fill=True, color=BLUE, alpha=0.75)
    places = numpy.linspace(-FARTHEST, FARTHEST, 141)
    axes.plot(places, numpy.exp(-(places**2) / 2) / math.sqrt(2 * math.pi), color=ORANGE, linewidth=1.4)
    axes.set_ylim(0, highest)
    axes.set_yticks([])
    axes.set_xticks([-3, 0, 3])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(labelsize=8)
