"""The figures of both experiments, in the look of sdcli's own: errors over t, measures with a dot a seed, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from PIL import Image

from sdcli.plots.style import COLOURS, GREY, content_of, look, new_figure

TENTHS = 10
SHOWN = 2  # samples of each digit on a sheet
WIDE = 8  # ratio of the largest and the smallest value from which on an axis is logarithmic
Measure = tuple[str, str, float | None]  # title, path in a run's figures, what real pictures have


def measured(run: Mapping, path: str) -> float:
    """A figure by its path, such as `still.frechet`."""
    for name in path.split("."):
        run = run[name]
    return run


def comparison(runs: Sequence[Mapping], measures: Sequence[Measure], relative_to: str) -> bytes:
    """How a run's error lies over t, and a row of measures, with a dot for each seed and a line at their mean.

    Args:
        runs: figures of all runs.
        measures: what to show below.
        relative_to: variant that the errors of all are divided by, on the right.
    """
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    of = {name: [run for run in runs if run["variant"] == name] for name in variants}
    with look():
        figure = new_figure(6.4)
        above, below = figure.subfigures(2, 1)
        absolute, relative = above.subplots(1, 2)
        base = numpy.mean([run["loss_by_timestep"] for run in of[relative_to]], axis=0)
        middles = (numpy.arange(TENTHS) + 0.5) * 100
        for name, colour in zip(variants, COLOURS, strict=False):
            for run in of[name]:
                errors = numpy.array(run["loss_by_timestep"])
                absolute.plot(middles, errors, color=colour, alpha=0.35, linewidth=0.8)
                relative.plot(middles, errors / base, color=colour, alpha=0.35, linewidth=0.8)
            mean = numpy.mean([run["loss_by_timestep"] for run in of[name]], axis=0)
            absolute.plot(middles, mean, color=colour, linewidth=1.8, label=of[name][0]["label"])
            relative.plot(middles, mean / base, color=colour, linewidth=1.8)
        absolute.set_title("squared error of the velocity, held-out pictures")
        absolute.legend()
        relative.set_title(f"the same, divided by that of {of[relative_to][0]['label']}")
        for axes in (absolute, relative):
            low, high = axes.dataLim.intervaly
            if high > WIDE * low:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("timestep, from clean to noise")
        for axes, measure in zip(numpy.atleast_1d(below.subplots(1, len(measures))), measures, strict=True):
            draw_measure(axes, of, measure)
        return content_of(figure)


def draw_measure(axes, of: Mapping[str, Sequence[Mapping]], measure: Measure) -> None:
    """One figure of every run."""
    title, path, real = measure
    for place, (runs, colour) in enumerate(zip(of.values(), COLOURS, strict=False)):
        values = [measured(run, path) for run in runs]
        axes.plot([place] * len(values), values, "o", color=colour, markersize=5, alpha=0.8)
        axes.hlines(numpy.mean(values), place - 0.25, place + 0.25, color=colour, linewidth=2)
    names = [runs[0]["label"] for runs in of.values()]
    if real is not None:
        axes.plot([len(of)], [real], "D", color=GREY, markersize=5)
        names.append("real pictures")
    axes.set_title(title)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", visible=False)


def samples_sheet(rows: Sequence[tuple[str, Sequence[Path]]]) -> bytes:
    """Pictures of all digits in order, a row of them for each variant; those of a column began as the same noise.

    Args:
        rows: label, and files of which as many belong to each digit.
    """
    with look():
        figure = new_figure(0.48 * len(rows) + 0.1)
        for axes, (label, files) in zip(numpy.atleast_1d(figure.subplots(len(rows), 1)), rows, strict=True):
            each = len(files) // 10
            chosen = [files[digit * each + place] for digit in range(10) for place in range(min(SHOWN, each))]
            pictures = [numpy.pad(numpy.asarray(Image.open(file)), 1) for file in chosen]
            # Ink is white in the files, and black here, as on paper.
            axes.imshow(numpy.concatenate(pictures, axis=1), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            for side in ("left", "bottom"):
                axes.spines[side].set_visible(False)
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        return content_of(figure)
