"""TensorBoard and Weights & Biases, through accelerate; metrics.jsonl is written in any case."""

from dataclasses import asdict

from accelerate.utils import is_tensorboard_available, is_wandb_available

from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings

AVAILABLE = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def find_tracker(name: str) -> str | None:
    """The tracker as accelerate names it; None for none.

    Raises:
        SdcliError: its library is not installed.
    """
    if name == "none":
        return None
    if not AVAILABLE[name]():
        raise SdcliError(f"--tracker {name} needs {name}, which is not installed", hint=f"pip install {name}")
    return name


def plain(settings: TrainSettings) -> dict[str, int | float | str | bool]:
    """Settings as every tracker takes them."""
    return {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in asdict(settings).items()
    }
