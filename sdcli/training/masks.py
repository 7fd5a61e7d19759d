"""What a UNet for inpainting has to paint anew, drawn by chance."""

import torch
from torch import Tensor

WHOLE_SHARE = 0.25  # of the masks that cover everything, so that the UNet also paints from nothing
LEAST_SIDE, MOST_SIDE = 0.2, 0.9  # of a shape, as shares of the picture's


def draw_masks(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Masks as people draw them: a rectangle or an ellipse anywhere, or everything.

    Args:
        count: B.
        size: width and height in pixels.
        generator: of the chance.

    Returns:
        (B, 1, H, W), 1 where something new is to come, else 0.
    """
    width, height = size
    # Each mask takes as many numbers, whatever it becomes.
    chance = torch.rand(count, 6, generator=generator)
    whole, round_, across, down, x, y = chance.unbind(dim=1)
    sides = LEAST_SIDE + (MOST_SIDE - LEAST_SIDE) * torch.stack([across, down])  # (2, B)
    centres = sides / 2 + (1 - sides) * torch.stack([x, y])
    columns = (torch.arange(width) + 0.5) / width
    rows = (torch.arange(height) + 0.5) / height
    from_x = ((columns[None] - centres[0, :, None]) / (sides[0, :, None] / 2)).abs()[:, None, :]  # (B, 1, W)
    from_y = ((rows[None] - centres[1, :, None]) / (sides[1, :, None] / 2)).abs()[:, :, None]  # (B, H, 1)
    ellipse, rectangle = from_x**2 + from_y**2 <= 1, torch.maximum(from_x, from_y) <= 1
    masks = torch.where((round_ < 0.5)[:, None, None], ellipse, rectangle)
    return (masks | (whole < WHOLE_SHARE)[:, None, None])[:, None].float()
