"""From a model's output to the clean sample it stands for, kept in range. B batch, C channels, H W rows and columns."""

from typing import Any

import torch
from torch import Tensor

from sdcli.components.samplers.moment import Sampler
from sdcli.components.schedule import to_original_sample


def pred_original_sample(
    model_output: Tensor, sample: Tensor, alpha_bar: float, sampler: Sampler, config: Any
) -> Tensor:
    """The clean sample that the model has in mind, clipped where both sampler and configuration say so.

    Args:
        model_output: (B, C, H, W).
        sample: as the sampler has it, of unit variance or variance exploding, (B, C, H, W).
        alpha_bar: signal variance left in it, relative to its size.
        sampler: the table's entry.
        config: the scheduler's configuration.
    """
    shown = sample * alpha_bar**0.5 if sampler.exploding else sample
    original = to_original_sample(model_output, shown, alpha_bar, config.prediction_type)
    if sampler.thresholds and config.thresholding:
        return thresholded(original, config.dynamic_thresholding_ratio, config.sample_max_value)
    if sampler.clips and config.clip_sample:
        return original.clamp(-config.clip_sample_range, config.clip_sample_range)
    return original


def thresholded(sample: Tensor, ratio: float, largest: float) -> Tensor:
    """Bring each image into [-1, 1] by its own quantile of absolute values, if that is above 1.

    Args:
        sample: (B, C, H, W).
        ratio: the quantile, in (0, 1).
        largest: upper limit of that quantile, at least 1.

    Reference: Saharia et al. 2022 (arXiv:2205.11487), section 2.3 (dynamic thresholding).
    """
    limits = torch.quantile(sample.abs().flatten(1), ratio, dim=1).clamp(1, largest)
    limits = limits.view(-1, *[1] * (sample.dim() - 1))
    return sample.clamp(-limits, limits) / limits


def without_variance(model_output: Tensor, sample: Tensor, variance_type: str) -> tuple[Tensor, Tensor | None]:
    """The prediction, and the variance channels if the model has them.

    Raises:
        ValueError: the shapes do not fit.
    """
    if model_output.shape == sample.shape:
        return model_output, None
    batch, channels, *rest = sample.shape
    if model_output.shape == (batch, 2 * channels, *rest) and variance_type.startswith("learned"):
        return model_output[:, :channels], model_output[:, channels:]
    raise ValueError(
        f"model_output must have the shape of sample {tuple(sample.shape)}, or twice its channels with a learned "
        f"variance_type; got {tuple(model_output.shape)} and variance_type {variance_type!r}"
    )
