"""What a training run is told, complete and saved with it."""

import dataclasses
import math
from collections.abc import Container
from dataclasses import dataclass, field

from sdcli.errors import SdcliError
from sdcli.settings import check_choice, check_range, check_size, check_text
from sdcli.training.choices import (
    ADAPTERS,
    CHOICES,
    FIXED,
    MAY_CHANGE_ON_RESUME,
    OF_ONE_PART,
    OF_THE_WHOLE,
    POSITIVE,
    RANGES,
    STAGES,
)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Every setting of a training run. Plain JSON types."""

    data: str
    output: str
    part: str = "unet"
    model: str | None = None  # what to start from; None with a config trains from scratch
    config: str | None = None  # architecture of the part, where the model has none
    stages: dict[str, dict[str, object]] = field(default_factory=dict)  # what --part all does otherwise for one part
    # which data, and how it is shown
    where: tuple[str, ...] = ()  # conditions on columns of the metadata, COLUMN=VALUE,VALUE or COLUMN!=VALUE,VALUE
    resolution: int | None = None  # side of the square pictures in pixels; None is the model's own
    buckets: bool = False  # keep about the aspect ratio of pictures
    random_crop: bool = False  # cut anywhere, not at the centre
    random_flip: float = 0.0  # share of pictures mirrored left to right
    random_affine: float = 0.0  # how far pictures are turned (1: a right angle), moved and scaled by chance
    color_jitter: float = 0.0  # how far their brightness, contrast and saturation change by chance
    grounds: float = 0.0  # share of drawings on transparent ground that are put on a colour, which the caption tells
    pairs: float = 0.0  # share of them that are put beside another one, which the caption tells
    variations: int = 0  # compositions that each drawing has, for good; 0 makes a new one whenever it is shown
    caption_dropout: float = 0.1  # share of captions left out, for classifier-free guidance
    caption_filler: float = 0.0  # share of captions that get words which say nothing of the picture
    validation_split: float = 0.0  # share of pictures held out
    on_error: str = "stop"  # what to do about pictures and captions that cannot be used
    allow_data_change: bool = False  # go on although the data is not what it was
    cache: str | None = None  # file of latents and text features; None is the user's own, "none" keeps them in memory
    num_workers: int = 1  # threads that read pictures ahead
    # what is learned
    loss: str | None = None  # None is the part's own
    prediction_type: str | None = None  # None is the model's own
    zero_terminal_snr: bool = False  # rescale the noise schedule so that its last step is pure noise
    snr_gamma: float | None = None  # min-SNR loss weighting; None weighs all timesteps alike
    noise_offset: float = 0.0  # standard deviation of what is added to all of a channel's noise alike
    kl_weight: float = 1e-6  # beta of the VAE's loss
    perceptual_weight: float = 0.0  # of the distance of CLIP features in the VAE's loss
    adversarial_weight: float = 0.0  # of the patch discriminator in the VAE's loss
    caption_weight: float = 0.0  # of telling captions of one picture from those of others, in CLIP's loss
    lock: str | None = None  # tower of CLIP that stays as it is, while the other one learns to agree with it
    rank: int = 8  # of a LoRA
    alpha: float | None = None  # a LoRA counts alpha / rank; None is the rank
    targets: tuple[str, ...] = ()  # layers that get a LoRA, by the end of their names; () is every attention's four
    token: str | None = None  # word that an embedding is called by
    initialize_from: str | None = None  # text that an embedding starts from
    # how it is learned
    steps: int = 1000  # optimizer updates
    batch_size: int = 16  # pictures per pass through the network, over all processes
    accumulate: int = 1  # passes per update
    learning_rate: float = 1e-4  # at its peak
    text_encoder_lr: float | None = None  # of the text encoders, at its peak; None or 0 leaves them as they are
    lr_schedule: str = "cosine"
    warmup: int = 100  # updates until the peak
    optimizer: str = "adamw"
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema: float = 0.999  # decay per update of the averaged weights
    average: str = "long"  # which weights are used: averaged by `ema`, ten times as short, or not averaged
    seed: int = 0
    # how it is computed
    device: str = "auto"
    precision: str = "auto"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    tf32: bool = False
    compile: bool = False
    # what is told and kept
    validate_every: int = 500
    sample_every: int = 500  # 0 makes no samples
    sample_prompts: tuple[str, ...] = ()
    checkpoint_every: int = 500
    keep: int = 2  # checkpoints that stay on disk
    save_precision: str = "fp32"  # of model/, which `generate` uses
    tracker: str = "none"

    def __post_init__(self) -> None:
        for name in ("where", "sample_prompts", "targets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "text_encoder_lr", self.text_encoder_lr or None)
        for name, known in CHOICES.items():
            check_choice(f"--{flag(name)}", getattr(self, name), known)
        for name, (least, most) in RANGES.items():
            check_range(f"--{flag(name)}", getattr(self, name), least, most)
        for name, usual in POSITIVE.items():
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                message = f"--{flag(name)} must be a positive number, got {value}"
                raise SdcliError(message, hint=f"{usual} is usual")
        if self.resolution is not None:
            check_size("--resolution", self.resolution)
        for prompt in self.sample_prompts:
            check_text("--sample-prompt", prompt)
        self._check_part()
        self._check_stages()

    def _check_part(self) -> None:
        """Refuse what does not go with the part that is trained."""
        if self.model is None and self.config is None:
            raise SdcliError(
                "nothing to train: neither --model nor --config is given",
                hint="--model NAME fine-tunes a model; --config emoji trains that architecture from scratch",
            )
        if self.part in ADAPTERS and (self.model is None or self.config is not None):
            raise SdcliError(f"--part {self.part} is put onto a model", hint="give one by --model, and no --config")
        if self.part == "embedding" and (self.token is None or not self.token.strip() or " " in self.token):
            raise SdcliError("--part embedding needs a word", hint="such as --token '<my-cat>', without blanks")
        for name, part in OF_ONE_PART.items():
            if getattr(self, name) and self.part != part and not (self.part == "all" and part in STAGES.values()):
                raise SdcliError(f"--{flag(name)} goes with --part {part} only", hint="leave it out")
        if self.grounds + self.pairs > 1:
            raise SdcliError(
                f"--grounds {self.grounds} and --pairs {self.pairs} are more than all pictures together",
                hint="their sum may be 1 at most",
            )
        if self.part == "clip" and self.loss is not None:
            raise SdcliError("--part clip has one loss, the contrastive one", hint="leave out --loss")
        if self.lock and (self.model is None or self.config is not None):
            raise SdcliError("--lock keeps a tower of a model", hint="give the model by --model, and no --config")
        if self.lock == "text" and self.caption_weight:
            hint = "leave out one of them"
            raise SdcliError("--caption-weight teaches the text tower, which --lock text leaves as it is", hint=hint)
        if self.text_encoder_lr and self.optimizer == "prodigy":
            hint = "leave out --text-encoder-lr; 0 where a file sets it"
            raise SdcliError("prodigy finds one learning rate for all weights", hint=hint)
        if self.gradient_checkpointing and self.part in ("vae", "clip"):
            message = f"--gradient-checkpointing does not go with --part {self.part}"
            hint = "it is for what learns with a UNet; leave it out, or with --part all set it in [train.unet]"
            raise SdcliError(message, hint=hint)
        if self.part == "vae" and self.loss == "perceptual":
            raise SdcliError("--loss perceptual goes with --part unet", hint="for a VAE, add it by --perceptual-weight")

    def _check_stages(self) -> None:
        """Refuse settings of a single stage that its part cannot have."""
        if self.stages and self.part != "all":
            raise SdcliError("settings for single parts go with --part all only", hint="leave out [train.vae] and such")
        for name, changes in self.stages.items():
            check_choice("[train]", name, tuple(STAGES))
            known = {each.name for each in dataclasses.fields(self)} - OF_THE_WHOLE - FIXED.get(name, set())
            for setting in changes:
                check_choice(f"[train.{name}]", setting, tuple(sorted(known)))
            self.stage(name)

    def stage(self, name: str) -> "TrainSettings":
        """The settings of one stage of --part all, but for the model that it starts from."""
        of_others = {setting for setting, part in OF_ONE_PART.items() if part != STAGES[name]}
        common = {
            setting: value
            for setting, value in dataclasses.asdict(self).items()
            if setting != "stages" and setting not in of_others
        }
        chosen = {**common, "part": STAGES[name], **self.stages.get(name, {})}
        if name == "image_encoder":
            chosen |= {"model": self.output, "config": None, "lock": "text", "caption_weight": 0.0}
        return TrainSettings(**chosen)


def from_table(table: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """The settings that a file has in its table [train], and in the tables of single stages there, and those given.

    What is given wins over everything, and what a file says of a part over what it says of all.

    Raises:
        SdcliError: the file has a setting that there is not.
    """
    known = tuple(each.name for each in dataclasses.fields(TrainSettings) if each.name != "stages")
    common, of_parts = {}, {}
    for name, value in table.items():
        if name in STAGES and isinstance(value, dict):
            of_parts[name] = without(value, given)
        else:
            check_choice("[train]", name, (*known, *STAGES))
            common[name] = value
    part = given.get("part", common.get("part", TrainSettings.part))
    chosen = {"stages": of_parts} if part == "all" and of_parts else of_parts.get(part, {})
    return {**common, **chosen, **given}


def without(table: dict[str, object], given: Container[str]) -> dict[str, object]:
    """The settings of a single part, but for those that are given for every part."""
    return {name: value for name, value in table.items() if name not in given}


def flag(name: str) -> str:
    """The command-line spelling of a setting's name."""
    return {"sample_prompts": "sample-prompt"}.get(name, name.replace("_", "-"))


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
    changes = {name: asked[name] for name in asked if name in MAY_CHANGE_ON_RESUME}
    # The image encoder learns once more, as long as before, from text encoders that learn longer.
    stages = {name: each if name == "image_encoder" else without(each, changes) for name, each in saved.stages.items()}
    return dataclasses.replace(saved, **{"allow_data_change": False, "stages": stages, **changes})
