"""The model that a run starts from: what --model brings, and the part that --config builds anew."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdcli.checkpoints import load_clip, load_components
from sdcli.components.clip import CLIP
from sdcli.components.scheduler import Scheduler
from sdcli.components.unet import UNet
from sdcli.components.vae import VAE
from sdcli.errors import SdcliError
from sdcli.registry import find_architecture, find_model
from sdcli.training.settings import TrainSettings
from sdcli.training.tokenizer import train_tokenizer

BUILT_BY = {
    "vae": ("vae",),
    "clip": ("tokenizer", "text_encoder", "image_encoder"),
    "unet": ("unet", "scheduler"),
}
NEEDED_BY = {"vae": (), "clip": (), "unet": ("vae", "tokenizer", "text_encoder")}
FORM = "sdcli/training/architectures/emoji.toml shows the form; the keys are those of the stock config.json"
SECTIONS = tuple(section for sections in BUILT_BY.values() for section in sections)


@dataclass
class Model:
    """Everything that a run reads, trains and saves: components by their name in the folder, and the whole CLIP."""

    components: dict[str, object]
    clip: CLIP | None = None


def start_model(settings: TrainSettings, captions: Iterable[str]) -> Model:
    """Load what --model names, then build the part from --config if that is given.

    Args:
        settings: of the run.
        captions: what a new tokenizer learns its words from.

    Raises:
        SdcliError: a component that the part needs is in neither of them.
    """
    architecture = find_architecture(settings.config, SECTIONS) if settings.config is not None else None
    model = Model({})
    if settings.model is not None:
        model = load_model(find_model(settings.model).folder, whole_clip=settings.part == "clip" and not architecture)
    require(
        model, NEEDED_BY[settings.part], settings, "train it first by --part vae or clip, and give that run by --model"
    )
    if architecture is not None:
        built, clip = build_part(settings.part, architecture, captions)
        model = Model(model.components | built, clip)
    require(model, BUILT_BY[settings.part], settings, "give its architecture by --config, such as --config emoji")
    if settings.part == "unet" and settings.prediction_type is not None:
        config = model.components["scheduler"].config
        scheduler = Scheduler.from_config(config, prediction_type=settings.prediction_type)
        model = Model(model.components | {"scheduler": scheduler})
    return model


def load_model(folder: Path, whole_clip: bool) -> Model:
    """What a model folder or a checkpoint holds; the CLIP with both towers only where it is what is trained."""
    components = load_components(folder)
    if not whole_clip:
        return Model(components)
    clip = load_clip(folder)
    text_encoder, image_encoder = clip.towers()
    return Model(components | {"text_encoder": text_encoder, "image_encoder": image_encoder}, clip)


def require(model: Model, names: tuple[str, ...], settings: TrainSettings, hint: str) -> None:
    """Raise SdcliError where the model lacks one of the components."""
    for name in names:
        if model.components.get(name) is None:
            where = "no --model is given" if settings.model is None else f"{settings.model} has none"
            raise SdcliError(f"--part {settings.part} needs a {name}, and {where}", hint=hint)


def build_part(part: str, architecture: dict[str, dict], captions: Iterable[str]) -> tuple[dict, CLIP | None]:
    """The components of one part, with fresh weights, and the CLIP that holds its towers.

    Raises:
        SdcliError: a section is missing, or it has a key or a value that the component does not take.
    """
    missing = [section for section in BUILT_BY[part] if section not in architecture]
    if missing:
        raise SdcliError(f"the architecture has no [{missing[0]}], which --part {part} builds", hint=FORM)
    try:
        if part == "vae":
            return {"vae": VAE(**architecture["vae"])}, None
        if part == "unet":
            scheduler = Scheduler.from_config(architecture["scheduler"])
            return {"unet": UNet(**architecture["unet"]), "scheduler": scheduler}, None
        text_config, vision_config = architecture["text_encoder"], architecture["image_encoder"]
        clip = CLIP(text_config, vision_config, projection_dim=vision_config["projection_dim"])
        tokenizer = train_tokenizer(captions, **architecture["tokenizer"])
    except (TypeError, ValueError, KeyError) as error:
        raise SdcliError(f"the architecture of --part {part} cannot be built: {error}", hint=FORM) from error
    text_encoder, image_encoder = clip.towers()
    return {"tokenizer": tokenizer, "text_encoder": text_encoder, "image_encoder": image_encoder}, clip
