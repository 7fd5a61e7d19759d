"""What a model sees and thinks at every step from noise to picture, and the way of a picture to noise, as frames.

C channels, h w rows and columns of latents, H W of pixels, T training timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdcli.components.divergence import prior_kl
from sdcli.errors import SdcliError
from sdcli.images import to_image
from sdcli.pipeline import SdPipeline
from sdcli.plots.processes import Frame
from sdcli.settings import DenoiseSettings

SHARES = (0.0, 0.05, 0.2, 0.4, 0.7, 1.0)  # of the timesteps, where the forward process is looked at


@dataclass(frozen=True)
class Moment:
    """One call of the model.

    Args:
        step: counted from 1.
        timestep: that the model was told.
        alpha_bar: signal variance left in what it was shown.
        noisy: x_t, of unit variance as the model is shown it, (1, C, h, w).
        predicted: x_0 as the model takes it to be, after guidance, (1, C, h, w).
    """

    step: int
    timestep: float
    alpha_bar: float
    noisy: Tensor
    predicted: Tensor


def record(
    pipeline: SdPipeline, prompts: tuple[str, str], size: tuple[int, int], settings: DenoiseSettings, seed: int
) -> list[Moment]:
    """Every moment of a picture's making.

    Args:
        pipeline: the model.
        prompts: what to show, and what to steer away from.
        size: width and height in pixels.
        settings: steps and guidance.
        seed: of the noise.

    Raises:
        SdcliError: the sampler does not fit the schedule, or does not say what the model has in mind; or the model's
            output is not a number.
    """
    width, height = size
    steps, most = settings.num_inference_steps, pipeline.scheduler.config.num_train_timesteps
    if steps > most:
        raise SdcliError(f"--steps {steps} does not fit a schedule of {most}", hint=f"from 1 to {most}")
    try:
        pipeline.count_calls(settings)
    except ValueError as error:
        raise SdcliError(f"the sampler cannot follow this schedule: {error}", hint="try another --sampler") from error
    wanted, unwanted = pipeline.encode_prompt([prompts[0]], [prompts[1]], (height, width), pipeline.defaults.clip_skip)
    generators = [torch.Generator().manual_seed(seed)]
    noise = pipeline.prepare_latents(generators, height, width)
    told: list[tuple[Tensor, Tensor | None]] = []
    pipeline.denoise(noise, wanted, unwanted, settings, generators, lambda _step, _total, *both: told.append(both))
    scheduler = pipeline.scheduler
    shown = [noise * scheduler.init_noise_sigma, *(after for after, _ in told)]
    sigmas = scheduler.sigmas.tolist()
    moments = []
    for place, (_, predicted) in enumerate(told):
        if predicted is None:
            raise SdcliError("this sampler does not tell the predicted picture", hint="try --sampler ddim")
        alpha_bar = 1 / (1 + sigmas[place] ** 2)
        # Samplers that begin from more than unit variance keep the signal as it is; the model is shown it shrunk.
        noisy = shown[place] * alpha_bar**0.5 if scheduler.init_noise_sigma > 1 else shown[place]
        moments.append(Moment(place + 1, float(scheduler.timesteps[place]), alpha_bar, noisy.cpu(), predicted.cpu()))
    return moments


def spread(moments: list[Moment], count: int) -> list[Moment]:
    """So many of them, evenly from the first to the last."""
    count = min(count, len(moments))
    if count == 1:
        return [moments[-1]]
    return [moments[round(place * (len(moments) - 1) / (count - 1))] for place in range(count)]


def prior_divergences(clean: Tensor, alphas_cumprod: Tensor) -> list[float]:
    """Divergence of q(x_t given x_0) from the standard normal at each timestep, in nats per number.

    It depends on the mean square of the numbers alone, so one number that has it stands for all of them.

    Args:
        clean: x_0, of any shape.
        alphas_cumprod: signal variance left after each timestep, (T,).
    """
    stands_for_all = clean.double().square().mean().sqrt().view(1, 1)
    return [float(prior_kl(stands_for_all, alpha_bar)) for alpha_bar in alphas_cumprod.double().tolist()]


def trajectory_frames(pipeline: SdPipeline, moments: Sequence[Moment]) -> list[Frame]:
    """Moments as they look: x_t and the predicted x_0, both decoded."""
    return [
        Frame(
            title=f"step {each.step}\nt = {each.timestep:.0f}\n$\\bar\\alpha$ = {each.alpha_bar:.3f}",
            pixels=to_image(pipeline.decode(each.noisy)),
            values=each.noisy.numpy(),
            predicted=to_image(pipeline.decode(each.predicted)),
            timestep=each.timestep,
        )
        for each in moments
    ]


def usual_timesteps(num_train_timesteps: int) -> list[int]:
    """Where the forward process shows best: close together at the clean end, up to the last."""
    return sorted({round(share * (num_train_timesteps - 1)) for share in SHARES})


def forward_frames(
    noised: Sequence[Tensor],
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    decode: Callable[[Tensor], Tensor] | None,
) -> list[Frame]:
    """A picture at several levels of noise, as it looks.

    Args:
        noised: x_t, (1, C, h, w) each.
        timesteps: of each of them.
        alphas_cumprod: signal variance left after each timestep, (T,).
        decode: latents to pixel values (1, 3, H, W); None of pixels.
    """
    return [
        Frame(
            title=f"t = {timestep}, $\\bar\\alpha$ = {float(alphas_cumprod[timestep]):.3g}",
            pixels=to_image(values if decode is None else decode(values)),
            values=values.numpy(),
            timestep=timestep,
        )
        for values, timestep in zip(noised, timesteps, strict=True)
    ]
