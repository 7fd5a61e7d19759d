"""Noise schedules: what each step adds, what is left, and how signal and noise stand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcli.components.schedule import alphas_cumprod, signal_to_noise_ratio
from sdcli.plots.style import COLOURS, GREY, content_of, look, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

HIGHEST_SNR = 5.0  # that the linear panel shows


@dataclass(frozen=True)
class Curve:
    """One schedule to draw.

    Args:
        name: in the legend.
        betas: noise variance that each step adds, (T,).
        marked: timesteps that a sampler visits; () for none.
    """

    name: str
    betas: Tensor
    marked: Sequence[float] = ()


def noise_schedules(curves: Sequence[Curve], marks: str = "", file_format: str = "png") -> bytes:
    """Four panels over the timestep: beta, alpha-bar, the signal-to-noise ratio, and its logarithm.

    Args:
        curves: the schedules.
        marks: what the marked timesteps are, for the legend.
        file_format: png or svg.
    """
    with look():
        figure = new_figure(6.2)
        (added, left), (ratio, log_ratio) = figure.subplots(2, 2)
        for number, curve in enumerate(curves):
            colour = COLOURS[number % len(COLOURS)]
            style = {"color": colour, "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3], "linewidth": 1.6}
            if any(each.betas.equal(curve.betas) for each in curves[number + 1 :]):
                style["linewidth"] = 4.0  # seen below the one that covers it
            signal = alphas_cumprod(curve.betas.double())
            snr = signal_to_noise_ratio(signal)
            for axes, values in ((added, curve.betas), (left, signal), (ratio, snr), (log_ratio, snr.log())):
                draw_curve(axes, values, curve, style, with_marks=axes in (left, log_ratio))
        added.set_title(r"noise variance that a step adds, $\beta_t$")
        left.set_title(r"signal variance left, $\bar\alpha_t$")
        ratio.set_title(r"signal-to-noise ratio, $\bar\alpha_t \, / \, (1 - \bar\alpha_t)$")
        log_ratio.set_title("its natural logarithm")
        ratio.set_ylim(0, HIGHEST_SNR)
        log_ratio.axhline(0, color=GREY, linewidth=0.8)
        added.set_yscale("log")
        left.set_ylim(0, 1.02)
        for axes in figure.axes:
            axes.set_xlim(left=0)
        for axes in (ratio, log_ratio):
            axes.set_xlabel("timestep, from clean to noise")
        if marks:
            left.plot([], [], "o", color=GREY, markersize=4, label=marks)
        left.legend()
        return content_of(figure, file_format)


def draw_curve(axes: Axes, values: Tensor, curve: Curve, style: dict[str, object], with_marks: bool) -> None:
    """One quantity over the timestep, with marks; where it is infinite there is nothing to draw."""
    axes.plot(
        range(len(values)), values.masked_fill(~values.isfinite(), float("nan")), label=plain(curve.name), **style
    )
    places = [min(round(float(timestep)), len(values) - 1) for timestep in curve.marked]
    seen = [(place, float(values[place])) for place in places if values[place].isfinite()]
    if seen and with_marks:
        axes.plot(*zip(*seen, strict=True), "o", color=style["color"], markersize=4)
