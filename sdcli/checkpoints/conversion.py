"""A model from one layout to the other: diffusers' folder, or the original single file."""

from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdcli import families
from sdcli.checkpoints import stock
from sdcli.checkpoints.folder import load_components, read_index
from sdcli.checkpoints.parts import class_names
from sdcli.checkpoints.saving import save_components
from sdcli.checkpoints.single_file import PREDICTION, PREDICTIONS, original_tensors
from sdcli.checkpoints.writing import to_dtype, write_tensors
from sdcli.components.scheduler import Scheduler
from sdcli.components.unet_config import per_level
from sdcli.device import DTYPES, Placement
from sdcli.errors import SdcliError
from sdcli.families import REFINER, SD1, SD2, SDXL, Family
from sdcli.model_config import defaults_to_keep, own_defaults
from sdcli.settings import GenerationDefaults

FILE = ".safetensors"
AS_SAVED = Placement(torch.device("cpu"), None, "no")
AS_FOLDER = "keep it as a folder, which tells everything"
# Settings without an effect on pictures, or that the family says.
UNTOLD = {"sample_size", "force_upcast", "upcast_attention", "eos_token_id", "bos_token_id", "pad_token_id"}


def convert(
    source: Path,
    target: Path,
    precision: str = "auto",
    allow_pickle: bool = False,
    defaults: GenerationDefaults | None = None,
) -> None:
    """Write a model in the layout that the target's name says.

    Args:
        source: folder or file.
        target: a name that ends in .safetensors is a single file, any other a folder.
        precision: of the weights; auto keeps each one's own.
        allow_pickle: read weights that are no safetensors, by `weights_only`.
        defaults: what models.toml or the model itself says of its use, as far as the layout has a place for it.

    Raises:
        SdcliError: the model is bad, is of no family that has a single file, or cannot be written.
    """
    dtype = DTYPES.get(precision)
    components = load_components(source, AS_SAVED, allow_pickle)
    defaults = defaults or own_defaults(source, allow_pickle)
    if defaults.prediction_type is not None:
        changed = Scheduler.from_config(components["scheduler"].config, prediction_type=defaults.prediction_type)
        components["scheduler"] = changed
    if target.suffix != FILE:
        names = class_names(read_index(source, allow_pickle))
        save_components(components, target, dtype, None, names, defaults_to_keep(defaults))
        return
    family = family_of_components(components)
    networks = {name: each for name, each in components.items() if isinstance(each, nn.Module)}
    missing = [name for name in ("unet", "vae", *family.texts) if name not in networks]
    if missing:
        raise SdcliError(f"{source} has no {missing[0]}, which a single file has", hint="keep it as a folder")
    check_told_by_shapes(networks, family, source)
    tensors = to_dtype(original_tensors(networks, family), dtype, target.name)
    config = components["scheduler"].config
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if config.prediction_type not in names:
        message = f"a single file cannot tell that {source} predicts the {config.prediction_type}"
        raise SdcliError(message, hint=AS_FOLDER)
    if config.rescale_betas_zero_snr:
        tensors["ztsnr"] = torch.zeros(0)
    write_tensors(target, tensors, {PREDICTION: names[config.prediction_type]})


def family_of_components(components: dict) -> Family:
    """The family whose single files have such components."""
    if "text_encoder_2" in components:
        return SDXL if "text_encoder" in components else REFINER
    unet = components.get("unet")
    return SD2 if unet is not None and unet.config.use_linear_projection else SD1


def check_told_by_shapes(networks: dict[str, nn.Module], family: Family, source: Path) -> None:
    """Refuse networks with settings that no reader of a single file could know.

    Raises:
        SdcliError: one has such a setting.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in original_tensors(networks, family).items()}
    told = {"unet": families.unet_config(shapes, family), "vae": families.vae_config(shapes, family)}
    told |= {name: families.text_config(shapes, part) for name, part in family.texts.items()}
    for name, config in told.items():
        kind = stock.stock_of(networks[name])
        try:
            expected = stock.build(kind, config, source).config
        except SdcliError as error:
            raise SdcliError(f"a single file cannot tell of the {name} of {source}: {error}", hint=AS_FOLDER) from error
        expected = in_effect(expected)
        for key, value in in_effect(networks[name].config).items():
            if key not in UNTOLD and not key.startswith("_") and as_tuple(expected[key]) != as_tuple(value):
                message = f"a single file cannot tell that the {name} of {source} has {key} {value}"
                raise SdcliError(message, hint=AS_FOLDER)


def in_effect(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, without the number of transformer blocks of levels that have none; the lowest one's is the middle's."""
    config = dict(config)
    if depth := config.get("transformer_layers_per_block"):
        types = config["down_block_types"]
        attended = ["CrossAttn" in each for each in types[:-1]] + [True]
        config["transformer_layers_per_block"] = list(compress(per_level(depth, len(types)), attended))
    return config


def as_tuple(value: Any) -> Any:
    """Lists as tuples, and numbers for every level alike as one, so that settings can be compared."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)
