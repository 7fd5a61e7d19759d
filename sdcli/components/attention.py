"""Attention over the pixels of a feature map, among themselves and towards the text.

B batch, C channels, H W rows and columns, L = H * W pixels, S text tokens, D channels of one head. The modules carry
stock diffusers' names, so that weights and adapters of other tools fit.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdcli.components.layers import Checkpointed, attend

KeysValues = tuple[Tensor, Tensor]  # keys and values of one attention, each (B, heads, S, D)


@functools.cache
def convolutions_are_faster() -> bool:
    """Whether the CPU has AVX-512, of which oneDNN makes use on every processor, and MKL on Intel's alone."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class Linear(nn.Linear):
    """A linear layer over tokens, on some CPUs as the convolution of 1x1 pixels that it also is.

    PyTorch gives convolutions to oneDNN and products of matrices in float32 to MKL, which on processors with AVX-512 of
    other makers than Intel takes up to twice the time, forwards and backwards. Those in bf16 go to oneDNN anyway.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C_in) to (B, L, C_out)."""
        if tokens.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not convolutions_are_faster():
            return super().forward(tokens)
        pixels = tokens.transpose(1, 2).unsqueeze(2)  # (B, C_in, 1, L), in memory still channels last
        return nn.functional.conv2d(pixels, self.weight[:, :, None, None], self.bias).squeeze(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention of pixels to pixels, or to the text.

    Args:
        channels: C, of the pixels; every head sees C / heads of them.
        heads: number of heads.
        text_channels: width of the text features; None for attention among the pixels.
        bias: whether queries, keys and values have one.

    Reference: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.
    """

    def __init__(self, channels: int, heads: int, text_channels: int | None = None, bias: bool = False):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} attention heads")
        source_channels = channels if text_channels is None else text_channels
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=bias)
        self.to_k = Linear(source_channels, channels, bias=bias)
        self.to_v = Linear(source_channels, channels, bias=bias)
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def project(self, source: Tensor) -> KeysValues:
        """Keys and values of (B, S, C_source), ready for any number of queries."""
        return self._split(self.to_k(source)), self._split(self.to_v(source))

    def forward(self, tokens: Tensor, keys_values: KeysValues | None = None) -> Tensor:
        """(B, L, C) to (B, L, C); without `keys_values` the tokens attend to one another."""
        key, value = self.project(tokens) if keys_values is None else keys_values
        query = self._split(self.to_q(tokens))
        return self.to_out[0](attend(query, key, value).transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, D)


class GEGLU(nn.Module):
    """A linear layer whose output is gated by the GELU of its other half. Shazeer 2020 (arXiv:2002.05202), eq. 6."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = Linear(in_channels, 2 * out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C_in) to (B, L, C_out)."""
        linear, gate = self.proj(tokens).chunk(2, dim=-1)
        return linear * nn.functional.gelu(gate)


class FeedForward(nn.Module):
    """Two layers on each pixel by itself, four times as wide in between."""

    def __init__(self, channels: int):
        super().__init__()
        # Where stock has its dropout stands a module without weights, so that the last layer is net.2 as on disk.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        return self.net(tokens)


class TransformerBlock(nn.Module):
    """Attention among the pixels, attention to the text, then a feed-forward layer, each added to its input.

    Args:
        channels: C, of the pixels.
        heads: number of attention heads.
        text_channels: width of the text features.
    """

    def __init__(self, channels: int, heads: int, text_channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, text_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, text: KeysValues) -> Tensor:
        """(B, L, C), and the text's keys and values for `attn2`, to (B, L, C)."""
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), text)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(Checkpointed):
    """Transformer blocks over the pixels of a feature map, added to it.

    Args:
        channels: C, of the feature map.
        heads: number of attention heads.
        text_channels: width of the text features.
        layers: number of transformer blocks.
        groups: groups of the group norm.
        linear: project in and out by linear layers (SD 2, SDXL) rather than by 1x1 convolutions (SD 1). The same
            function, but weights of other shapes.

    Reference: Rombach et al. 2022 (arXiv:2112.10752), section 3.3 and appendix E.2.1.
    """

    def __init__(self, channels: int, heads: int, text_channels: int, layers: int, groups: int, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, text_channels) for _ in range(layers))
        self.proj_out = Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def project_text(self, encoder_hidden_states: Tensor) -> list[KeysValues]:
        """Keys and values of the text for every block, from (B, S, C_text)."""
        return [block.attn2.project(encoder_hidden_states) for block in self.transformer_blocks]

    def forward(self, hidden: Tensor, text: list[KeysValues]) -> Tensor:
        """(B, C, H, W), and what `project_text` gave, to (B, C, H, W)."""
        size = hidden.shape[2:]
        if self.linear:
            tokens = self.proj_in(self.norm(hidden).flatten(2).transpose(1, 2))  # (B, L, C)
        else:
            tokens = self.proj_in(self.norm(hidden)).flatten(2).transpose(1, 2)  # (B, L, C)
        for block, keys_values in zip(self.transformer_blocks, text, strict=True):
            tokens = self.run(block, tokens, keys_values)
        if self.linear:
            return hidden + self.proj_out(tokens).transpose(1, 2).unflatten(2, size)
        return hidden + self.proj_out(tokens.transpose(1, 2).unflatten(2, size))


class SpatialAttention(Attention):
    """Attention among the pixels of a feature map, added to it: for networks that read no text.

    Args:
        channels: C, of the feature map.
        heads: number of attention heads.
        groups: groups of the group norm.
        eps: of the group norm.

    Reference: Ho et al. 2020 (arXiv:2006.11239), appendix B.
    """

    def __init__(self, channels: int, heads: int, groups: int, eps: float):
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)

    def project_text(self, encoder_hidden_states: Tensor | None) -> list[KeysValues]:
        """Nothing: these pixels attend to one another only."""
        return []

    def forward(self, hidden: Tensor, text: Sequence[KeysValues] = ()) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        # In memory as tokens too: PyTorch's kernel for other layouts holds all L x L scores at once.
        tokens = self.group_norm(hidden).flatten(2).transpose(1, 2).contiguous()  # (B, L, C)
        return hidden + super().forward(tokens).transpose(1, 2).unflatten(2, hidden.shape[2:])
