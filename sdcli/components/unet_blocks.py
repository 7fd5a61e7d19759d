"""The parts of the UNet: the embedding of the time, and the stages of the way down, the middle and the way up.

B batch, C channels, H W rows and columns. A stage is given makers of its residual blocks and attention modules, and an
iterator from which each attention module takes the keys and values of its text.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sdcli.components.layers import Checkpointed, Downsample, Upsample, VectorLinear


def timestep_embedding(timesteps: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sines and cosines of geometrically falling frequency, in float32.

    Args:
        timesteps: (B,), fractions allowed.
        channels: of the embedding, even.
        flip_sin_to_cos: cosines first.
        freq_shift: 1 ends at a frequency of exactly 1 / 10000, 0 one factor before it.

    Returns:
        (B, channels).

    Reference: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10_000) * exponents)
    waves = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(waves, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two layers that turn an embedding of numbers into what the residual blocks are told.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        condition_channels: width of a condition added to the input, such as the embedded guidance scale of a latent
            consistency model (Luo et al. 2023, arXiv:2310.04378, section 4.3); None for none.
    """

    def __init__(self, in_channels: int, out_channels: int, condition_channels: int | None = None):
        super().__init__()
        self.linear_1 = VectorLinear(in_channels, out_channels)
        self.linear_2 = VectorLinear(out_channels, out_channels)
        if condition_channels is not None:
            self.cond_proj = VectorLinear(condition_channels, in_channels, bias=False)

    def forward(self, embedding: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, C_in), and (B, C_condition), to (B, C_out)."""
        if condition is not None:
            embedding = embedding + self.cond_proj(condition)
        return self.linear_2(nn.functional.silu(self.linear_1(embedding)))


class Stage(Checkpointed):
    """One resolution: residual blocks, each followed by attention where the stage has it.

    Args:
        in_channels: of each residual block.
        out_channels: of every residual block.
        resnet: makes a residual block from its input and output channels.
        attention: makes an attention module for so many channels; None for a stage without.
    """

    def __init__(self, in_channels: list[int], out_channels: int, resnet: Callable, attention: Callable | None):
        super().__init__()
        self.out_channels = out_channels
        self.resnets = nn.ModuleList(resnet(channels, out_channels) for channels in in_channels)
        self.attentions = nn.ModuleList(attention(out_channels) for _ in in_channels if attention)

    def layer(self, index: int, hidden: Tensor, temb: Tensor | None, text: Iterator) -> Tensor:
        """One residual block and its attention."""
        hidden = self.run(self.resnets[index], hidden, temb)
        return self.attentions[index](hidden, next(text)) if self.attentions else hidden


class DownBlock(Stage):
    """A stage of the way down; all its outputs are kept for the way up. `last` is the lowest one."""

    def __init__(self, *stage, last: bool):
        super().__init__(*stage)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(self.out_channels)])

    def forward(self, hidden: Tensor, temb: Tensor | None, text: Iterator) -> list[Tensor]:
        """(B, C_in, H, W) to the outputs of all layers; what goes further down comes last."""
        outputs = []
        for index in range(len(self.resnets)):
            hidden = self.layer(index, hidden, temb, text)
            outputs.append(hidden)
        return outputs + [downsample(hidden) for downsample in self.downsamplers]


class UpBlock(Stage):
    """A stage of the way up; every layer takes in one output of the way down. `last` is the highest one."""

    def __init__(self, *stage, last: bool):
        super().__init__(*stage)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(self.out_channels)])

    def forward(
        self, hidden: Tensor, skips: list[Tensor], temb: Tensor | None, text: Iterator, size: torch.Size
    ) -> Tensor:
        """(B, C_in, H, W), and the kept outputs, oldest first, to (B, C_out, *size)."""
        for index, skip in enumerate(reversed(skips)):
            hidden = self.layer(index, torch.cat([hidden, skip], dim=1), temb, text)
        for upsample in self.upsamplers:
            hidden = upsample(hidden, size)
        return hidden


class MidBlock(Checkpointed):
    """The lowest stage: one residual block, or two with attention between them. Arguments as in `Stage`."""

    def __init__(self, channels: int, resnet: Callable, attention: Callable | None):
        super().__init__()
        self.attentions = nn.ModuleList([attention(channels)] if attention else [])
        self.resnets = nn.ModuleList(resnet(channels, channels) for _ in range(1 + len(self.attentions)))

    def forward(self, hidden: Tensor, temb: Tensor | None, text: Iterator) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        hidden = self.run(self.resnets[0], hidden, temb)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            hidden = self.run(resnet, attention(hidden, next(text)), temb)
        return hidden
