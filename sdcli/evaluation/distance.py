"""How near a set of pictures is to another: Fréchet distance, precision and recall in the features of an image tower.

N pictures, D width of the features. These are the features of a CLIP of ours, so the distance is no FID, which is
defined with those of one Inception network and compared with numbers from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NEIGHBOUR = 3  # to which a picture's sphere reaches; Kynkäänniemi et al. 2019, section 3
LEAST = NEIGHBOUR + 1  # pictures, for one to have such a neighbour


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Distance of the Gaussians that have the mean and covariance of two sets: 0 for equals, symmetric.

    ‖m − m'‖² + tr(C + C' − 2 (C C')^½). With C = Aᵀ A and C' = A'ᵀ A', where A are the centred features over √(N − 1),
    the trace of the root is the sum of the singular values of A A'ᵀ: no root of a matrix is taken, and fewer pictures
    than features are no trouble.

    Args:
        features: (N, D).
        others: (M, D).

    Reference: Fréchet 1957; Dowson and Landau 1982 (doi:10.1016/0047-259X(82)90077-X), eq. 4; Heusel et al. 2017
    (arXiv:1706.08500), eq. 6.
    """
    parts = []
    for each in (features.double(), others.double()):
        mean = each.mean(0)
        parts.append((mean, (each - mean) / (len(each) - 1) ** 0.5))
    (mean, root), (other_mean, other_root) = parts
    shared = torch.linalg.svdvals(root @ other_root.T).sum()
    distance = (mean - other_mean).square().sum() + root.square().sum() + other_root.square().sum() - 2 * shared
    return max(float(distance), 0.0)


def share_within(features: Tensor, others: Tensor, neighbour: int = NEIGHBOUR) -> float:
    """Share of pictures that lie within the manifold of another set.

    That is the union of spheres around each of the others, each as large as to reach its k-th nearest neighbour.

    Args:
        features: whose share, (N, D).
        others: whose manifold, (M, D) with M > k.
        neighbour: k.

    Raises:
        ValueError: the others are too few.

    Reference: Kynkäänniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2: precision is that of generated pictures in the
    manifold of real ones, recall the reverse.
    """
    if len(others) <= neighbour:
        raise ValueError(f"more than {neighbour} pictures are needed, got {len(others)}")
    features, others = features.double(), others.double()
    radii = torch.cdist(others, others).kthvalue(neighbour + 1, dim=1).values  # the nearest is the picture itself
    return float((torch.cdist(features, others) <= radii).any(1).double().mean())


@dataclass(frozen=True)
class SampleFigures:
    """Everything measured of generated pictures against real ones."""

    pictures: int
    samples: int
    features: int
    frechet_distance: float
    precision: float
    recall: float

    def figures(self) -> dict[str, Any]:
        """As JSON types."""
        return dict(vars(self))


def compare_features(real: Tensor, generated: Tensor) -> SampleFigures:
    """All figures of the features of generated pictures (M, D) against those of real ones (N, D)."""
    return SampleFigures(
        pictures=len(real),
        samples=len(generated),
        features=real.shape[1],
        frechet_distance=frechet_distance(real, generated),
        precision=share_within(generated, real),
        recall=share_within(real, generated),
    )
