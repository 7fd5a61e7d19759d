"""The VAE: images to latents and back. Knows nothing of noise, text or files.

B batch, C channels, H W rows and columns of pixels, h w of latents (H/stride, W/stride), L = h*w.
Reference: Kingma & Welling 2013 (arXiv:1312.6114); Rombach et al. 2021 (arXiv:2112.10752), section 3.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# By name, on purpose: diffusers looks these names up in this module when it reloads a saved pipeline.
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from sdcli.components.attention import SpatialAttention
from sdcli.components.divergence import kl_gaussian
from sdcli.components.layers import Downsample, ResnetBlock, Upsample
from sdcli.components.tiling import run_in_tiles

NORM_EPS = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # keeps exp() finite, as in Rombach et al.'s code


@dataclass(frozen=True)
class DiagonalGaussian:
    """The normal distribution of latents that the encoder sees in an image, not yet scaled.

    Attributes:
        mean: (B, C, h, w).
        log_variance: natural logarithm of the variance, (B, C, h, w).
    """

    mean: Tensor
    log_variance: Tensor

    @property
    def mode(self) -> Tensor:
        """The most likely latents, (B, C, h, w)."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """The latents that standard normal `noise`, (B, C, h, w), stands for: the reparameterisation trick."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal prior in nats, one per image, (B,)."""
        return kl_gaussian(self.mean, self.log_variance).sum(dim=(1, 2, 3))


class Middle(nn.Module):
    """Two resnet blocks at the lowest resolution, with attention between them."""

    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList(
            [SpatialAttention(channels, heads=1, groups=groups, eps=NORM_EPS)] if attention else []
        )
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, None, groups, NORM_EPS) for _ in range(2)])

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        hidden = self.resnets[0](hidden)
        for attention in self.attentions:
            hidden = attention(hidden)
        return self.resnets[1](hidden)


class EncoderLevel(nn.Module):
    """Resnet blocks at one resolution, then (but for the lowest) half of it."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList([ResnetBlock(width, out_channels, None, groups, NORM_EPS) for width in widths])
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels, padding=0)])

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/2, W/2), or the same sides on the last level."""
        for layer in (*self.resnets, *self.downsamplers):
            hidden = layer(hidden)
        return hidden


class DecoderLevel(nn.Module):
    """Resnet blocks at one resolution, then (but for the highest) twice of it."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList([ResnetBlock(width, out_channels, None, groups, NORM_EPS) for width in widths])
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_channels)])

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, 2H, 2W), or the same sides on the last level."""
        for layer in (*self.resnets, *self.upsamplers):
            hidden = layer(hidden)
        return hidden


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) to twice the latent channels, (B, 2C, h, w)."""

    def __init__(
        self, in_channels: int, moment_channels: int, widths: tuple[int, ...], layers: int, groups: int, attention: bool
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            EncoderLevel(widths[max(level - 1, 0)], width, layers, groups, last=level == len(widths) - 1)
            for level, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], groups, attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], moment_channels, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2C, h, w)."""
        hidden = self.conv_in(pixel_values)
        for level in self.down_blocks:
            hidden = level(hidden)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(self.mid_block(hidden))))


class Decoder(nn.Module):
    """Latents (B, C, h, w) to pixels, (B, 3, H, W)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...],
        layers: int,
        groups: int,
        attention: bool,
    ):
        super().__init__()
        rising = widths[::-1]  # from the lowest resolution to the highest
        self.conv_in = nn.Conv2d(in_channels, rising[0], 3, padding=1)
        self.mid_block = Middle(rising[0], groups, attention)
        self.up_blocks = nn.ModuleList(
            DecoderLevel(rising[max(level - 1, 0)], width, layers, groups, last=level == len(rising) - 1)
            for level, width in enumerate(rising)
        )
        self.conv_norm_out = nn.GroupNorm(groups, rising[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(rising[-1], out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, H, W)."""
        hidden = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            hidden = level(hidden)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(hidden)))


class VAE(ModelMixin, ConfigMixin):
    """Stock AutoencoderKL: its arguments, its config.json and its weights, both ways.

    Latents are the unscaled ones here; whoever diffuses them multiplies by `config.scaling_factor`.

    Args:
        in_channels: of the image.
        out_channels: of the image.
        down_block_types: one "DownEncoderBlock2D" per level; nothing else exists.
        up_block_types: one "UpDecoderBlock2D" per level; nothing else exists.
        block_out_channels: width of each level, the highest resolution first.
        layers_per_block: resnet blocks per level of the encoder; the decoder has one more.
        act_fn: "silu".
        latent_channels: C.
        norm_num_groups: groups of the group norms.
        sample_size: side of the training images, in pixels; also the side of a tile.
        scaling_factor: what brings latents to about unit variance.
        shift_factor: kept for the file; None in every Stable Diffusion VAE.
        latents_mean: kept for the file.
        latents_std: kept for the file.
        force_upcast: whether half precision overflows in this VAE, so that it should run in float32.
        use_quant_conv: a 1x1 convolution behind the encoder.
        use_post_quant_conv: a 1x1 convolution before the decoder.
        mid_block_add_attention: attention at the lowest resolution.

    Raises:
        ValueError: a block type, activation or factor that no Stable Diffusion VAE has.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ):
        super().__init__()
        only = {"DownEncoderBlock2D", "UpDecoderBlock2D", "silu", None}
        for value in (*down_block_types, *up_block_types, act_fn, shift_factor):
            if value not in only:
                raise ValueError(f"no Stable Diffusion VAE is built with {value!r}")
        widths, shape = tuple(block_out_channels), (layers_per_block, norm_num_groups, mid_block_add_attention)
        self.encoder = Encoder(in_channels, 2 * latent_channels, widths, *shape)
        self.decoder = Decoder(latent_channels, out_channels, widths, *shape)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else nn.Identity()
        self.stride = 2 ** (len(widths) - 1)  # pixels per latent, per side
        self.tiled = False

    def enable_tiling(self) -> None:
        """Work in overlapping tiles of `sample_size` pixels, so that memory does not grow with the image."""
        self.tiled = True

    def disable_tiling(self) -> None:
        """Work on whole images."""
        self.tiled = False

    @apply_forward_hook  # as before `forward`: a model that waits off the GPU comes back for it
    def encode(self, pixel_values: Tensor) -> DiagonalGaussian:
        """The distribution of latents of images (B, 3, H, W) in [-1, 1], with H and W multiples of `stride`."""
        height, width = pixel_values.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"height and width must be multiples of {self.stride}, got {height}x{width}")
        moments = self._in_tiles(
            self._moments, pixel_values, self.config.sample_size, self._latent_tile
        )  # (B, 2C, h, w)
        mean, log_variance = moments.chunk(2, dim=1)  # each (B, C, h, w)
        return DiagonalGaussian(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    @apply_forward_hook
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about in [-1, 1], of unscaled latents (B, C, h, w)."""
        return self._in_tiles(self._pixels, latents, self._latent_tile, self.config.sample_size)

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[Tensor, DiagonalGaussian]:
        """Images (B, 3, H, W) rebuilt from latents drawn with `noise` (or from their mean), and the posterior."""
        posterior = self.encode(pixel_values)
        return self.decode(posterior.mode if noise is None else posterior.sample(noise)), posterior

    @property
    def _latent_tile(self) -> int:
        return self.config.sample_size // self.stride

    def _moments(self, pixel_values: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixel_values))

    def _pixels(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def _in_tiles(self, network: Callable[[Tensor], Tensor], picture: Tensor, tile_in: int, tile_out: int) -> Tensor:
        if self.tiled and max(picture.shape[-2:]) > tile_in:
            return run_in_tiles(network, picture, tile_in, tile_out)
        return network(picture)
