"""What several commands of `sdcli evaluate` share: each flag once, its check, and loading the model at a size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.settings import LARGEST_SEED, check_range

Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of pictures, as `sdcli train` reads it.")]
NumPictures = Annotated[
    int | None, typer.Option("-n", "--num-pictures", metavar="N", help="Take N of them, evenly (default: all).")
]
Where = Annotated[
    list[str] | None, typer.Option("--where", metavar="COLUMN=VALUE", help="Only such rows of metadata; repeatable.")
]
Resolution = Annotated[
    int | None, typer.Option("--resolution", metavar="N", help="Side in pixels (default: the model's own).")
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Pictures at a time; changes no figure.")]
FixedSeed = Annotated[int, typer.Option("-s", "--seed", metavar="N", help="Decides the noise; picture i has N + i.")]
NoCaptions = Annotated[bool, typer.Option("--no-captions", help="Tell the UNet the empty text of all pictures.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut captions that are too long, instead of refusing.")]


def check_common(batch_size: int, seed: int = 0) -> None:
    """Refuse what no command can work with."""
    check_range("--batch-size", batch_size, 1, 4096)
    check_range("--seed", seed, 0, LARGEST_SEED - 2**32)


def load_sized_pipeline(spec: Any, resolution: int | None, device: str, precision: str) -> tuple[Any, tuple[int, int]]:
    """A model, and the size that pictures are brought to, which its networks can divide."""
    from sdcli.checkpoints import load_pipeline
    from sdcli.device import choose_placement
    from sdcli.evaluation.pictures import fitting_size

    pipeline = load_pipeline(spec, choose_placement(device, precision))
    return pipeline, fitting_size(pipeline, resolution or spec.defaults.width)
