"""CLIP: a text tower and an image tower, and the head that compares what they say. Knows no files and no tokenizer.

`CLIP` is transformers' CLIPModel: the same configuration keys and, in memory, the state-dict keys of transformers 5.

I images, N texts, L tokens, H W rows and columns, D width of a tower, E width that both share (projection_dim).

Reference: Radford et al. 2021 (arXiv:2103.00020).
"""

import math
from typing import Any, NamedTuple

import torch

# By name, on purpose: diffusers looks these names up in this module when it reloads a saved pipeline.
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sdcli.components.towers import ImageEncoder, ImageOutput, TextEncoder, TextOutput, known_arguments, projection_head

__all__ = [
    "CLIP",
    "CLIPOutput",
    "ImageEncoder",
    "ImageOutput",
    "TextEncoder",
    "TextOutput",
    "contrastive_loss",
    "normalize_for_clip",
]

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green, blue in [0, 1]; openai/CLIP, clip/clip.py
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = math.log(100)  # Radford et al., section 2.5


class CLIPOutput(NamedTuple):
    """Cosine similarities of I images and N texts, times the learned scale."""

    logits_per_image: Tensor  # (I, N)
    logits_per_text: Tensor  # (N, I)
    image_embeds: Tensor  # (I, E), of length 1
    text_embeds: Tensor  # (N, E), of length 1


class CLIP(ModelMixin, ConfigMixin):
    """Both towers, their projections and the learned temperature.

    Args:
        text_config: arguments of `TextEncoder`.
        vision_config: arguments of `ImageEncoder`.
        projection_dim: shared width E; it overrules those of the towers.
        logit_scale_init_value: natural logarithm of what cosine similarities are multiplied by at first, ln(1/0.07).
        initializer_factor: scales the initial projections.
    """

    @register_to_config
    def __init__(
        self,
        text_config: dict[str, Any] | None = None,
        vision_config: dict[str, Any] | None = None,
        projection_dim: int = 512,
        logit_scale_init_value: float = 2.6592,
        initializer_factor: float = 1.0,
    ):
        super().__init__()
        shared = {"projection_dim": projection_dim}
        text = known_arguments(TextEncoder, text_config or {}) | shared | {"with_projection": False}
        image_encoder = ImageEncoder(**known_arguments(ImageEncoder, vision_config or {}) | shared)
        self.text_model = TextEncoder(**text)
        self.vision_model = image_encoder.vision_model
        self.text_projection = projection_head(self.text_model.config.hidden_size, projection_dim, initializer_factor)
        self.visual_projection = projection_head(image_encoder.config.hidden_size, projection_dim, initializer_factor)
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale_init_value))

    @classmethod
    def from_towers(
        cls,
        text_encoder: TextEncoder,
        image_encoder: ImageEncoder,
        text_projection_weight: Tensor | None = None,
        logit_scale: Tensor | None = None,
    ) -> "CLIP":
        """Put a CLIP together that shares its parameters with the given encoders, so that training it trains them.

        Args:
            text_encoder: with or without a projection.
            image_encoder: its projection sets the shared width E.
            text_projection_weight: (E, D of the text tower); needed unless `text_encoder` has a projection.
            logit_scale: natural logarithm of the scale, a scalar; the paper's initial value if missing.

        Raises:
            ValueError: the projection is missing, given twice, or of the wrong shape.
        """
        if text_encoder.config.with_projection == (text_projection_weight is not None):
            raise ValueError("give text_projection_weight for a text encoder without a projection, and only then")
        projection_dim = image_encoder.config.projection_dim
        text_config = known_arguments(TextEncoder, text_encoder.tower.config)
        vision_config = known_arguments(ImageEncoder, image_encoder.config)
        with torch.device("meta"):  # every parameter is replaced
            clip = cls(text_config=text_config, vision_config=vision_config, projection_dim=projection_dim)
        clip.text_model = text_encoder.tower
        clip.vision_model, clip.visual_projection = image_encoder.vision_model, image_encoder.visual_projection
        if text_projection_weight is None:
            clip.text_projection = text_encoder.text_projection
        else:
            clip.text_projection.weight = as_parameter(text_projection_weight)
        expected, weight = (projection_dim, text_encoder.config.hidden_size), clip.text_projection.weight
        if weight.shape != expected:
            raise ValueError(f"the text projection must be {expected}, got {tuple(weight.shape)}")
        initial = torch.tensor(clip.config.logit_scale_init_value, device=weight.device)
        clip.logit_scale = as_parameter(initial if logit_scale is None else logit_scale)
        return clip

    def towers(self) -> tuple[TextEncoder, ImageEncoder]:
        """The text encoder without a projection, the image encoder with its own; both share this model's parameters."""
        shared = {"projection_dim": self.config.projection_dim}
        with torch.device("meta"):
            image_encoder = ImageEncoder(**known_arguments(ImageEncoder, self.vision_model.config) | shared)
        image_encoder.vision_model, image_encoder.visual_projection = self.vision_model, self.visual_projection
        return self.text_model, image_encoder

    def embed_texts(self, input_ids: Tensor) -> Tensor:
        """(N, L) tokens to (N, E) vectors of length 1."""
        return nn.functional.normalize(self.text_projection(self.text_model(input_ids).pooler_output), dim=-1)

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, image_size, image_size) normalised for CLIP to (I, E) vectors of length 1."""
        return nn.functional.normalize(self.visual_projection(self.vision_model(pixel_values).pooler_output), dim=-1)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> CLIPOutput:
        """Compare every text (N, L) with every image (I, 3, image_size, image_size)."""
        text_embeds, image_embeds = self.embed_texts(input_ids), self.embed_images(pixel_values)
        logits_per_text = text_embeds @ image_embeds.T * self.logit_scale.exp()  # (N, I)
        return CLIPOutput(logits_per_text.T, logits_per_text, image_embeds, text_embeds)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the scale at most 100, to be called after each optimizer step. Radford et al., section 2.5."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def contrastive_loss(logits_per_text: Tensor) -> Tensor:
    """Symmetric cross-entropy: each text should pick its own image of the batch, and each image its own text.

    Args:
        logits_per_text: (N, N), with the pairs on the diagonal.

    Returns:
        Mean of both cross-entropies in nats, a scalar; ln N when every similarity is the same.

    Raises:
        ValueError: the matrix is not square.

    Reference: Radford et al. 2021 (arXiv:2103.00020), figure 3.
    """
    if logits_per_text.ndim != 2 or logits_per_text.shape[0] != logits_per_text.shape[1]:
        raise ValueError(f"logits_per_text must be square, one text for each image, got {tuple(logits_per_text.shape)}")
    pairs = torch.arange(len(logits_per_text), device=logits_per_text.device)
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits_per_text, pairs) + cross_entropy(logits_per_text.T, pairs)) / 2


def normalize_for_clip(pixel_values: Tensor, image_size: int) -> Tensor:
    """Images as the VAE sees them to images as CLIP sees them; gradients pass through.

    The shorter side is resized to `image_size`, the middle is cut out, and the colours are centred and scaled by the
    mean and standard deviation of CLIP's training images.

    Args:
        pixel_values: (B, 3, H, W) in [-1, 1].
        image_size: pixels per side.

    Returns:
        (B, 3, image_size, image_size).
    """
    height, width = pixel_values.shape[-2:]
    shorter = min(height, width)
    if shorter != image_size:
        size = (round(height * image_size / shorter), round(width * image_size / shorter))
        pixel_values = nn.functional.interpolate(pixel_values, size, mode="bicubic", antialias=True)
        height, width = size
    top, left = (height - image_size) // 2, (width - image_size) // 2
    square = pixel_values[..., top : top + image_size, left : left + image_size]
    mean, std = (square.new_tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return ((square + 1) / 2 - mean) / std


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """The tensor itself if it is a parameter, so that it stays shared."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
