"""What several networks are made of. B batch, C channels, H W rows and columns."""

from functools import partial

import torch
from torch import Tensor, nn

EQUAL_VECTORS = 4  # fewer have kernels of their own


class Checkpointed(nn.Module):
    """A module whose parts can be run again in the backward pass instead of remembering their activations.

    `ModelMixin.enable_gradient_checkpointing` finds such modules by the attribute, and gives them the function.

    Reference: Chen et al. 2016 (arXiv:1604.06174), section 4.
    """

    gradient_checkpointing = False

    def run(self, part: nn.Module, *inputs) -> Tensor:
        """`part(*inputs)`, run again in the backward pass where checkpointing is on."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(part, *inputs)
        return part(*inputs)


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, causal: bool = False) -> Tensor:
    """Values, mixed by how well their keys fit each query.

    Args:
        query: (B, heads, L, D).
        key: (B, heads, S, D).
        value: (B, heads, S, D).
        dropout: share of the weights that are left out.
        causal: a query sees the values up to its own place only.

    Returns:
        (B, heads, L, D). Every kernel behind this sums up scores in float32, which is what `upcast_attention` asks for.
        To learn in bf16 on a CPU, all is made float32 in between: the kernel for the way back in bf16 takes 13 times
        as long there.

    Reference: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1.
    """
    attention = partial(nn.functional.scaled_dot_product_attention, dropout_p=dropout, is_causal=causal)
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        return attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        return attention(query.float(), key.float(), value.float()).to(query.dtype)


class VectorLinear(nn.Linear):
    """A linear layer of vectors, of which there may be one for a whole batch.

    One is computed as several equal ones: kernels for a single vector split its sums by where in memory the weights
    lie, so that the same weights from two files would differ in the last bits.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, C_in) to (B, C_out)."""
        if len(vectors) > 1:
            return super().forward(vectors)
        return super().forward(vectors.expand(EQUAL_VECTORS, -1))[:1]


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection, told the time (if at all) between them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        temb_channels: width of the time embedding; None for a block that is not told the time.
        groups: groups of the group norms.
        eps: of the group norms.

    Reference: He et al. 2016 (arXiv:1603.05027); Ho et al. 2020 (arXiv:2006.11239), appendix B.
    """

    def __init__(self, in_channels: int, out_channels: int, temb_channels: int | None, groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = VectorLinear(temb_channels, out_channels) if temb_channels is not None else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor, temb: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W), and (B or 1, temb_channels) after its activation, to (B, C_out, H, W)."""
        skip = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        hidden = self.conv1(nn.functional.silu(self.norm1(hidden)))  # (B, C_out, H, W)
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(temb)[:, :, None, None]
        return skip + self.conv2(nn.functional.silu(self.norm2(hidden)))


class Downsample(nn.Module):
    """Half the rows and columns by a convolution of stride 2.

    Args:
        channels: of input and output.
        padding: 1 pads every side (UNet); 0 pads the bottom and the right only (VAE).
    """

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2), rounded up where `padding` is 1, down where it is 0."""
        if self.padding == 0:
            hidden = nn.functional.pad(hidden, (0, 1, 0, 1))
        return self.conv(hidden)


class Upsample(nn.Module):
    """Twice the rows and columns by repeating pixels, then a convolution.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W), or to the `size` of a skip connection that an odd side has left."""
        if size is None:
            return self.conv(nn.functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return self.conv(nn.functional.interpolate(hidden, size=size, mode="nearest"))
