"""What each part of a model learns, and from what: a module, the batch of a step, its loss, a picture of its progress.

B batch, C channels, h w rows and columns of latents, T training timesteps.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from sdcli.components.clip import CLIP, contrastive_loss, normalize_for_clip
from sdcli.components.schedule import add_noise, velocity
from sdcli.components.vae import VAE
from sdcli.pipeline import SdPipeline
from sdcli.settings import DenoiseSettings
from sdcli.training.dataset import ImageFolder
from sdcli.training.objectives import denoising_loss, min_snr_weights, vae_loss
from sdcli.training.settings import TrainSettings

ENCODED_AT_ONCE = 32  # images per pass while latents are cached
SHOWN = 8  # pictures on a sample sheet
SAMPLED_WITH = DenoiseSettings(num_inference_steps=20, guidance_scale=4.0)
MEASURED = 256  # pictures that the latents' variance is measured on
KEPT_BYTES = 2 * 2**30  # text features that stay in memory once computed


class Part(Protocol):
    """What the loop needs to know of the part that it trains."""

    model: nn.Module

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Compute once what every step needs; yields (done, total) meanwhile."""

    def batch(self, global_step: int) -> dict[str, Tensor]:
        """All that a step needs, for all processes together, on the CPU; first dimension B."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The "loss", which is minimised, and terms to report. `model` is the own one, wrapped for its devices."""

    def finish(self) -> None:
        """Settle what depends on the weights as a whole, before they are saved."""

    def sample(self) -> Tensor | None:
        """What the weights can do by now, as one picture (1, 3, H, W); None where there is nothing to look at."""


class VaePart:
    """The VAE learns to rebuild pictures from latents near the standard normal."""

    def __init__(self, vae: VAE, data: ImageFolder, settings: TrainSettings):
        self.model = vae
        self.data = data
        self.settings = settings

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Nothing: pictures are read as they are needed."""
        yield from ()

    def batch(self, global_step: int) -> dict[str, Tensor]:
        """Pictures (B, 3, H, W), and the noise (B, C, h, w) that their latents are drawn with."""
        pixel_values = self.data.pixel_values(self.data.indices(global_step, self.settings.batch_size))
        batch, _, height, width = pixel_values.shape
        shape = (batch, self.model.config.latent_channels, height // self.model.stride, width // self.model.stride)
        return {"pixel_values": pixel_values, "noise": torch.randn(shape, generator=self.data.generator(global_step))}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reconstruction and KL; see `vae_loss`."""
        reconstruction, posterior = model(batch["pixel_values"], batch["noise"])
        return vae_loss(reconstruction, batch["pixel_values"], posterior, self.settings.kl_weight)

    @torch.no_grad()
    def finish(self) -> None:
        """Choose the scaling factor that gives latents unit variance (Rombach et al. 2021, appendix G)."""
        latents = []
        for indices in in_batches(self.data.spread(MEASURED)):
            latents.append(self.model.encode(self.data.pixel_values(indices).to(self.model.device)).mode)
        self.model.register_to_config(scaling_factor=1 / torch.cat(latents).std().item())

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Pictures above, their reconstructions below."""
        pictures = self.data.pixel_values(self.data.spread(SHOWN))
        rebuilt = self.model.decode(self.model.encode(pictures.to(self.model.device)).mode)
        return sheet(torch.cat([pictures, rebuilt.cpu()]), columns=len(pictures))


class ClipPart:
    """Both CLIP towers learn which caption belongs to which picture."""

    def __init__(self, clip: CLIP, tokenizer, data: ImageFolder, settings: TrainSettings):
        self.model = clip
        self.tokenizer = tokenizer
        self.data = data
        self.settings = settings

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Nothing: pictures are read as they are needed."""
        yield from ()

    def batch(self, global_step: int) -> dict[str, Tensor]:
        """Tokens (B, L), padded to the longest caption of the batch, and pictures (B, 3, H, W)."""
        indices = self.data.indices(global_step, self.settings.batch_size)
        captions = self.data.captions(indices, global_step)
        input_ids = self.tokenizer(captions, padding="longest", truncation=True, return_tensors="pt").input_ids
        return {"input_ids": input_ids, "pixel_values": self.data.pixel_values(indices)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The symmetric cross-entropy, and the share of captions that find their own picture in the batch."""
        self.model.clamp_logit_scale()
        pixel_values = normalize_for_clip(batch["pixel_values"], self.model.vision_model.config.image_size)
        logits_per_text = model(batch["input_ids"], pixel_values).logits_per_text  # (B, B)
        found = logits_per_text.argmax(dim=1) == torch.arange(len(logits_per_text), device=logits_per_text.device)
        return {"loss": contrastive_loss(logits_per_text), "found": found.float().mean()}

    def finish(self) -> None:
        """Nothing: the weights are all there is."""

    def sample(self) -> None:
        """Nothing to look at: what CLIP can do is a number."""


class UnetPart:
    """The UNet learns to tell what noise was added to the latents of a picture, given its caption."""

    def __init__(self, pipeline: SdPipeline, data: ImageFolder, settings: TrainSettings):
        self.model = pipeline.unet
        self.pipeline = pipeline
        self.data = data
        self.settings = settings
        self.prediction_type = pipeline.scheduler.config.prediction_type
        self._moments: list[tuple[Tensor, Tensor]] = []
        self._prompt_embeds: dict[str, Tensor] = {}

    @torch.no_grad()
    def prepare(self) -> Iterator[tuple[int, int]]:
        """Encode every picture once: mean and standard deviation of its latents."""
        count = len(self.data.examples)
        for indices in in_batches(list(range(count))):
            posterior = self.pipeline.vae.encode(self.data.pixel_values(indices).to(self.pipeline.vae.device))
            deviation = (0.5 * posterior.log_variance).exp()
            self._moments += zip(posterior.mean.cpu(), deviation.cpu(), strict=True)
            yield len(self._moments), count

    def batch(self, global_step: int) -> dict[str, Tensor]:
        """Latents and noise (B, C, h, w), timesteps (B,), prompt_embeds (B, L, D); some captions are left out."""
        indices = self.data.indices(global_step, self.settings.batch_size)
        generator = self.data.generator(global_step)
        mean, deviation = (torch.stack(each) for each in zip(*(self._moments[index] for index in indices), strict=True))
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        timesteps = torch.randint(self.pipeline.scheduler.num_train_timesteps, (len(indices),), generator=generator)
        dropped = torch.rand(len(indices), generator=generator) < self.settings.caption_dropout
        captions = self.data.captions(indices, global_step)
        captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
        return {
            "latents": latents * self.pipeline.vae.config.scaling_factor,
            "noise": torch.randn(latents.shape, generator=generator),
            "timesteps": timesteps,
            "prompt_embeds": self._embed(captions),
        }

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The error of the prediction at each image's own timestep."""
        scheduler, timesteps = self.pipeline.scheduler, batch["timesteps"]
        noisy_latents = add_noise(batch["latents"], batch["noise"], timesteps, scheduler.alphas_cumprod)
        model_output = model(noisy_latents, timesteps, batch["prompt_embeds"])
        targets = {
            "epsilon": lambda: batch["noise"],
            "v_prediction": lambda: velocity(batch["latents"], batch["noise"], timesteps, scheduler.alphas_cumprod),
            "sample": lambda: batch["latents"],
        }
        weights = min_snr_weights(scheduler.alphas_cumprod, timesteps, self.settings.snr_gamma, self.prediction_type)
        return {"loss": denoising_loss(model_output, targets[self.prediction_type](), weights)}

    def finish(self) -> None:
        """Nothing: the weights are all there is."""

    def sample(self) -> Tensor:
        """The sample prompts as pictures, always from the same noise."""
        prompts = self.settings.sample_prompts or self.data.captions(self.data.spread(SHOWN), 0)
        embeds = self.pipeline.encode_prompt(list(prompts), [""] * len(prompts))
        generators = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
        side = self.data.resolution
        latents = self.pipeline.prepare_latents(generators, side, side)
        latents = self.pipeline.denoise(latents, *embeds, SAMPLED_WITH, generators)
        return sheet(self.pipeline.decode(latents), columns=4)

    @torch.no_grad()
    def _embed(self, captions: list[str]) -> Tensor:
        """Text features (B, L, D) of captions, computed once for each while there is room to keep them."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._prompt_embeds]
        fresh = {}
        if new:
            computed, _ = self.pipeline.encode_prompt(new, [], guided=False)
            fresh = dict(zip(new, computed.cpu(), strict=True))
        embeds = torch.stack(
            [fresh[caption] if caption in fresh else self._prompt_embeds[caption] for caption in captions]
        )
        if fresh and len(self._prompt_embeds) * embeds[0].nbytes < KEPT_BYTES:
            self._prompt_embeds |= fresh
        return embeds


def in_batches(indices: list[int]) -> Iterator[list[int]]:
    """Indices in portions that a network takes at once."""
    for start in range(0, len(indices), ENCODED_AT_ONCE):
        yield indices[start : start + ENCODED_AT_ONCE]


def sheet(pixel_values: Tensor, columns: int) -> Tensor:
    """Pictures (N, 3, H, W) as one, (1, 3, rows * H, columns * W), row by row; missing ones are white."""
    count, channels, height, width = pixel_values.shape
    rows = -(-count // columns)
    canvas = pixel_values.new_ones(rows * columns, channels, height, width)
    canvas[:count] = pixel_values
    canvas = canvas.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)  # (3, rows, H, columns, W)
    return canvas.reshape(1, channels, rows * height, columns * width)
