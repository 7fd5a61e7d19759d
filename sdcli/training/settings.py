"""What a training run is told, complete and saved with it."""

import dataclasses
import math
from dataclasses import dataclass

from sdcli.errors import SdcliError
from sdcli.settings import LARGEST_SEED, check_choice, check_range, check_size

PARTS = ("vae", "clip", "unet")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SAVE_PRECISIONS = ("fp32", "fp16", "bf16")
NEARLY_ONE = 0.999999
RANGES = (  # of settings that are numbers: name, least, most
    ("steps", 1, math.inf),
    ("batch_size", 1, math.inf),
    ("sample_every", 1, math.inf),
    ("checkpoint_every", 1, math.inf),
    ("keep", 1, math.inf),
    ("warmup", 0, math.inf),
    ("weight_decay", 0, math.inf),
    ("kl_weight", 0, math.inf),
    ("seed", 0, LARGEST_SEED),
    ("ema", 0, NEARLY_ONE),
    ("caption_dropout", 0, 1),
)
MAY_CHANGE_ON_RESUME = ("steps", "sample_every", "sample_prompts", "checkpoint_every", "keep", "device")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Every setting of a training run. Plain JSON types."""

    data: str
    output: str
    part: str = "unet"
    model: str | None = None  # what to start from; None with a config trains from scratch
    config: str | None = None  # architecture of the part, where the model has none
    steps: int = 1000  # optimizer updates
    batch_size: int = 16  # images per update, over all processes
    learning_rate: float = 1e-4  # at its peak
    warmup: int = 100  # updates until the peak; a cosine falls to 0 from there
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema: float = 0.999  # decay per update of the averaged weights
    resolution: int | None = None  # side of the square images in pixels; None is the model's own
    caption_dropout: float = 0.1  # share of captions left out, for classifier-free guidance
    prediction_type: str | None = None  # None is the model's own
    snr_gamma: float | None = None  # min-SNR loss weighting; None weighs all timesteps alike
    kl_weight: float = 1e-6  # beta of the VAE's loss
    seed: int = 0
    sample_every: int = 500
    sample_prompts: tuple[str, ...] = ()
    checkpoint_every: int = 500
    keep: int = 2  # checkpoints that stay on disk
    device: str = "auto"
    precision: str = "auto"
    save_precision: str = "fp32"  # of model/, which `generate` uses

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_prompts", tuple(self.sample_prompts))
        check_choice("--part", self.part, PARTS)
        check_choice("--save-precision", self.save_precision, SAVE_PRECISIONS)
        check_choice("--prediction-type", self.prediction_type, PREDICTION_TYPES)
        for name, least, most in RANGES:
            check_range(f"--{flag(name)}", getattr(self, name), least, most)
        for name in ("learning_rate", "max_grad_norm", "snr_gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                hint = f"{getattr(TrainSettings, name) or 5} is usual"
                raise SdcliError(f"--{flag(name)} must be a positive number, got {value}", hint=hint)
        if self.resolution is not None:
            check_size("--resolution", self.resolution)
        if self.model is None and self.config is None:
            raise SdcliError(
                "nothing to train: neither --model nor --config is given",
                hint="--model NAME fine-tunes a model; --config emoji trains that architecture from scratch",
            )


def flag(name: str) -> str:
    """The command-line spelling of a setting's name."""
    return name.replace("_", "-")


def resumed(saved: TrainSettings, asked: dict[str, object]) -> TrainSettings:
    """The settings of a run that goes on: what was saved, with the few that may change.

    Args:
        saved: settings of the run on disk.
        asked: what was given on the command line this time.

    Raises:
        SdcliError: something else than length, samples and checkpoints would change.
    """
    for name, value in asked.items():
        before = getattr(saved, name)
        if name not in MAY_CHANGE_ON_RESUME and value != before:
            raise SdcliError(
                f"--{flag(name)} is {before} in the run to resume, got {value}",
                hint=f"leave it out, or start a new run; {', '.join(map(flag, MAY_CHANGE_ON_RESUME))} may change",
            )
    return dataclasses.replace(saved, **{name: asked[name] for name in asked if name in MAY_CHANGE_ON_RESUME})
