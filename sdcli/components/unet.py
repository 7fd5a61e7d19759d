"""The UNet: noisy latents, a timestep and text to the output of a diffusion model.

Constructor arguments, config.json and weights are those of diffusers' UNet2DConditionModel, so files go both ways.
B batch, C channels, H W rows and columns, S text tokens.

Reference: Ronneberger et al. 2015 (arXiv:1505.04597); Ho et al. 2020 (arXiv:2006.11239), appendix B; Rombach et al.
2022 (arXiv:2112.10752), section 3.3; for SDXL, Podell et al. 2023 (arXiv:2307.01952), section 2.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

# By name, on purpose: diffusers looks these names up in this module when it reloads a saved pipeline.
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sdcli.components.attention import KeysValues, SpatialAttention, SpatialTransformer
from sdcli.components.layers import ResnetBlock
from sdcli.components.unet_blocks import DownBlock, MidBlock, TimestepEmbedding, UpBlock, timestep_embedding
from sdcli.components.unet_config import DOWN_BLOCKS, MID_BLOCKS, UP_BLOCKS, check_config, per_level

TextKeysValues = list[list[KeysValues]]  # for every attention module in the order of execution, for each of its blocks


def check_given(name: str, value: object, takes: bool) -> None:
    """Raise a ValueError where an input that the network takes is missing, or one that it does not take is given."""
    if (value is not None) != takes:
        raise ValueError(f"this UNet {'needs' if takes else 'takes no'} {name}")


class UNet(ModelMixin, ConfigMixin):
    """The network that tells, of a noisy sample, the noise in it (or the velocity, or the clean sample).

    Args, those that matter; the others are here so that any stock config.json is either understood or refused:
        sample_size: rows and columns it was trained on; informs pipelines only.
        in_channels: 4 of latents, 9 for inpainting, 3 of pixels, 1 of grey ones.
        down_block_types: CrossAttnDownBlock2D reads the text, AttnDownBlock2D and DownBlock2D do not.
        attention_head_dim: the *number of heads*, of every level or of each: a misnomer that stock files have kept.
            Only beside the Attn* blocks it is what it says, the channels of one head.
        cross_attention_dim: width of the text features.
        transformer_layers_per_block: transformer blocks of an attention module, of every level or of each.
        upcast_attention: asks for attention scores in float32, which `Attention` always has.
        num_class_embeds: number of classes of a class-conditional network.
        addition_embed_type: "text_time" where pooled text and picture sizes are told as well (SDXL).
        time_embedding_type: "positional"; "none", which stock does not have, is a network that is not told the time.
        time_cond_proj_dim: width of `timestep_cond` (latent consistency models).

    Raises:
        ValueError: an argument asks for what no supported model needs.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: Sequence[str] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        mid_block_type: str = "UNetMidBlock2DCrossAttn",
        up_block_types: Sequence[str] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        only_cross_attention: bool = False,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        transformer_layers_per_block: int | Sequence[int] = 1,
        reverse_transformer_layers_per_block: None = None,
        encoder_hid_dim: None = None,
        encoder_hid_dim_type: None = None,
        attention_head_dim: int | Sequence[int] = 8,
        num_attention_heads: None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: None = None,
        time_embedding_act_fn: None = None,
        timestep_post_act: None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: None = None,
        cross_attention_norm: None = None,
        addition_embed_type_num_heads: int = 64,
    ):
        super().__init__()
        check_config(self.config)
        temb_channels = None if time_embedding_type == "none" else 4 * block_out_channels[0]
        resnet = partial(ResnetBlock, temb_channels=temb_channels, groups=norm_num_groups, eps=norm_eps)
        lowest = len(block_out_channels) - 1
        layers = per_level(layers_per_block, lowest + 1)

        if temb_channels is not None:
            self.time_embedding = TimestepEmbedding(block_out_channels[0], temb_channels, time_cond_proj_dim)
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, temb_channels)
        if addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(projection_class_embeddings_input_dim, temb_channels)

        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1)
        skips = [block_out_channels[0]]  # channels of all that the way down keeps
        self.down_blocks = nn.ModuleList()
        for level, channels in enumerate(block_out_channels):
            widths = [skips[-1]] + [channels] * (layers[level] - 1)
            attention = self._attention(DOWN_BLOCKS[down_block_types[level]], level)
            self.down_blocks.append(DownBlock(widths, channels, resnet, attention, last=level == lowest))
            skips += [channels] * (layers[level] + (level < lowest))

        self.mid_block = MidBlock(channels, resnet, self._attention(MID_BLOCKS[mid_block_type], lowest))

        self.up_blocks = nn.ModuleList()
        for level, block_type in zip(range(lowest, -1, -1), up_block_types, strict=True):
            below, channels = channels, block_out_channels[level]
            widths = [width + skips.pop() for width in [below] + [channels] * layers[level]]
            attention = self._attention(UP_BLOCKS[block_type], level)
            self.up_blocks.append(UpBlock(widths, channels, resnet, attention, last=level == 0))
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def _attention(self, kind: str | None, level: int) -> Callable[[int], nn.Module] | None:
        """What makes attention modules of a kind in unet_config's tables, from their channels."""
        config, levels = self.config, len(self.config.block_out_channels)
        if kind == "self":
            return lambda channels: SpatialAttention(
                channels, channels // config.attention_head_dim, config.norm_num_groups, config.norm_eps
            )
        if kind == "text":
            return partial(
                SpatialTransformer,
                heads=per_level(config.attention_head_dim, levels)[level],  # misnamed, see above
                text_channels=config.cross_attention_dim,
                layers=per_level(config.transformer_layers_per_block, levels)[level],
                groups=config.norm_num_groups,
                linear=config.use_linear_projection,
            )
        return None

    def project_text(self, encoder_hidden_states: Tensor | None) -> TextKeysValues:
        """Keys and values of the text for every attention: computed once, they serve all steps of a prompt.

        Args:
            encoder_hidden_states: text features, (B, S, cross_attention_dim); None for a network that reads no text.

        Raises:
            ValueError: the features are missing, have another width, or are given to a network that reads no text.
        """
        modules = [module for stage in self._stages() for module in stage.attentions]
        width = self.config.cross_attention_dim
        check_given("text", encoder_hidden_states, any(isinstance(module, SpatialTransformer) for module in modules))
        if encoder_hidden_states is not None and encoder_hidden_states.shape[2:] != (width,):
            shape = tuple(encoder_hidden_states.shape)
            raise ValueError(f"encoder_hidden_states must be (B, S, {width}), got {shape}")
        return [module.project_text(encoder_hidden_states) for module in modules]

    def _stages(self) -> list[nn.Module]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def embed(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor | None:
        """What every residual block is told of the time and the like, (B, 4 * C_0), after its activation.

        Arguments as in `forward`; None for a network that is told nothing. Where all of a batch are told the same it is
        (1, 4 * C_0): it is computed once, and its last bits do not depend on how many there are.
        """
        config = self.config
        check_given("class_labels", class_labels, config.num_class_embeds is not None)
        check_given("added_cond_kwargs", added_cond_kwargs, config.addition_embed_type is not None)
        if timestep_cond is not None:  # a network that takes it can do without
            check_given("timestep_cond", timestep_cond, config.time_cond_proj_dim is not None)
        if config.time_embedding_type == "none":
            return None
        check_given("timestep", timestep, True)

        wave = partial(timestep_embedding, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)  # (1,) or (B,)
        waves = wave(timesteps, config.block_out_channels[0])
        temb = self.time_embedding(waves.to(sample.dtype), timestep_cond)
        if class_labels is not None:
            temb = temb + self.class_embedding(class_labels)
        if added_cond_kwargs is not None:
            text_embeds, time_ids = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
            sizes = wave(time_ids.flatten(), config.addition_time_embed_dim).reshape(len(text_embeds), -1)
            temb = temb + self.add_embedding(torch.cat([text_embeds, sizes], dim=-1).to(temb.dtype))
        return nn.functional.silu(temb)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | None,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        text_keys_values: TextKeysValues | None = None,
    ) -> Tensor:
        """One call of the network.

        Args:
            sample: noisy latents or pixels, (B, in_channels, H, W), of any size.
            timestep: one for all, or (B,); fractions allowed. A network that is not told the time ignores it.
            encoder_hidden_states: text features, (B, S, cross_attention_dim).
            class_labels: (B,) int64, of a class-conditional network.
            timestep_cond: embedded guidance scale, (B, time_cond_proj_dim).
            added_cond_kwargs: `text_embeds` (B, P) and `time_ids` (B, 6), or (B, 5) of the refiner, of SDXL.
            down_block_additional_residuals: of a ControlNet, one for each kept output of the way down.
            mid_block_additional_residual: of a ControlNet, for the lowest stage.
            text_keys_values: what `project_text` gave, in place of `encoder_hidden_states`.

        Returns:
            Model output, (B, out_channels, H, W).

        Raises:
            ValueError: an input has the wrong shape, is missing, or is one that this network does not take.
        """
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(f"sample must be (B, {self.config.in_channels}, H, W), got {tuple(sample.shape)}")
        controlled = mid_block_additional_residual is not None
        check_given("down_block_additional_residuals", down_block_additional_residuals, controlled)
        if text_keys_values is None:
            text_keys_values = self.project_text(encoder_hidden_states)
        elif encoder_hidden_states is not None:
            raise ValueError("text_keys_values stands in place of encoder_hidden_states: give one of them")
        text = iter(text_keys_values)
        temb = self.embed(sample, timestep, class_labels, timestep_cond, added_cond_kwargs)

        skips = [self.conv_in(sample)]
        for block in self.down_blocks:
            skips += block(skips[-1], temb, text)
        hidden = self.mid_block(skips[-1], temb, text)
        if controlled:
            hidden = hidden + mid_block_additional_residual
            pairs = zip(skips, down_block_additional_residuals, strict=True)
            skips = [skip + residual for skip, residual in pairs]
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, kept = skips[:-count], skips[-count:]
            hidden = block(hidden, kept, temb, text, size=(skips or [sample])[-1].shape[2:])
        return self.conv_out(nn.functional.silu(self.conv_norm_out(hidden)))
