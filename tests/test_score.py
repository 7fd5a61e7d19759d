"""The score identity on data whose density is known at every level of noise: a mixture of Gaussians."""

import pytest
import torch
from torch import Tensor

from sdcli.components.schedule import add_noise, score

MEANS = torch.tensor([[-2.0, 0.5, 0.0], [1.0, 1.5, -1.0], [0.3, -2.0, 2.0]], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.5, 0.2, 1.2], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def log_density(noisy: Tensor, alpha_bar: float) -> Tensor:
    """ln p(x_t), (B,): each Gaussian keeps its share, shrinks, and gets the noise's variance on top of its own."""
    variances = alpha_bar * DEVIATIONS**2 + 1 - alpha_bar
    squared = (noisy[:, None] - alpha_bar**0.5 * MEANS).square().sum(-1)  # (B, K)
    logs = -0.5 * squared / variances - 1.5 * (2 * torch.pi * variances).log()
    return (SHARES.log() + logs).logsumexp(1)


def best_noise(noisy: Tensor, alpha_bar: float) -> Tensor:
    """E[noise given x_t], (B, 3): what a network with the least squared error predicts; by Bayes' rule, no gradient."""
    variances = alpha_bar * DEVIATIONS**2 + 1 - alpha_bar
    distances = noisy[:, None] - alpha_bar**0.5 * MEANS  # (B, K, 3)
    logs = SHARES.log() - 0.5 * distances.square().sum(-1) / variances - 1.5 * variances.log()
    of_each = (1 - alpha_bar) ** 0.5 / variances[:, None] * distances  # E[noise given x_t and the Gaussian]
    return (logs.softmax(1)[..., None] * of_each).sum(1)


def draw(count: int) -> tuple[Tensor, Tensor]:
    """Data and noise, (count, 3) each."""
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    own, noise = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    return MEANS[which] + DEVIATIONS[which, None] * own, noise


@pytest.mark.parametrize("alpha_bar", [0.9999, 0.9, 0.5, 0.05, 0.0047])
def test_the_score_of_the_best_prediction_is_the_gradient_of_the_log_density(alpha_bar):
    """−E[noise given x_t] / sqrt(1 − alpha-bar), against autograd, from almost clean to almost noise."""
    noisy = (3 * torch.randn(200, 3, dtype=torch.float64)).requires_grad_()
    log_density(noisy, alpha_bar).sum().backward()
    torch.testing.assert_close(score(best_noise(noisy.detach(), alpha_bar), alpha_bar), noisy.grad)


def test_that_prediction_is_the_one_that_training_looks_for():
    """No other one has a smaller E‖noise − prediction‖²: not a larger or smaller one, nor one that is shifted."""
    clean, noise = draw(20_000)
    noisy = add_noise(clean, noise, torch.tensor(0), torch.tensor([0.5], dtype=torch.float64))
    best = best_noise(noisy, 0.5)
    loss = (noise - best).square().mean()
    for other in (1.1 * best, 0.9 * best, best + 0.1, noisy * 0.5**0.5, 0 * best):
        assert (noise - other).square().mean() > loss + 1e-3


def distance_to_data(samples: Tensor) -> float:
    """How far samples (B, 3) are from the nearest of the Gaussians' means, the median."""
    return float((samples[:, None] - MEANS).norm(dim=-1).amin(1).median())


def test_little_steps_along_the_score_make_noise_likelier():
    """The magic function of the seeds: its gradient, many times, a little at a time, leads to where data are."""
    noisy = torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, far = log_density(noisy, 0.99), distance_to_data(noisy)
    for _ in range(200):
        noisy = noisy + 0.01 * score(best_noise(noisy, 0.99), 0.99)
    assert (log_density(noisy, 0.99) > before).float().mean() > 0.99
    assert distance_to_data(noisy) < far / 3
