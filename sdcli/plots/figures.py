"""Figures of `sdcli evaluate`: the terms of the likelihood bound, losses by timestep, the worst reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdcli.plots.style import BLUE, GREY, ORANGE, content_of, look, new_figure, plain, show_picture


def bound_terms(found: dict[str, Any], file_format: str = "png") -> bytes:
    """L_t over t by its logarithm, and what the terms sum up to on the way from clean to noise.

    Args:
        found: figures of a likelihood, as `sdcli evaluate likelihood --json` prints them.
        file_format: png or svg.
    """
    with look():
        figure = new_figure(3.8)
        axes = figure.subplots()
        (_, first), *others = [(each["timestep"], each["nats"]) for each in found["by_timestep"]]
        places, nats = zip(*others, strict=True) if others else ((), ())
        dense = len(places) > 100
        style = {"linewidth": 1.2} if dense else {"marker": "o", "markersize": 3.5, "linewidth": 1.0}
        axes.plot(places, nats, color=BLUE, label="$L_t$, a step's divergence", **style)
        if first > 0:
            axes.plot([0], [first], "s", color=ORANGE, markersize=6, clip_on=False, label=f"$L_0$ = {first:,.0f} nats")
        axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.set_xlabel("timestep, from clean to noise")
        axes.set_ylabel("nats per picture")
        prior, bits = found["nats"]["prior"], found["bits_per_dim"]
        axes.set_title(
            f"terms of the likelihood bound, mean of {found['pictures']} pictures: {signed(bits, '.3f')} bits/dim "
            f"of {'x'.join(map(str, found['shape']))} {found['space']}"
        )
        outside = "" if first > 0 else f"$L_0$ = {signed(first, ',.0f')} nats (a density), "
        axes.plot([], [], " ", label=f"{outside}$L_T$ = {prior:.3g} nats")
        axes.legend()
        return content_of(figure, file_format)


def signed(value: float, form: str) -> str:
    """A number with a minus sign as long as the plus sign."""
    return f"{value:{form}}".replace("-", "\N{MINUS SIGN}")


def losses_by_timestep(found: dict[str, Any], file_format: str = "png") -> bytes:
    """The mean squared errors in each range of timesteps, with their standard errors.

    Args:
        found: figures of a denoiser, as `sdcli evaluate denoiser --json` prints them.
        file_format: png or svg.
    """
    with look():
        figure = new_figure(3.6)
        left, right = figure.subplots(1, 2)
        named = {"epsilon": "noise", "v_prediction": "velocity", "sample": "clean picture"}[found["prediction_type"]]
        for axes, key, title, colour in (
            (left, "loss", f"error of the {named}, which it was trained on", BLUE),
            (right, "noise_loss", "error of the noise that it means", ORANGE),
        ):
            bins = found["bins"]
            middles = [(each["first"] + each["last"] + 1) / 2 for each in bins]
            width = 0.86 * (bins[0]["last"] + 1 - bins[0]["first"])
            errors = [each[f"{key}_standard_error"] or 0 for each in bins]
            axes.bar(middles, [each[key] for each in bins], width, color=colour, yerr=errors, ecolor=GREY, capsize=3)
            axes.set_title(title)
            axes.set_xlabel("timestep, from clean to noise")
            axes.grid(axis="x", visible=False)
        left.set_ylabel(f"mean squared error, {found['pictures']} pictures")
        return content_of(figure, file_format)


def worst_sheet(columns: Sequence[tuple[str, float, object, object]], file_format: str = "png") -> bytes:
    """Pictures above, their reconstructions below, the worst on the left, and under them where they differ.

    Args:
        columns: name, PSNR in dB, picture and reconstruction, (H, W, 3) of whole numbers from 0 to 255.
        file_format: png or svg.
    """
    import numpy

    with look():
        figure = new_figure(9.0 / max(len(columns), 4) * 3 + 0.6)
        grid = figure.subplots(3, max(len(columns), 4), squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for place, (file, quality, picture, rebuilt) in enumerate(columns):
            name = plain(file if len(file) < 14 else f"{file[:12]}…")
            difference = numpy.abs(numpy.int16(picture) - numpy.int16(rebuilt))
            show_picture(grid[0, place], picture, name)
            show_picture(grid[1, place], rebuilt, f"{quality:.1f} dB")
            show_picture(grid[2, place], numpy.uint8(255 - difference.clip(0, 255)))
        for axes, name in zip(grid[:, 0], ("picture", "rebuilt", "difference"), strict=True):
            axes.text(-0.08, 0.5, name, rotation=90, ha="right", va="center", transform=axes.transAxes)
        return content_of(figure, file_format)
