"""The two towers of CLIP: texts or images in, features out. Knows no tokenizer.

`TextEncoder` is transformers' CLIPTextModel and CLIPTextModelWithProjection, `ImageEncoder` is its
CLIPVisionModelWithProjection: the same configuration keys and, in memory, the state-dict keys of transformers 5.

B batch, L tokens, P patches, D width of the tower, E width that text and image share (projection_dim).

Reference: Radford et al. 2021 (arXiv:2103.00020); Dosovitskiy et al. 2020 (arXiv:2010.11929) for the image tower.
"""

import inspect
from typing import Any, NamedTuple

import torch

# By name, on purpose: diffusers looks these names up in this module when it reloads a saved pipeline.
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from torch import Tensor, nn

from sdcli.components.transformer import Transformer, initialize

LEGACY_EOS_TOKEN_ID = 2


class TextOutput(NamedTuple):
    """What the text tower says. A named tuple, because mixed precision and data parallelism look inside those."""

    last_hidden_state: Tensor  # (B, L, D), after the final layer norm
    pooler_output: Tensor  # (B, D), its row at the end-of-text token
    hidden_states: tuple[Tensor, ...]  # the embeddings, then each layer's output, not normalised; (B, L, D)
    text_embeds: Tensor | None = None  # (B, E), with a projection only; not normalised


class ImageOutput(NamedTuple):
    """What the image tower says."""

    last_hidden_state: Tensor  # (B, 1 + P, D), before the last layer norm, as stock
    pooler_output: Tensor  # (B, D), the class token after the last layer norm
    hidden_states: tuple[Tensor, ...]  # the normalised embeddings, then each layer's output; (B, 1 + P, D)
    image_embeds: Tensor | None = None  # (B, E), not normalised


class TextEmbeddings(nn.Module):
    """A vector per token plus a vector per place."""

    def __init__(self, config: FrozenDict):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        initialize(self.token_embedding, 0.02 * config.initializer_factor)
        initialize(self.position_embedding, 0.01 * config.initializer_factor)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, L) to (B, L, D)."""
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class TextEncoder(ModelMixin, ConfigMixin):
    """Text tower: tokens in, features per token and for the whole text out.

    OpenAI's CLIP-L uses quick_gelu, OpenCLIP's H and bigG gelu. With a projection the tower itself is `text_model`, one
    level down, because that is where the state-dict keys of the stock class have it; `tower` finds it in both cases.
    `initializer_range`, `pad_token_id` and `bos_token_id` are only recorded, for who reads the configuration.
    """

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        projection_dim: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 49406,
        eos_token_id: int = 49407,
        with_projection: bool = False,
    ):
        super().__init__()
        config = self.config
        if with_projection:
            self.text_model = TextEncoder(**known_arguments(TextEncoder, config) | {"with_projection": False})
            self.text_projection = projection_head(hidden_size, projection_dim, initializer_factor)
        else:
            self.embeddings = TextEmbeddings(config)
            self.encoder = Transformer(config)
            self.final_layer_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    @property
    def tower(self) -> "TextEncoder":
        """The tower without the projection: the same parameters, not a copy."""
        return self.text_model if self.config.with_projection else self

    def forward(self, input_ids: Tensor) -> TextOutput:
        """Encode tokenised texts.

        There is no attention mask: attention is causal, so padding, which comes last, cannot reach the text before it.

        Args:
            input_ids: (B, L) int64, L at most max_position_embeddings. Each row must hold the end-of-text token.

        Raises:
            ValueError: `input_ids` is not (B, L), or L is too long.
        """
        if self.config.with_projection:
            output = self.text_model(input_ids)
            return output._replace(text_embeds=self.text_projection(output.pooler_output))
        if input_ids.ndim != 2 or input_ids.shape[1] > self.config.max_position_embeddings:
            allowed = f"(B, L) with L up to {self.config.max_position_embeddings}"
            raise ValueError(f"input_ids must be {allowed}, got {tuple(input_ids.shape)}")
        hidden_states = self.encoder(self.embeddings(input_ids), causal=True)
        last_hidden_state = self.final_layer_norm(hidden_states[-1])
        rows = torch.arange(len(input_ids), device=input_ids.device)
        pooler_output = last_hidden_state[rows, self.end_positions(input_ids)]  # (B, D)
        return TextOutput(last_hidden_state, pooler_output, hidden_states)

    def end_positions(self, input_ids: Tensor) -> Tensor:
        """Where each text ends, (B,): the place of the first end-of-text token.

        Most published configurations, Stable Diffusion's among them, say eos_token_id 2, which is a mistake: the token
        is 49407, the highest of CLIP's vocabulary. For them the highest id of the row is taken, as OpenAI's own code
        does. For the others it is not, because tokens added later (textual inversion) have higher ids.
        """
        if self.config.eos_token_id == LEGACY_EOS_TOKEN_ID:
            return input_ids.argmax(-1)  # the first of equals: padding may be the same token
        return (input_ids == self.config.eos_token_id).int().argmax(-1)

    def skip_layers(self, output: TextOutput, clip_skip: int) -> Tensor:
        """Features from `clip_skip` layers before the last one, normalised by the final layer norm, (B, L, D).

        Raises:
            ValueError: the tower has no such layer.
        """
        if not 0 <= clip_skip < len(output.hidden_states):
            raise ValueError(f"clip_skip must lie in [0, {len(output.hidden_states) - 1}], got {clip_skip}")
        return self.tower.final_layer_norm(output.hidden_states[-1 - clip_skip])


class ImageEmbeddings(nn.Module):
    """A learned class token and a vector per patch, plus a vector per place."""

    def __init__(self, config: FrozenDict):
        super().__init__()
        width, patch_size = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch_size, stride=patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + (config.image_size // patch_size) ** 2, width)
        nn.init.normal_(self.class_embedding, std=config.initializer_factor * width**-0.5)
        initialize(self.patch_embedding, config.initializer_factor * config.initializer_range)
        initialize(self.position_embedding, config.initializer_factor * config.initializer_range)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 1 + P, D)."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (B, P, D)
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)  # (B, 1, D)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding.weight


class ImageTower(nn.Module):
    """Image tower without the projection. `pre_layrnorm` is misspelt in every saved file."""

    def __init__(self, config: FrozenDict):
        super().__init__()
        self.config = config
        self.embeddings = ImageEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Transformer(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> ImageOutput:
        """Encode images (B, 3, image_size, image_size): each patch has its learned place, so no other size fits."""
        channels, size = self.config.num_channels, self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (channels, size, size):
            raise ValueError(f"pixel_values must be (B, {channels}, {size}, {size}), got {tuple(pixel_values.shape)}")
        hidden_states = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)), causal=False)
        pooler_output = self.post_layernorm(hidden_states[-1][:, 0])  # (B, D)
        return ImageOutput(hidden_states[-1], pooler_output, hidden_states)


class ImageEncoder(ModelMixin, ConfigMixin):
    """Image tower and projection: a vision transformer over square patches of an image of one fixed size."""

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        projection_dim: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 32,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
    ):
        super().__init__()
        self.vision_model = ImageTower(self.config)
        self.visual_projection = projection_head(hidden_size, projection_dim, initializer_factor)

    def forward(self, pixel_values: Tensor) -> ImageOutput:
        """Encode images.

        Args:
            pixel_values: (B, 3, image_size, image_size), as `normalize_for_clip` makes them.

        Raises:
            ValueError: `pixel_values` has another shape.
        """
        output = self.vision_model(pixel_values)
        return output._replace(image_embeds=self.visual_projection(output.pooler_output))


def projection_head(width: int, projection_dim: int, initializer_factor: float = 1.0) -> nn.Linear:
    """The map from a tower's width D to the shared width E, without a bias."""
    head = nn.Linear(width, projection_dim, bias=False)
    initialize(head, initializer_factor * width**-0.5)
    return head


def known_arguments(component: type, config: dict[str, Any]) -> dict[str, Any]:
    """The part of a stock configuration that the constructor takes; the rest is transformers' bookkeeping."""
    names = inspect.signature(component.__init__).parameters
    return {name: value for name, value in config.items() if name in names}
