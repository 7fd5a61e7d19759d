"""How well a model tells noise from pictures: its UNet as a denoiser, and its loss at each level of noise.

B pictures, C channels, h w rows and columns of latents (or pixels), T training timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.components.conditioning import Conditioning
from sdcli.components.samplers.clipping import without_variance
from sdcli.components.schedule import add_noise, alphas_cumprod, to_noise, to_original_sample, velocity
from sdcli.data.folder import Example
from sdcli.data.order import Size
from sdcli.errors import SdcliError
from sdcli.evaluation.pictures import batches
from sdcli.pipeline import SdPipeline, require_finite

BINS = 10  # ranges of timesteps whose losses are told apart

OnProgress = Callable[[int, int], None]
"""Told of how much is done, and of how much there is."""


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """What decides figures of a denoiser beside model and pictures."""

    seed: int = 0  # of timesteps and noise; picture i takes seed + i
    batch_size: int = 8  # pictures at a time; it changes nothing but the speed
    use_captions: bool = True  # tell the first caption of each picture, else the empty text


DEFAULTS = NoiseSettings()


def nothing(done: int, total: int) -> None:
    """Take no notice of progress."""


def schedule_of(pipeline: SdPipeline) -> Tensor:
    """Signal variance left after each timestep of a model's training, (T,) float64.

    Raises:
        SdcliError: the model cannot say anything of its last timestep, or is for inpainting.
    """
    if pipeline.inpaints:
        hint = "take the model that it was made from, or another one"
        raise SdcliError("a model for inpainting denoises what is under a mask, not whole pictures", hint=hint)
    left = alphas_cumprod(pipeline.scheduler.betas.double())
    if left[-1] == 0 and pipeline.scheduler.config.prediction_type == "epsilon":
        message = "the schedule leaves no signal at its last timestep, where prediction_type epsilon says nothing"
        raise SdcliError(message, hint="such a schedule needs v_prediction or sample")
    return left


def captions_of(examples: Sequence[Example], use_captions: bool) -> list[str]:
    """The first caption of each picture; the empty text where there is none, or none is to be told."""
    return [example.captions[0] if use_captions and example.captions else "" for example in examples]


class PictureDenoiser:
    """A pipeline's UNet, told of a batch of pictures what they show.

    Args:
        pipeline: the model.
        told: of B pictures.
        clip: keep the predicted clean samples within [-1, 1], as pixels are.
    """

    def __init__(self, pipeline: SdPipeline, told: Conditioning, clip: bool = False):
        self.pipeline = pipeline
        self.config = pipeline.scheduler.config
        self.clip = clip
        self._alphas_cumprod = schedule_of(pipeline)
        self._conditions = told.arguments(pipeline.unet)

    def output(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet says of noisy samples (B, C, h, w), in their dtype, on the CPU.

        Raises:
            SdcliError: it is not a number.
        """
        unet = self.pipeline.unet
        output = unet(noisy.to(unet.device, unet.dtype), timesteps.to(unet.device), **self._conditions)
        return require_finite(output, "UNet", unet.dtype).cpu().to(noisy.dtype)

    def __call__(self, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor | None]:
        """The clean samples that noisy ones (B, C, h, w) are taken for, and variance channels if there are any."""
        output, variance_channels = without_variance(
            self.output(noisy, timesteps), noisy, self.config.variance_type or ""
        )
        alpha_bar = self._alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        original = to_original_sample(output, noisy, alpha_bar, self.config.prediction_type)
        return original.clamp(-1, 1) if self.clip else original, variance_channels


def tell(pipeline: SdPipeline, texts: Sequence[str], size: Size) -> Conditioning:
    """What the UNet is told of pictures of a size, width and height, with these texts."""
    told, _ = pipeline.encode_prompt(texts, [""] * len(texts), (size[1], size[0]), guided=False)
    return told


@dataclass(frozen=True)
class Losses:
    """Mean squared errors of pictures in each range of timesteps, from clean to noisy.

    Args:
        prediction: of what the model was trained to predict, (pictures, ranges).
        noise: of the noise that its prediction means, (pictures, ranges), which compares prediction types.
        prediction_type: of the model.
        num_train_timesteps: T.
        draws: timesteps of each range.
    """

    prediction: Tensor
    noise: Tensor
    prediction_type: str
    num_train_timesteps: int
    draws: int

    def figures(self) -> dict[str, Any]:
        """As JSON types: means over pictures, with standard errors where there are several."""
        edges = bin_edges(self.num_train_timesteps)
        bins = [{"first": first, "last": end - 1} for first, end in zip(edges, edges[1:], strict=False)]
        count = len(self.prediction)
        for name, losses in (("loss", self.prediction), ("noise_loss", self.noise)):
            errors = losses.std(0) / count**0.5 if count > 1 else [None] * len(bins)
            for row, mean, error in zip(bins, losses.mean(0), errors, strict=True):
                row[name] = float(mean)
                row[f"{name}_standard_error"] = None if error is None else float(error)
        return {
            "pictures": count,
            "draws": self.draws,
            "prediction_type": self.prediction_type,
            "loss": float(self.prediction.mean()),
            "noise_loss": float(self.noise.mean()),
            "bins": bins,
        }


@torch.inference_mode()
def measure_losses(
    pipeline: SdPipeline,
    examples: Sequence[Example],
    size: Size,
    *,
    draws: int = 1,
    settings: NoiseSettings = DEFAULTS,
    on_progress: OnProgress = nothing,
) -> Losses:
    """The loss of every picture in each range of timesteps, at noise that follows from seed and place alone.

    Args:
        pipeline: the model.
        examples: the pictures.
        size: that they are brought to.
        draws: timesteps of each range.
        settings: what else decides the figures.
        on_progress: told of pictures done.
    """
    rows = []
    for some, pixel_values in batches(examples, size, settings.batch_size):
        first = len(rows)
        generators = [torch.Generator().manual_seed(settings.seed + first + place) for place in range(len(some))]
        latents = pipeline.encode(pixel_values, generators).cpu()
        denoiser = PictureDenoiser(pipeline, tell(pipeline, captions_of(some, settings.use_captions), size))
        rows.extend(_losses_of(denoiser, latents, generators, draws))
        on_progress(len(rows), len(examples))
    prediction, noise = torch.stack(rows).unbind(1)
    config = pipeline.scheduler.config
    return Losses(prediction, noise, config.prediction_type, config.num_train_timesteps, draws)


def _losses_of(
    denoiser: PictureDenoiser, latents: Tensor, generators: Sequence[torch.Generator], draws: int
) -> list[Tensor]:
    """Both losses of each picture of a batch, (2, ranges) each."""
    left = schedule_of(denoiser.pipeline).float()
    prediction_type = denoiser.config.prediction_type
    edges = bin_edges(len(left))
    losses = torch.zeros(len(latents), 2, len(edges) - 1)
    for number, (first, end) in enumerate(zip(edges, edges[1:], strict=False)):
        for _ in range(draws):
            timesteps = torch.cat([torch.randint(first, end, (1,), generator=each) for each in generators])
            noise = torch.stack([torch.randn(latents.shape[1:], generator=each) for each in generators])
            noisy = add_noise(latents, noise, timesteps, left)
            output, _ = without_variance(denoiser.output(noisy, timesteps), noisy, denoiser.config.variance_type or "")
            targets = {
                "epsilon": lambda noise=noise: noise,
                "v_prediction": lambda noise=noise, at=timesteps: velocity(latents, noise, at, left),
                "sample": lambda: latents,
            }
            pred_noise = to_noise(output, noisy, left[timesteps].view(-1, 1, 1, 1), prediction_type)
            errors = (output - targets[prediction_type]()), pred_noise - noise
            for kind, error in enumerate(errors):
                losses[:, kind, number] += error.square().flatten(1).mean(1) / draws
    return list(losses)


def bin_edges(num_train_timesteps: int) -> list[int]:
    """Where the ranges of timesteps begin, and the end of the last: tenths, or single ones where T is below ten."""
    count = min(BINS, num_train_timesteps)
    return [-(-number * num_train_timesteps // count) for number in range(count + 1)]
