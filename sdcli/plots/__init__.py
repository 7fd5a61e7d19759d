"""Curves and pictures of what a run or a model does, as PNG or SVG. The only place that knows matplotlib."""

from sdcli.plots.training import smoothed, training_curves

__all__ = ["smoothed", "training_curves"]
