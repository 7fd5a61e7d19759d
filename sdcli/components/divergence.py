"""Kullback-Leibler divergences and the terms of the evidence lower bound that need no network. All in nats.

D(P‖Q) is the expected number of nats lost by describing draws from P with a code made for Q: zero when the two are the
same, positive otherwise, and not symmetric. B batch, `...` any shape.

Reference: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
"""

import torch
from torch import Tensor

PIXEL_HALF_WIDTH = 1 / 255  # half the distance between two of the 256 levels in [-1, 1]


def kl_discrete(p: Tensor, q: Tensor) -> Tensor:
    """Divergence D(P‖Q) = Σ p ln(p/q) of two distributions over K outcomes.

    Args:
        p: probabilities, (..., K), each row summing to 1.
        q: the same, of the distribution compared with, (..., K).

    Returns:
        Nats, (...). An outcome of probability 0 under P adds nothing (x ln x tends to 0); one that P allows and Q
        excludes makes the divergence infinite.

    Raises:
        ValueError: the shapes differ, or a row is not a distribution.
    """
    if p.shape != q.shape:
        raise ValueError(f"p and q must have one shape, got {tuple(p.shape)} and {tuple(q.shape)}")
    for name, probabilities in (("p", p), ("q", q)):
        total = probabilities.sum(-1)
        if (probabilities < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-3):
            raise ValueError(f"{name} must be non-negative and sum to 1 along its last dimension")
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1)


def kl_gaussian(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor | float = 0.0, other_log_variance: Tensor | float = 0.0
) -> Tensor:
    """Divergence of N(mean, variance) from N(other_mean, other_variance), element by element.

    ½ (v/v' − 1 − ln(v/v') + (m − m')²/v'), to be summed over the elements of an image for the divergence of the whole.

    Args:
        mean: (...).
        log_variance: natural logarithm of the variance, broadcastable with `mean`.
        other_mean: of the distribution compared with; by default that is the standard normal.
        other_log_variance: of the distribution compared with.

    Returns:
        Nats, never negative, in the broadcast shape of the arguments.

    Reference: Kingma and Welling 2013 (arXiv:1312.6114), appendix B, for the standard normal.
    """
    other_log_variance = torch.as_tensor(other_log_variance, dtype=log_variance.dtype)
    log_ratio = log_variance - other_log_variance
    # expm1 and not exp − 1: near equal variances the difference of two numbers close to 1 would lose all its digits.
    return 0.5 * (log_ratio.expm1() - log_ratio + (mean - other_mean).square() * (-other_log_variance).exp())


def prior_kl(original_sample: Tensor, alpha_bar: float) -> Tensor:
    """L_T of the evidence lower bound: how far fully noised images are from the prior N(0, I).

    For q(x_T given x_0) = N(√ᾱ_T x_0, (1 − ᾱ_T) I) over d elements this is ½ (ᾱ_T ‖x_0‖² − d ᾱ_T − d ln(1 − ᾱ_T)).

    Args:
        original_sample: clean latents or pixel values, (B, ...).
        alpha_bar: signal variance left at the last timestep, in [0, 1); 0 (zero terminal SNR) leaves no divergence.

    Returns:
        Nats per image, (B,).

    Raises:
        ValueError: `alpha_bar` lies outside [0, 1).

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 5.
    """
    if not 0 <= alpha_bar < 1:
        raise ValueError(f"alpha_bar must lie in [0, 1), got {alpha_bar}")
    log_variance = torch.tensor(-alpha_bar, dtype=original_sample.dtype).log1p()
    return kl_gaussian(alpha_bar**0.5 * original_sample, log_variance).flatten(1).sum(1)


def discretized_gaussian_log_likelihood(pixel_values: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-probability that a Gaussian falls into the bin of each 8-bit pixel: −L_0 of the evidence lower bound.

    The bins are 2/255 wide; those of black and white reach to infinity, so that the 256 probabilities sum to 1.

    Args:
        pixel_values: images of 256 levels scaled to [-1, 1], (...).
        mean: predicted mean, (...).
        log_variance: natural logarithm of the predicted variance, broadcastable with `mean`.

    Returns:
        Nats per element, (...), at most 0.

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 13.
    """
    precision = (-0.5 * log_variance).exp()
    distance = pixel_values - mean
    lower, upper = (distance - PIXEL_HALF_WIDTH) * precision, (distance + PIXEL_HALF_WIDTH) * precision
    # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): taken in the left tail, where log Φ keeps its digits.
    right = distance > 0
    near = torch.special.log_ndtr(torch.where(right, -lower, upper))
    far = torch.special.log_ndtr(torch.where(right, -upper, lower))
    inside = near + (-(far - near).expm1()).log()
    edge = 0.5 * PIXEL_HALF_WIDTH  # levels are compared by halves of a bin, for the sake of rounding
    inside = torch.where(pixel_values < edge - 1, torch.special.log_ndtr(upper), inside)
    return torch.where(pixel_values > 1 - edge, torch.special.log_ndtr(-lower), inside)
