"""The likelihood of a folder's pictures under a model: the terms of the bound, with what its VAE does beside them.

B pictures, C h w of latents, H W of pixels. Nats per picture unless said otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.components.divergence import discretized_gaussian_log_likelihood
from sdcli.data.folder import Example
from sdcli.data.order import Size
from sdcli.errors import SdcliError
from sdcli.evaluation.denoising import (
    NoiseSettings,
    OnProgress,
    PictureDenoiser,
    captions_of,
    nothing,
    schedule_of,
    tell,
)
from sdcli.evaluation.likelihood import Bound, ReverseProcess, draw_levels, estimate_bound
from sdcli.evaluation.pictures import batches
from sdcli.pipeline import SdPipeline, require_finite

VARIANCES = ("fixed_small", "fixed_large")
DECODERS = {True: "discretised Gaussian over 256 levels", False: "Gaussian density of the latents"}


@dataclass(frozen=True, kw_only=True)
class BoundSettings(NoiseSettings):
    """What decides the bound beside model and pictures."""

    timesteps: int  # that are looked at beside 0; T is all of them
    variance: str | None = None  # of the reverse steps; None is the scheduler's

    def check(self, num_train_timesteps: int) -> None:
        """Refuse a number of timesteps that the schedule does not have, or that makes no pairs.

        Raises:
            SdcliError: see above.
        """
        if self.timesteps == num_train_timesteps:
            return
        allowed = f"an even number below {num_train_timesteps - 1}, or {num_train_timesteps}, which is all of them"
        if not 2 <= self.timesteps < num_train_timesteps - 1 or self.timesteps % 2:
            message = f"--timesteps {self.timesteps} does not fit a schedule of {num_train_timesteps}"
            raise SdcliError(message, hint=f"try {allowed}")


@dataclass(frozen=True)
class Coding:
    """What a VAE does to pictures, each (B,).

    Args:
        squared_error: mean over the numbers of each picture, in [-1, 1].
        kl: from the posterior to the standard normal.
        entropy: of the posterior of scaled latents.
    """

    squared_error: Tensor
    kl: Tensor
    entropy: Tensor

    def joined(self, *others: Coding) -> Coding:
        """What it does to more pictures, one below the other."""
        names = ("squared_error", "kl", "entropy")
        return Coding(*(torch.cat([getattr(each, name) for each in (self, *others)]) for name in names))


@dataclass(frozen=True)
class Likelihood:
    """Everything measured.

    Args:
        bound: of latents as the posterior draws them, or of pixels.
        shape: of what the bound is about, (C, h, w).
        pixel_shape: (3, H, W).
        timesteps: T.
        variance: of the reverse steps.
        coding: of the VAE, and its reconstruction's nats in 256 levels, (B,); None without a VAE.
    """

    bound: Bound
    shape: tuple[int, ...]
    pixel_shape: tuple[int, ...]
    timesteps: int
    variance: str
    coding: Coding | None
    reconstruction: Tensor | None

    def figures(self) -> dict[str, Any]:
        """As JSON types; nats are means per picture."""
        bound, numbers = self.bound, math.prod(self.shape)
        bits = 1 / (numbers * math.log(2))
        total, error = float(bound.total.mean()), bound.standard_error
        found = {
            "pictures": len(bound.total),
            "space": "pixels" if self.coding is None else "latents",
            "decoder": DECODERS[self.coding is None],
            "shape": list(self.shape),
            "variance": self.variance,
            "num_train_timesteps": self.timesteps,
            "evaluated_timesteps": self.timesteps if bound.exhaustive else bound.timesteps.shape[1] - 1,
            "stratified": not bound.exhaustive,
            "nats": {
                "prior": float(bound.prior.mean()),
                "denoising": float(bound.denoising.mean()),
                "decoder": float(bound.decoder.mean()),
                "bound": total,
                "sampling_error": bound.sampling_error,
                "standard_error": error,
            },
            "bits_per_dim": total * bits,
            "bits_per_dim_sampling_error": bound.sampling_error * bits,
            "bits_per_dim_standard_error": None if error is None else error * bits,
        }
        if self.coding is not None:
            found["vae"] = self._vae_figures()
        found["by_timestep"] = [{"timestep": place, "nats": nats} for place, nats in bound.by_timestep()]
        return found

    def _vae_figures(self) -> dict[str, float]:
        """Of reconstruction, and of what latents cost with the normal prior and with the diffusion model as prior.

        The last, E ln q(z|x) − E ln p(z), takes the place of the VAE's own KL (Vahdat et al. 2021, arXiv:2106.05931,
        eq. 1), and with the reconstruction bounds the likelihood of the pixels themselves.
        """
        rate = self.bound.total - self.coding.entropy
        squared_error = float(self.coding.squared_error.mean())
        whole = float((self.reconstruction + rate).mean())
        return {
            "reconstruction": float(self.reconstruction.mean()),
            "reconstruction_deviation": math.sqrt(squared_error),
            "psnr": 10 * math.log10(4 / squared_error) if squared_error else math.inf,
            "kl_to_normal": float(self.coding.kl.mean()),
            "kl_to_diffusion_prior": float(rate.mean()),
            "pixels_bits_per_dim": whole / (math.prod(self.pixel_shape) * math.log(2)),
        }


@torch.inference_mode()
def measure_likelihood(
    pipeline: SdPipeline,
    examples: Sequence[Example],
    size: Size,
    settings: BoundSettings,
    on_progress: OnProgress = nothing,
) -> Likelihood:
    """The bound of pictures under a model.

    Args:
        pipeline: the model, of latents or of pixels.
        examples: the pictures.
        size: that they are brought to, width and height.
        settings: what else decides the figures.
        on_progress: told of passes of the UNet done, and how many there are.

    Raises:
        SdcliError: the settings do not fit the schedule, or a network's output is not a number.
    """
    left = schedule_of(pipeline)
    settings.check(len(left))
    variance = settings.variance or pipeline.scheduler.config.variance_type or VARIANCES[0]
    passes = len(draw_levels(len(left), settings.timesteps, torch.Generator())[0])  # of a batch
    total = -(-len(examples) // settings.batch_size) * passes
    bounds, codings, rebuilt = [], [], []
    for some, pixel_values in batches(examples, size, settings.batch_size):
        seed, done = settings.seed + len(rebuilt), len(bounds) * passes
        generators = [torch.Generator().manual_seed(seed + place) for place in range(len(some))]
        latents, coding, reconstruction = encode(pipeline, pixel_values, generators)
        told = tell(pipeline, captions_of(some, settings.use_captions), size)
        process = ReverseProcess(
            denoiser=PictureDenoiser(pipeline, told, clip=pipeline.vae is None),
            alphas_cumprod=left,
            variance_type=variance,
            discrete=pipeline.vae is None,
        )
        count = functools.partial(count_from, on_progress, done, total)
        bounds.append(estimate_bound(process, latents, generators, settings.timesteps, count))
        codings.append(coding)
        rebuilt.extend(zip(pixel_values, reconstruction, strict=True))
    coding = None if pipeline.vae is None else codings[0].joined(*codings[1:])
    nats = None if coding is None else reconstruction_nats(rebuilt, float(coding.squared_error.mean()))
    shapes = tuple(latents.shape[1:]), tuple(pixel_values.shape[1:])
    return Likelihood(bounds[0].joined(*bounds[1:]), *shapes, len(left), variance, coding, nats)


def count_from(on_progress: OnProgress, before: int, total: int, done: int, of_batch: int) -> None:
    """Tell of what is done in a batch on top of what was done before it."""
    on_progress(before + done, total)


def encode(
    pipeline: SdPipeline, pixel_values: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Coding | None, Tensor]:
    """Scaled latents (B, C, h, w) as the posterior draws them, how they code the pictures, and the pictures rebuilt.

    Without a VAE latents and pictures rebuilt are the pixels as the UNet takes them.
    """
    if pipeline.vae is None:
        pixels = pipeline.encode(pixel_values)
        return pixels, None, pixels
    vae, factor = pipeline.vae, pipeline.vae.config.scaling_factor
    posterior = vae.encode(pixel_values.to(vae.device, vae.dtype))
    noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=each) for each in generators])
    latents = require_finite(posterior.sample(noise.to(posterior.mean)).float(), "VAE", vae.dtype) * factor
    reconstruction = pipeline.decode(latents).cpu()
    log_variance = posterior.log_variance.double().cpu() + 2 * math.log(factor)
    coding = Coding(
        squared_error=(reconstruction - pixel_values).double().square().flatten(1).mean(1),
        kl=posterior.kl().double().cpu(),
        entropy=0.5 * (1 + math.log(2 * math.pi) + log_variance).flatten(1).sum(1),
    )
    return latents.cpu(), coding, reconstruction


def reconstruction_nats(rebuilt: Sequence[tuple[Tensor, Tensor]], squared_error: float) -> Tensor:
    """−ln p(x|z) of pictures in 256 levels, (B,), under a Gaussian of the one variance that suits all of them best.

    Args:
        rebuilt: pictures and their reconstructions, (3, H, W) each.
        squared_error: that variance, the mean over all of them.
    """
    log_variance = torch.tensor(max(squared_error, 1e-12), dtype=torch.float64).log()
    nats = [
        -discretized_gaussian_log_likelihood(picture.double(), again.double(), log_variance).sum()
        for picture, again in rebuilt
    ]
    return torch.stack(nats)
