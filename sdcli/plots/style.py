"""The look that all figures share: colours, sizes, grid; a figure as the content of a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 9.0  # at 100 dots an inch as wide as a README shows it
DOTS_PER_INCH = 100
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#1f77b4", "#e07b1a", "#2b9348", "#c1292e", "#7a5195", "#9aa0a6"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)
FORMATS = {".png": "png", ".svg": "svg"}  # by the suffix of a file
LOOK = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",  # looks the same everywhere
    "svg.hashsalt": "sdcli",  # and is the same bytes each time
}


@contextmanager
def look() -> Iterator[None]:
    """Draw in the shared look."""
    from matplotlib import rc_context

    with rc_context(LOOK):
        yield


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, and few commands draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def content_of(figure: Figure, file_format: str = "png") -> bytes:
    """A figure as the content of a PNG or SVG file, the same bytes for the same figure."""
    content = BytesIO()
    unsigned = {"Date": None} if file_format == "svg" else {"Software": None}
    figure.savefig(content, format=file_format, metadata=unsigned)
    return content.getvalue()


def plain(text: str) -> str:
    """A text of the user's as it is: matplotlib reads what stands between dollars as a formula."""
    return text.replace("$", r"\$")


def show_picture(axes: Axes, pixels: object, title: str = "") -> None:
    """A picture, (H, W, 3) of numbers from 0 to 255, without axes."""
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=8)
