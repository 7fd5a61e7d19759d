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

LAYERS = {"text": ("text_model", "text_projection"), "image": ("vision_model", "visual_projection")}  # of each tower


class ClipPart(Part):
    """Every caption of a batch is compared with every picture of it, over all processes.

    Where `caption_weight` is above 0, each picture has two of its captions at once, and these are compared with each
    other too: wordings of one thing come to mean the same, which pictures alone teach a text tower but slowly.

    With `lock` one tower stays bit for bit as it is: a UNet goes on understanding a text tower that is locked.

    Reference: Radford et al. 2021 (arXiv:2103.00020); Gao et al. 2021 (arXiv:2104.08821), section 4, for captions;
    Zhai et al. 2021 (arXiv:2111.07991) for a tower that is locked.
    """

    reads_captions = True

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings):
        super().__init__(model, data, settings)
        self.network = model.clip
        self.tokenizer = model.components["tokenizer"]

    def parameters(self) -> list[nn.Parameter]:
        """The weights of both towers but for the one that is locked, and the temperature."""
        locked = LAYERS.get(self.settings.lock, ())
        return [weight for name, weight in self.network.named_parameters() if not name.startswith(locked)]

    def take(self, model: Model) -> None:
        """Take both towers of another model, and its temperature."""
        self.network.load_state_dict(model.clip.state_dict())

    def batch(self, data: Pictures, number: int, validating: bool = False) -> Batch:
        """Tokens (B, L), padded to the longest caption of the batch, once or twice, and pictures (B, 3, H, W)."""
        shown = data.batch(number)
        captions = data.captions(shown, number)
        others = data.captions(shown, number, others=True) if self.settings.caption_weight and not validating else []
        input_ids = self.tokenizer(captions + others, padding="longest", truncation=True, return_tensors="pt").input_ids
        batch = {"input_ids": input_ids[: len(shown)], "pixel_values": data.pixel_values(shown)}
        return batch | ({"other_input_ids": input_ids[len(shown) :]} if others else {})

    def losses(self, network: nn.Module, batch: Batch) -> Batch:
        """The symmetric cross-entropy, the share of captions that find their own picture, and that among captions."""
        pixel_values = normalize_for_clip(batch["pixel_values"], self.network.vision_model.config.image_size)
        views = [batch[name] for name in ("input_ids", "other_input_ids") if name in batch]
        output = network(torch.cat(views), pixel_values)
        text_embeds, image_embeds = output.text_embeds.chunk(len(views)), output.image_embeds  # (B, E) each
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            text_embeds, image_embeds = [gathered(each) for each in text_embeds], gathered(image_embeds)
        scale = self.network.logit_scale.exp()
        logits_per_text = [each @ image_embeds.T * scale for each in text_embeds]  # (B, B) each
        loss = torch.stack([contrastive_loss(logits) for logits in logits_per_text]).mean()
        found = logits_per_text[0].argmax(dim=1) == torch.arange(len(image_embeds), device=image_embeds.device)
        losses = {"loss": loss, "found": found.float().mean()}
        if len(views) == 2:
            among_captions = contrastive_loss(text_embeds[0] @ text_embeds[1].T * scale)
            losses["loss"] = loss + self.settings.caption_weight * among_captions
            losses["captions"] = among_captions.detach()
        return losses

    def updated(self) -> None:
        """Keep the temperature within its bounds."""
        self.network.clamp_logit_scale()


def gathered(embeds: Tensor) -> Tensor:
    """The vectors of all processes, one below the other; gradients go back to each."""
    return torch.cat(all_gather(embeds))
