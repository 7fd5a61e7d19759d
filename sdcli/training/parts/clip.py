"""Both CLIP towers learn which caption belongs to which picture."""

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from sdcli.components.clip import contrastive_loss, normalize_for_clip
from sdcli.data.pictures import Pictures
from sdcli.training.assembly import Model
from sdcli.training.parts.base import Batch, Part
from sdcli.training.settings import TrainSettings


class ClipPart(Part):
    """Every caption of a batch is compared with every picture of it, over all processes."""

    reads_captions = True

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings):
        super().__init__(model, data, settings)
        self.network = model.clip
        self.tokenizer = model.components["tokenizer"]

    def batch(self, data: Pictures, number: int, validating: bool = False) -> Batch:
        """Tokens (B, L), padded to the longest caption of the batch, and pictures (B, 3, H, W)."""
        shown = data.batch(number)
        captions = data.captions(shown, number)
        input_ids = self.tokenizer(captions, padding="longest", truncation=True, return_tensors="pt").input_ids
        return {"input_ids": input_ids, "pixel_values": data.pixel_values(shown)}

    def losses(self, network: nn.Module, batch: Batch) -> Batch:
        """The symmetric cross-entropy, and the share of captions that find their own picture in the batch."""
        pixel_values = normalize_for_clip(batch["pixel_values"], self.network.vision_model.config.image_size)
        output = network(batch["input_ids"], pixel_values)
        logits_per_text = output.logits_per_text  # (B, B)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            text_embeds, image_embeds = gathered(output.text_embeds), gathered(output.image_embeds)
            logits_per_text = text_embeds @ image_embeds.T * self.network.logit_scale.exp()
        found = logits_per_text.argmax(dim=1) == torch.arange(len(logits_per_text), device=logits_per_text.device)
        return {"loss": contrastive_loss(logits_per_text), "found": found.float().mean()}

    def updated(self) -> None:
        """Keep the temperature within its bounds."""
        self.network.clamp_logit_scale()


def gathered(embeds: Tensor) -> Tensor:
    """The vectors of all processes, one below the other; gradients go back to each."""
    return torch.cat(all_gather(embeds))
