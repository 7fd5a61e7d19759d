"""The grid of CLIP: every caption compared with every picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdcli.plots.style import RED, content_of, look, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL_IN = 1.05
LABEL_IN = 2.4
WRAPPED_AT = 26  # letters of a caption's line
LINES = 3


def similarity_grid(
    pictures: Sequence[object],
    captions: Sequence[str],
    similarities: Sequence[Sequence[float]],
    file_format: str = "png",
) -> bytes:
    """A cell with its number for each caption, row, and picture, column.

    Where there are as many of both, the pairs on the diagonal are framed.

    Args:
        pictures: (H, W, 3) of whole numbers from 0 to 255, I of them.
        captions: N of them.
        similarities: cosines, N rows of I.
        file_format: png or svg.
    """
    with look():
        height = CELL_IN * (len(captions) + 1) + 0.2
        figure = new_figure(height, CELL_IN * len(pictures) + LABEL_IN)
        figure.set_layout_engine("none")
        width = figure.get_figwidth()
        axes = figure.add_axes(
            (LABEL_IN / width, 0.1 / height, 1 - LABEL_IN / width - 0.1 / width, CELL_IN * len(captions) / height)
        )
        paired = len(pictures) == len(captions)
        legend = "cosine similarity\nbold: best of a caption" + ("\nframed: pairs" if paired else "")
        middle = ((LABEL_IN - 0.06) / width, 1 - CELL_IN / 2 / height)
        figure.text(*middle, legend, ha="right", va="center", fontsize=8.5)
        draw_cells(axes, similarities, paired)
        axes.set_yticks(range(len(captions)), [wrapped(caption) for caption in captions])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for column, picture in enumerate(pictures):
            left = (LABEL_IN + (column + 0.06) * (width - LABEL_IN - 0.1) / len(pictures)) / width
            top = figure.add_axes((left, 1 - 0.97 * CELL_IN / height, 0.88 * CELL_IN / width, 0.88 * CELL_IN / height))
            top.imshow(picture)
            top.set_axis_off()
        return content_of(figure, file_format)


def draw_cells(axes: Axes, similarities: Sequence[Sequence[float]], paired: bool) -> None:
    """Cells coloured by their numbers, the largest of each row in bold, and frames around pairs."""
    from matplotlib.patches import Rectangle

    values = [value for row in similarities for value in row]
    least, most = min(values), max(values)
    shown = axes.imshow(similarities, cmap="Blues", vmin=least - 0.1 * (most - least), vmax=most, aspect="auto")
    for row, of_row in enumerate(similarities):
        for column, value in enumerate(of_row):
            colour = "white" if shown.norm(value) > 0.6 else "black"
            weight = "bold" if value == max(of_row) else "normal"
            text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.text(column, row, text, ha="center", va="center", color=colour, fontweight=weight)
    if paired:
        for place in range(len(similarities)):
            corner = (place - 0.47, place - 0.47)
            axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=RED, linewidth=2))


def wrapped(caption: str) -> str:
    """A caption in a few lines, with its end left out where it is longer."""
    return plain(textwrap.fill(caption, WRAPPED_AT, max_lines=LINES, placeholder=" …"))
