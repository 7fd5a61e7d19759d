"""ControlNets from disk: stock's own network, which stands beside our UNet."""

from pathlib import Path

from torch import nn

from sdcli import pickles
from sdcli.checkpoints.weights import weight_file
from sdcli.components.unet import UNet
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.headers import COPIED_IN_PART
from sdcli.hub import HubModel, cached_config, fetch_component
from sdcli.model_config import read_config

ALIKE = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")


def load_controlnet(name: str, placement: Placement, unet: UNet, allow_pickle: bool = False) -> nn.Module:
    """A ControlNet.

    Args:
        name: a folder with its config.json, or OWNER/NAME of the hub.
        placement: device and dtype.
        unet: that it is for.
        allow_pickle: read weights that are no safetensors, by `weights_only`.

    Raises:
        SdcliError: there is none, it is bad, or it is for another family of models.
    """
    from diffusers import ControlNetModel  # here, because it brings half a second of other networks with it

    folder = find_controlnet(name)
    config = read_config(folder)
    kind = config.get("_class_name")
    if kind != "ControlNetModel":
        raise SdcliError(f"{name} is {f'a {kind}' if kind else 'no ControlNet'}", hint="name a ControlNet's folder")
    for key in ALIKE:
        ours = list(unet.config[key]) if isinstance(unet.config[key], tuple) else unet.config[key]
        if config.get(key, ours) != ours:
            differ = f"its {key} is {config[key]}, the model's {ours}"
            raise SdcliError(f"{name} is for another family of models: {differ}", hint="name one for this model")
    weights = weight_file(folder)
    pickled = ".safetensors" not in weights.name
    if pickled and not allow_pickle:
        raise SdcliError(f"{weights} is a pickle, not safetensors", hint=pickles.ALLOW)
    how = {"use_safetensors": not pickled, "variant": "fp16" if ".fp16." in weights.name else None}
    try:
        network = ControlNetModel.from_pretrained(folder, torch_dtype=placement.dtype, local_files_only=True, **how)
    except (OSError, ValueError, RuntimeError) as error:
        raise SdcliError(f"{name} does not load: {str(error).splitlines()[0]}", hint=COPIED_IN_PART) from error
    return network.to(placement.device).eval().requires_grad_(False)


def find_controlnet(name: str) -> Path:
    """The folder of a ControlNet.

    Raises:
        SdcliError: there is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise SdcliError(f"{name} is a file; a ControlNet is a folder", hint="give the folder that has its config.json")
    if path.is_dir():
        return path
    hub = HubModel.parse(name)
    if hub is None:
        raise SdcliError(f"there is no ControlNet {name}", hint="name its folder, or OWNER/NAME of the hub")
    if cached_config(hub) is None:
        fetch_component(hub)
    return cached_config(hub)
