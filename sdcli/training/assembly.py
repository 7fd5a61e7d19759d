"""The model that a run starts from: what --model brings, and the part that --config builds anew."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcli.checkpoints import load_clip, load_components
from sdcli.checkpoints.folder import read_index
from sdcli.checkpoints.parts import class_names
from sdcli.components.clip import CLIP
from sdcli.components.scheduler import Scheduler
from sdcli.components.unet import UNet
from sdcli.components.unet_config import PIXEL_CHANNELS
from sdcli.components.vae import VAE
from sdcli.errors import SdcliError
from sdcli.model_config import defaults_to_keep, kept_defaults
from sdcli.prompts import Reader
from sdcli.registry import find_architecture, find_loadable
from sdcli.training.choices import ADAPTERS
from sdcli.training.settings import TrainSettings
from sdcli.training.tokenizer import train_tokenizer

BUILT_BY = {
    "vae": ("vae",),
    "clip": ("tokenizer", "text_encoder", "image_encoder"),
    "unet": ("unet", "scheduler"),
}
FORM = "sdcli/training/architectures/emoji.toml shows the form; the keys are those of the stock config.json"
NETWORKS = {"vae", "text_encoder", "image_encoder", "unet"}
SECOND = "_2"  # ends the names of SDXL's second tokenizer and text encoder; its refiner has no others


@dataclass
class Model:
    """Everything that a run reads, trains and saves: components by their name in the folder, and the whole CLIP."""

    components: dict[str, object]
    clip: CLIP | None = None
    class_names: tuple[str, ...] = ()  # of a class-conditional UNet, from number 1 on; 0 is no class
    defaults: dict[str, Any] = field(default_factory=dict)  # of generation, from the model that it is made from

    @property
    def reader(self) -> Reader:
        """What captions are read with; of two text encoders the first."""
        second = "" if self.components.get("text_encoder") else SECOND
        return Reader(self.components[f"tokenizer{second}"], self.components[f"text_encoder{second}"])


def start_model(settings: TrainSettings, captions: Iterable[str]) -> Model:
    """Load what --model names, then build the part from --config if that is given.

    Args:
        settings: of the run.
        captions: what a new tokenizer learns its words from.

    Raises:
        SdcliError: a component that the part needs is in neither of them, or the model has a LoRA of its own.
    """
    architecture = find_architecture(settings.config) if settings.config is not None else None
    model, prediction_type = Model({}), settings.prediction_type
    if settings.model is not None:
        spec = find_loadable(settings.model)
        if spec.lora is not None:
            message = f"model {spec.name} is a base and a LoRA, which are not trained as one"
            raise SdcliError(message, hint="train the base by itself")
        model = load_model(spec.path, whole_clip=settings.part == "clip" and not architecture)
        model.defaults = defaults_to_keep(spec.defaults)
        if architecture is None:
            prediction_type = prediction_type or spec.defaults.prediction_type
    if settings.part in ADAPTERS:
        hint = "name a model that generates pictures"
        require(model, ["unet", "scheduler"], settings, hint)
        require(model, needed_by_unet(model.components["unet"]), settings, hint)
        return with_schedule(model, prediction_type, settings.zero_terminal_snr)
    if architecture is not None:
        built, clip = build_part(settings.part, architecture, captions)
        components = model.components | built
        model = Model(components) if settings.part == "unet" else replace(model, components=components, clip=clip)
    require(model, BUILT_BY[settings.part], settings, "give its architecture by --config, such as --config emoji")
    if settings.part != "unet":
        return model
    hint = "train it first by --part vae or clip, and give that run by --model"
    require(model, needed_by_unet(model.components["unet"]), settings, hint)
    return with_schedule(model, prediction_type, settings.zero_terminal_snr)


def needed_by_unet(unet: UNet) -> list[str]:
    """What a UNet is not trained without: one that takes pixels needs no VAE, one that reads no text no CLIP."""
    reads_text = any("CrossAttn" in kind for kind in unet.config.down_block_types)
    vae = [] if unet.config.in_channels in PIXEL_CHANNELS else ["vae"]
    second = "" if unet.config.addition_embed_type is None else SECOND
    return [*vae, f"tokenizer{second}", f"text_encoder{second}"] if reads_text else vae


def with_schedule(model: Model, prediction_type: str | None, zero_terminal_snr: bool) -> Model:
    """The model with the prediction type and the noise schedule that were asked for; None is the model's own.

    Raises:
        SdcliError: the model's scheduler does not take them.
    """
    changes = {}
    if prediction_type is not None:
        changes["prediction_type"] = prediction_type
    if zero_terminal_snr:
        changes["rescale_betas_zero_snr"] = True
    if not changes:
        return model
    config = model.components["scheduler"].config
    if zero_terminal_snr and changes.get("prediction_type", config.prediction_type) == "epsilon":
        raise SdcliError(
            "--zero-terminal-snr does not go with epsilon prediction, which says nothing where no signal is left",
            hint="add --prediction-type v_prediction",
        )
    scheduler = Scheduler.from_config(config, **changes)
    return replace(model, components=model.components | {"scheduler": scheduler})


def load_model(folder: Path, whole_clip: bool) -> Model:
    """What a model folder or a checkpoint holds; the CLIP with both towers only where it is what is trained."""
    components, clip = load_components(folder), None
    if whole_clip:
        clip = load_clip(folder)
        text_encoder, image_encoder = clip.towers()
        components |= {"text_encoder": text_encoder, "image_encoder": image_encoder}
    kept = {} if folder.is_file() else kept_defaults(folder)
    return Model(components, clip, class_names(read_index(folder)), kept)


def with_classes(model: Model, labels: Collection[str]) -> Model:
    """The model with names for its UNet's classes: its own, or else the labels of the data.

    Raises:
        SdcliError: a class-conditional UNet has no class for a label, or nobody says what its classes are.
    """
    room = model.components["unet"].config.num_class_embeds
    if room is None:
        return model
    names = model.class_names or classes_of(labels, room)
    if unknown := sorted(set(labels) - set(names)):
        raise SdcliError(f"the model has no class {unknown[0]!r}", hint=f"it has {', '.join(names)}")
    return replace(model, class_names=names)


def classes_of(labels: Collection[str], room: int) -> tuple[str, ...]:
    """Names of the classes of a UNet that is made for `room` of them, number 0, no class, among them.

    Raises:
        SdcliError: it has too few, or the data none.
    """
    if not labels:
        raise SdcliError("the UNet is told classes, and no picture has one", hint='give lines of metadata a "label"')
    if len(labels) >= room:
        hint = f"set num_class_embeds = {len(labels) + 1}: one more, for no class"
        raise SdcliError(f"the UNet has room for {room - 1} classes, and the data has {len(labels)}", hint=hint)
    return tuple(sorted(labels))


def check_architecture(model: Model, settings: TrainSettings, checkpoint: Path) -> None:
    """Raise SdcliError where a checkpoint holds other networks than the run's --config describes."""
    architecture = {} if settings.config is None else find_architecture(settings.config)
    for section in NETWORKS & {*BUILT_BY[settings.part]}:
        config = model.components[section].config
        for name, expected in architecture.get(section, {}).items():
            found = config.get(name, expected)  # towers take some keys of stock without having a use for them
            found = list(found) if isinstance(found, tuple) else found
            if found != expected and name != "scaling_factor":  # which is chosen while training
                raise SdcliError(
                    f"{checkpoint} is of another architecture than {settings.config}: {name} of its {section} is "
                    f"{found}, not {expected}",
                    hint="resume the run that it belongs to, or start a new one in another --output",
                )


def require(model: Model, names: Sequence[str], settings: TrainSettings, hint: str) -> None:
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
