"""Divergences are zero for equals, positive otherwise, and agree with integration, draws and torch.distributions."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Categorical, Normal, kl_divergence

from sdcli.components.divergence import (
    discretized_gaussian_log_likelihood,
    kl_discrete,
    kl_gaussian,
    prior_kl,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_a_distribution_does_not_diverge_from_itself():
    """D(P‖P) = 0 exactly, for discrete distributions (zeros included) and for Gaussians of any variance."""
    p = torch.cat([torch.rand(6, 4).softmax(-1), torch.tensor([[0.0, 0.5, 0.5, 0.0]])])
    assert (kl_discrete(p, p) == 0).all()
    mean, log_variance = torch.randn(50), 10 * torch.randn(50)
    assert (kl_gaussian(mean, log_variance, mean, log_variance) == 0).all()


def test_divergence_is_never_negative():
    """D(P‖Q) ≥ 0 for any pair, also for nearly equal Gaussians, where a naive formula rounds below zero."""
    p, q = torch.rand(2, 1000, 5).softmax(-1)
    assert (kl_discrete(p, q) > 0).all()
    mean, log_variance, other_mean, other_log_variance = 3 * torch.randn(4, 1000)
    assert (kl_gaussian(mean, log_variance, other_mean, other_log_variance) > 0).all()
    assert (kl_gaussian(1e-4 * mean, 1e-4 * log_variance) >= 0).all()


def test_divergence_of_nearly_equal_gaussians_keeps_its_digits():
    """For a log-variance of δ against 0 the divergence is δ²/4 to leading order, in float32 as well."""
    log_variance = torch.tensor([1e-3, -1e-3, 1e-4])
    expected = log_variance.square() / 4
    torch.testing.assert_close(kl_gaussian(torch.zeros(3), log_variance), expected, rtol=2e-3, atol=0)


def test_divergence_is_not_symmetric():
    """Coding P with Q's code does not cost what coding Q with P's does."""
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    assert abs(kl_discrete(p, q) - kl_discrete(q, p)) > 0.1
    narrow, wide = (torch.zeros(1), torch.tensor([-2.0])), (torch.zeros(1), torch.tensor([2.0]))
    assert abs(kl_gaussian(*narrow, *wide) - kl_gaussian(*wide, *narrow)) > 1


def test_discrete_divergence_of_a_fair_and_a_loaded_coin():
    """By hand: ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4/3) nats; and it is what torch.distributions says."""
    divergence = kl_discrete(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
    assert math.isclose(divergence.item(), 0.5 * math.log(4 / 3), rel_tol=1e-6)
    p, q = torch.randn(2, 8, 3, 7).softmax(-1)
    torch.testing.assert_close(kl_discrete(p, q), kl_divergence(Categorical(p), Categorical(q)), rtol=1e-4, atol=1e-6)


def test_outcomes_of_probability_zero():
    """What P never does costs nothing; what Q excludes and P does costs infinitely much."""
    p, q = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
    assert math.isclose(kl_discrete(p, q).item(), math.log(2), rel_tol=1e-6)
    assert kl_discrete(q, p) == math.inf


@pytest.mark.parametrize(
    ("p", "message"),
    [([0.5, 0.6], "p must"), ([1.5, -0.5], "p must"), ([0.5, 0.25, 0.25], "one shape")],
)
def test_what_is_no_distribution_is_refused(p, message):
    """Rows must be non-negative and sum to 1, and both sides must have the same outcomes."""
    with pytest.raises(ValueError, match=message):
        kl_discrete(torch.tensor(p), torch.tensor([0.5, 0.5]))


def test_gaussian_divergence_agrees_with_torch_distributions():
    """The closed form, element by element, with both sides given and against the standard normal."""
    mean, log_variance, other_mean, other_log_variance = torch.randn(4, 3, 4, 5, 5, dtype=torch.float64)
    gaussian = Normal(mean, (0.5 * log_variance).exp())
    other = Normal(other_mean, (0.5 * other_log_variance).exp())
    torch.testing.assert_close(
        kl_gaussian(mean, log_variance, other_mean, other_log_variance), kl_divergence(gaussian, other)
    )
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl_gaussian(mean, log_variance), kl_divergence(gaussian, standard))


@pytest.mark.parametrize(
    ("mean", "log_variance", "other_mean", "other_log_variance"), [(0.3, -1.0, -0.5, 0.7), (2, 1, 0, 0)]
)
def test_gaussian_divergence_is_the_integral_that_defines_it(mean, log_variance, other_mean, other_log_variance):
    """∫ p ln(p/q) computed by quadrature, and its mean over draws from P, give the closed form."""
    p = stats.norm(mean, math.exp(0.5 * log_variance))
    q = stats.norm(other_mean, math.exp(0.5 * other_log_variance))
    arguments = [torch.tensor(value, dtype=torch.float64) for value in (mean, log_variance)]
    divergence = kl_gaussian(*arguments, other_mean, other_log_variance).item()
    low, high = p.interval(1 - 1e-14)
    integral, _ = integrate.quad(lambda value: p.pdf(value) * (p.logpdf(value) - q.logpdf(value)), low, high)
    assert math.isclose(divergence, integral, rel_tol=1e-6)
    draws = p.rvs(200_000, random_state=0)
    assert math.isclose(divergence, (p.logpdf(draws) - q.logpdf(draws)).mean(), rel_tol=0.03)


def test_prior_term_is_that_of_the_theory():
    """½ (‖μ‖² + d σ² − d − d ln σ²) with μ = √ᾱ x_0 and σ² = 1 − ᾱ, per image; Stable Diffusion's ᾱ_T is 0.0047."""
    latents, alpha_bar = torch.randn(3, 4, 8, 8), 0.0047
    numbers, variance = 4 * 8 * 8, 1 - alpha_bar
    length_squared = alpha_bar * latents.square().flatten(1).sum(1)
    expected = 0.5 * (length_squared + numbers * variance - numbers - numbers * math.log(variance))
    torch.testing.assert_close(prior_kl(latents, alpha_bar), expected, rtol=1e-3, atol=1e-5)


def test_zero_terminal_snr_leaves_no_prior_term():
    """With ᾱ_T = 0 the last step is the prior itself; any signal left makes the term positive and growing."""
    latents = torch.randn(2, 4, 8, 8)
    terms = [prior_kl(latents, alpha_bar) for alpha_bar in (0.0, 1e-4, 1e-2, 0.5)]
    assert (terms[0] == 0).all()
    assert all((less < more).all() for less, more in zip(terms, terms[1:], strict=False))
    for alpha_bar in (-0.1, 1.0):
        with pytest.raises(ValueError, match="alpha_bar"):
            prior_kl(latents, alpha_bar)


LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("mean", [-1.4, -0.2, 0.0, 1.0])
@pytest.mark.parametrize("log_variance", [-9.2, -4.0, 0.0, 3.0])
def test_probabilities_of_the_256_levels_sum_to_1(mean, log_variance):
    """The bins cover the line, also when the Gaussian is narrower than a bin or wider than the range."""
    arguments = torch.tensor(mean, dtype=torch.float64), torch.tensor(log_variance, dtype=torch.float64)
    log_likelihood = discretized_gaussian_log_likelihood(LEVELS, *arguments)
    assert (log_likelihood <= 0).all()
    assert math.isclose(log_likelihood.exp().sum().item(), 1, rel_tol=1e-9)


def test_a_level_has_the_probability_of_its_bin():
    """Each inner level gets Φ(upper edge) − Φ(lower edge); black and white get the whole tail."""
    likelihood = discretized_gaussian_log_likelihood(LEVELS.float(), torch.tensor(0.1), torch.tensor(-2.0)).exp()
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([math.inf])])
    expected = torch.from_numpy(stats.norm(0.1, math.exp(-1)).cdf(edges)).diff().float()
    torch.testing.assert_close(likelihood, expected, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("side", [-1, 1])
def test_likelihood_far_from_the_mean_is_finite_and_has_a_gradient(side):
    """A wrong prediction at the smallest variance costs thousands of nats, not infinity, and says which way to go."""
    mean = torch.tensor(0.9 * side, requires_grad=True)
    cost = -discretized_gaussian_log_likelihood(-side * LEVELS.float()[56:], mean, torch.tensor(-9.2)).sum()
    cost.backward()
    assert cost.isfinite() and mean.grad.isfinite() and mean.grad * side > 0
