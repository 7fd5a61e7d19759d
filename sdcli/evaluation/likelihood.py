"""The evidence lower bound of pictures under a diffusion model, term by term. Tensors only; everything is in nats.

−ln p(x_0) ≤ L_T + Σ L_t + L_0. Timesteps are indices here, 0 the cleanest: timestep t ≥ 1 has the L_t of the step that
leads from it to t − 1, timestep 0 has L_0, and L_T is about the last one, T − 1.

B pictures, D numbers of each, K timesteps that are looked at for each.

Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 5; Nichol & Dhariwal 2021 (arXiv:2102.09672), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdcli.components.divergence import discretized_gaussian_log_likelihood, kl_gaussian, prior_kl
from sdcli.components.schedule import posterior_mean, posterior_variances

Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Noisy samples (B, ...) and timesteps (B,) to the clean ones that they are taken for, and variance channels if any."""


TWICE = 32  # timesteps from the clean end that are looked at twice where all are


def reverse_variances(alphas_cumprod: Tensor, variance_type: str, discrete: bool) -> Tensor:
    """Fixed variance of each reverse step, (T,).

    The small one, beta-tilde, is 0 at timestep 0, where no picture would have a likelihood. There that of timestep 1 is
    taken, as in Ho et al.'s code; it does so for the large one too, whose decoder of 8-bit pixels becomes better by it.
    The density of latents keeps the large one, which is exact for data of unit variance.

    Args:
        alphas_cumprod: signal variance left after each timestep, (T,).
        variance_type: "fixed_large" (beta) or another (beta-tilde).
        discrete: whether the last step gives 8-bit pixels.

    Reference: Ho et al. 2020 (arXiv:2006.11239), section 3.2.
    """
    before = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    large, small = posterior_variances(alphas_cumprod, before)
    small = torch.cat([small[1:2] if len(small) > 1 else large[:1], small[1:]])
    if not variance_type.startswith("fixed_large"):
        return small
    return torch.cat([small[:1], large[1:]]) if discrete else large


@dataclass(frozen=True, kw_only=True)
class ReverseProcess:
    """A model as a chain of Gaussian steps from noise to data.

    Args:
        denoiser: the network.
        alphas_cumprod: signal variance left after each timestep, (T,) float64.
        variance_type: as in a DDPM scheduler's configuration.
        discrete: whether data are 8-bit pixels scaled to [-1, 1], whose last step is a discretised Gaussian; else it
            is a density.
    """

    denoiser: Denoiser
    alphas_cumprod: Tensor
    variance_type: str = "fixed_small"
    discrete: bool = False

    def term(self, original_samples: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """L_t, or L_0 where the timesteps are 0, from one draw of x_t for each picture.

        Args:
            original_samples: x_0, (B, ...) float64.
            noise: standard normal, the same shape.
            timestep: (B,) int64; either all are 0, or none.

        Returns:
            Nats, (B,).
        """
        table = torch.cat([self.alphas_cumprod, torch.ones(1, dtype=torch.float64)])  # index −1 is clean
        shape = (-1, *[1] * (original_samples.dim() - 1))
        alpha_bar, alpha_bar_next = table[timestep].view(shape), table[timestep - 1].view(shape)
        noisy = alpha_bar.sqrt() * original_samples + (1 - alpha_bar).sqrt() * noise
        predicted, variance_channels = self.denoiser(noisy, timestep)
        mean = posterior_mean(noisy, predicted, alpha_bar, alpha_bar_next)
        log_variance = self._log_variance(timestep, variance_channels, shape)
        if timestep[0] == 0:
            return self._decoder_term(original_samples, mean, log_variance).flatten(1).sum(1)
        true_mean = posterior_mean(noisy, original_samples, alpha_bar, alpha_bar_next)
        _, true_variance = posterior_variances(alpha_bar, alpha_bar_next)
        return kl_gaussian(true_mean, true_variance.log(), mean, log_variance).flatten(1).sum(1)

    def _decoder_term(self, original_samples: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """−ln p(x_0 given x_1), element by element."""
        if self.discrete:
            return -discretized_gaussian_log_likelihood(original_samples, mean, log_variance)
        squared = (original_samples - mean).square() * (-log_variance).exp()
        return 0.5 * (squared + log_variance + torch.tensor(2 * torch.pi).double().log())

    def _log_variance(self, timestep: Tensor, variance_channels: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Of each reverse step, (B, 1, ...), or (B, ...) of a model with variance channels."""
        if variance_channels is not None and self.variance_type == "learned":
            return variance_channels.log()
        small = reverse_variances(self.alphas_cumprod, "fixed_small", self.discrete).log()[timestep].view(shape)
        if variance_channels is not None and self.variance_type == "learned_range":
            # Nichol & Dhariwal 2021, eq. 15, where −1 is the small end and 1 the large one.
            large = reverse_variances(self.alphas_cumprod, "fixed_large", False).log()[timestep].view(shape)
            share = (variance_channels + 1) / 2
            return share * large + (1 - share) * small
        return reverse_variances(self.alphas_cumprod, self.variance_type, self.discrete).log()[timestep].view(shape)


def stratum_edges(num_train_timesteps: int, strata: int) -> list[int]:
    """Where the strata of timesteps 1 to T − 1 begin, and the end of the last one.

    They are narrow at the clean end, where the terms are large and change quickly, and grow with the timestep.
    """
    edges = [1]
    for number in range(1, strata + 1):
        place = 1 + round((num_train_timesteps - 1) * (number / strata) ** 2)
        edges.append(max(place, edges[-1] + 1))
    return edges


def draw_levels(num_train_timesteps: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Timesteps to look at, and how much the term of each counts, so that the weighted sum estimates Σ L_t + L_0.

    Timestep 0 comes first, twice. With `count` = T every other one follows: twice too among the first, whose terms
    differ much from one to the next, and once among the rest. With fewer, two independent draws from each of count / 2
    strata. So two neighbours always estimate the same thing, or nearly.

    Args:
        num_train_timesteps: T.
        count: even and below T, or T.
        generator: of the draws.

    Returns:
        Timesteps (K,) int64 and weights (K,) float64.
    """
    last = num_train_timesteps
    if count == last:
        first = torch.arange(min(TWICE, last)).repeat_interleave(2)
        rest = torch.arange(min(TWICE, last), last)
        weights = torch.cat([torch.full((len(first),), 0.5), torch.ones(len(rest))])
        return torch.cat([first, rest]), weights.double()
    edges = torch.tensor(stratum_edges(last, count // 2))
    begins, sizes = edges[:-1].repeat_interleave(2), edges.diff().repeat_interleave(2)
    shares = torch.rand(len(sizes), generator=generator)
    timesteps = begins + (shares * sizes).long().minimum(sizes - 1)
    zeros = torch.zeros(2, dtype=torch.int64)
    return torch.cat([zeros, timesteps]), torch.cat([torch.full((2,), 0.5), sizes / 2]).double()


@dataclass(frozen=True)
class Bound:
    """Estimated terms of B pictures.

    Args:
        prior: L_T, exact, (B,) nats.
        timesteps: that were looked at, (B, K).
        weights: of their terms, (B, K).
        terms: L_0 and L_t, (B, K) nats.
        exhaustive: whether every timestep is among them, not only draws from strata.
    """

    prior: Tensor
    timesteps: Tensor
    weights: Tensor
    terms: Tensor
    exhaustive: bool = False

    @property
    def decoder(self) -> Tensor:
        """L_0 of each picture, (B,)."""
        return self.terms[:, :2].mean(1)

    @property
    def denoising(self) -> Tensor:
        """Σ L_t of each picture, t from 1 to T − 1, (B,)."""
        return (self.weights * self.terms)[:, 2:].sum(1)

    @property
    def total(self) -> Tensor:
        """The bound of −ln p(x_0) of each picture, (B,)."""
        return self.prior + self.denoising + self.decoder

    @property
    def variance(self) -> Tensor:
        """How far each total is off by the chance of noise and timesteps: the estimated variance, (B,).

        From the differences of pairs, which estimate the same thing: exact with strata, a little too large where all
        timesteps are looked at and neighbours are consecutive ones.
        """
        weighted = self.weights * self.terms
        pairs = weighted[:, : weighted.shape[1] // 2 * 2].unflatten(1, (-1, 2))  # (B, K / 2, 2)
        variance = pairs.diff(dim=2).square().sum((1, 2))
        if weighted.shape[1] % 2 and weighted.shape[1] > 2:
            variance = variance + weighted[:, -2:].diff(dim=1).square().sum(1) / 2
        return variance

    def joined(self, *others: Bound) -> Bound:
        """The terms of more pictures, one below the other."""
        names = ("prior", "timesteps", "weights", "terms")
        tensors = (torch.cat([getattr(each, name) for each in (self, *others)]) for name in names)
        return Bound(*tensors, self.exhaustive)

    @property
    def sampling_error(self) -> float:
        """Standard error of the mean total of these very pictures: the chance of noise and timesteps alone."""
        return float(self.variance.sum().sqrt()) / len(self.total)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean total as that of pictures of their kind; one alone has none."""
        return float(self.total.std()) / len(self.total) ** 0.5 if len(self.total) > 1 else None

    def by_timestep(self) -> list[tuple[float, float]]:
        """Mean timestep and mean term, over all pictures, of each timestep or stratum; L_0 first."""
        if self.exhaustive:
            places, where = self.timesteps[0].unique(return_inverse=True)
            sums = torch.zeros(len(places), dtype=torch.float64).index_add_(0, where, self.terms.mean(0))
            means = sums / where.bincount()
        else:
            places = self.timesteps.double().unflatten(1, (-1, 2)).mean((0, 2))
            means = self.terms.unflatten(1, (-1, 2)).mean((0, 2))
        return list(zip(places.tolist(), means.tolist(), strict=True))


@torch.inference_mode()
def estimate_bound(
    process: ReverseProcess,
    original_samples: Tensor,
    generators: Sequence[torch.Generator],
    count: int,
    on_level: Callable[[int, int], None] = lambda done, total: None,
) -> Bound:
    """The terms of the bound for a batch of pictures; those of one do not depend on the others.

    Args:
        process: the model.
        original_samples: pixel values or latents, (B, ...).
        generators: one for each picture, on the CPU.
        count: timesteps to look at beside 0, see `draw_levels`.
        on_level: told after each of them, with their number.
    """
    original_samples = original_samples.double()
    steps = len(process.alphas_cumprod)
    drawn = [draw_levels(steps, count, generator) for generator in generators]
    timesteps, weights = (torch.stack(each) for each in zip(*drawn, strict=True))  # (B, K)
    terms = []
    for place, timestep in enumerate(timesteps.T, start=1):
        noise = torch.stack([torch.randn(original_samples.shape[1:], generator=each) for each in generators])
        terms.append(process.term(original_samples, noise.double(), timestep))
        on_level(place, timesteps.shape[1])
    prior = prior_kl(original_samples, float(process.alphas_cumprod[-1]))
    return Bound(prior, timesteps, weights, torch.stack(terms, dim=1), exhaustive=count == steps)
