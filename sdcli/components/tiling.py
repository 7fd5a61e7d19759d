"""A picture of any size through a network that takes one size, in overlapping tiles.

B batch, C D channels, H W rows and columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TILE_OVERLAP = 0.25  # share of a tile's side that it has in common with its neighbour


def run_in_tiles(network: Callable[[Tensor], Tensor], picture: Tensor, tile_in: int, tile_out: int) -> Tensor:
    """Put a picture through a network tile by tile and blend the overlaps, so that no seam shows.

    Args:
        network: (B, C, tile_in, tile_in) to (B, D, tile_out, tile_out).
        picture: (B, C, H, W), pixels or latents.
        tile_in: side of a tile before the network.
        tile_out: side of a tile behind it.

    Returns:
        (B, D, H * tile_out / tile_in, W * tile_out / tile_in).
    """
    height, width = picture.shape[-2:]
    stride = int(tile_in * (1 - TILE_OVERLAP))
    overlap = int(tile_out * TILE_OVERLAP)
    kept = tile_out - overlap
    strips, above = [], []
    for top in range(0, height, stride):
        row: list[Tensor] = []
        for column, left in enumerate(range(0, width, stride)):
            tile = network(picture[..., top : top + tile_in, left : left + tile_in])
            if above:
                tile = blend(above[column], tile, overlap, dim=-2)
            if row:
                tile = blend(row[-1], tile, overlap, dim=-1)
            row.append(tile)
        strips.append(torch.cat([tile[..., :kept, :kept] for tile in row], dim=-1))
        above = row
    return torch.cat(strips, dim=-2)


def blend(before: Tensor, tile: Tensor, overlap: int, dim: int) -> Tensor:
    """A tile whose first `overlap` rows (dim -2) or columns (dim -1) fade in from the end of the tile before it."""
    overlap = min(overlap, before.shape[dim], tile.shape[dim])
    shape = (-1, 1) if dim == -2 else (-1,)
    weight = (torch.arange(overlap, device=tile.device, dtype=tile.dtype) / overlap).view(shape)
    end = before.narrow(dim, before.shape[dim] - overlap, overlap)
    faded = end * (1 - weight) + tile.narrow(dim, 0, overlap) * weight
    return torch.cat([faded, tile.narrow(dim, overlap, tile.shape[dim] - overlap)], dim=dim)
