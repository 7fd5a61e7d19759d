"""The VAE learns to rebuild pictures from latents near the standard normal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.components.clip import normalize_for_clip
from sdcli.components.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss
from sdcli.data.pictures import Pictures
from sdcli.errors import SdcliError
from sdcli.training.assembly import Model
from sdcli.training.objectives import perceptual_error, vae_loss
from sdcli.training.parts.base import SHOWN, Batch, Part, in_batches, same_size, sheet
from sdcli.training.settings import TrainSettings

MEASURED = 256  # pictures that the latents' variance is measured on


class VaePart(Part):
    """Reconstruction, KL, and where asked for the distance that CLIP sees and what a discriminator tells apart."""

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings):
        super().__init__(model, data, settings)
        self.network = model.components["vae"]
        self.image_encoder = model.components.get("image_encoder")
        if settings.perceptual_weight and self.image_encoder is None:
            raise SdcliError(
                "--perceptual-weight needs the image tower of a CLIP, and the model has none",
                hint="give a model with an image_encoder by --model; `sdcli train --part clip` makes one",
            )
        self.discriminator = None
        if settings.adversarial_weight:
            self.discriminator = PatchDiscriminator()
            self.opponent = torch.optim.AdamW(self.discriminator.parameters(), settings.learning_rate, betas=(0.5, 0.9))

    def batch(self, data: Pictures, number: int, validating: bool = False) -> Batch:
        """Pictures (B, 3, H, W), and the noise (B, C, h, w) that their latents are drawn with."""
        pixel_values = data.pixel_values(data.batch(number))
        noise = torch.randn(self.sizes(pixel_values), generator=data.generator(number))
        return {"pixel_values": pixel_values, "noise": noise}

    def losses(self, network: nn.Module, batch: Batch) -> Batch:
        """Reconstruction and KL; see `vae_loss`."""
        settings, pixel_values = self.settings, batch["pixel_values"]
        reconstruction, posterior = network(pixel_values, batch["noise"])
        losses = vae_loss(reconstruction, pixel_values, posterior, settings.kl_weight, settings.loss)
        if settings.perceptual_weight:
            distance = perceptual_error(self._features(reconstruction), self._features(pixel_values)).mean()
            losses |= {"loss": losses["loss"] + settings.perceptual_weight * distance, "perceptual": distance.detach()}
        if self.discriminator is not None:
            self.discriminator.to(pixel_values.device)
            fooled = adversarial_loss(self.discriminator.frozen(reconstruction))
            losses |= {"loss": losses["loss"] + settings.adversarial_weight * fooled, "adversarial": fooled.detach()}
            if torch.is_grad_enabled():
                real, fake = self.discriminator(pixel_values), self.discriminator(reconstruction.detach())
                told = discriminator_loss(real, fake)
                told.backward()
                losses["discriminator"] = told.detach()
        return losses

    def updated(self) -> None:
        """Let the discriminator learn from the same pictures."""
        if self.discriminator is None:
            return
        if torch.distributed.is_initialized():
            for parameter in self.discriminator.parameters():
                torch.distributed.all_reduce(parameter.grad)
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.settings.max_grad_norm)
        self.opponent.step()
        self.opponent.zero_grad()

    @torch.no_grad()
    def finish(self) -> None:
        """Choose the scaling factor that gives latents unit variance (Rombach et al. 2021, appendix G)."""
        latents = []
        for shown in in_batches(self.data.spread(MEASURED)):
            latents.append(self.network.encode(self.data.pixel_values(shown).to(self.network.device)).mode.flatten())
        self.network.register_to_config(scaling_factor=1 / torch.cat(latents).std().item())

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Pictures above, their reconstructions below."""
        pictures = self.data.pixel_values(same_size(self.data.spread(SHOWN)))
        rebuilt = self.network.decode(self.network.encode(pictures.to(self.network.device)).mode)
        return sheet(torch.cat([pictures, rebuilt.cpu()]), columns=len(pictures))

    def state(self) -> dict[str, Any]:
        """The discriminator and its optimizer."""
        if self.discriminator is None:
            return {}
        return {"discriminator": self.discriminator.state_dict(), "opponent": self.opponent.state_dict()}

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Go on with the same discriminator."""
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.opponent.load_state_dict(state["opponent"])

    def _features(self, pixel_values: Tensor) -> list[Tensor]:
        """What every layer of CLIP's image tower makes of pictures."""
        tower = self.image_encoder.vision_model
        return list(tower(normalize_for_clip(pixel_values, tower.config.image_size)).hidden_states[1:])
