"""Random LoRAs for any pipeline, in the layouts that the field has."""

import re

import torch

from sdcli.checkpoints.original import unet_place

RANK, ALPHA = 2, 3.0


def matrices(pipeline, convolutions: bool = False) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random matrices for every attention, and perhaps for the convolutions, by stock's name of the layer."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        network = getattr(pipeline, name, None)
        if network is None:
            continue
        for path, module in network.named_modules():
            attended = re.search(r"(to_q|to_k|to_v|to_out\.0|q_proj|v_proj|k_proj|out_proj|fc1|ff\.net\.2)$", path)
            convolved = convolutions and re.search(r"resnets\.0\.conv[12]$", path)
            if not (attended or convolved) or "vision" in path:
                continue
            shape = module.weight.shape
            down = torch.randn(RANK, *shape[1:], generator=generator) / module.weight[0].numel() ** 0.5
            up = 0.5 * torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
            prefix = "text_model." if name != "unet" and not path.startswith("text_model.") else ""
            made[f"{name}.{prefix}{path}"] = (down, up)
    return made


def as_peft(made, pipeline) -> dict[str, torch.Tensor]:
    """diffusers' present layout."""
    return {
        f"{layer}.lora_{letter}.weight": matrix
        for layer, pair in made.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }


def as_kohya(made, pipeline, original: bool = False) -> dict[str, torch.Tensor]:
    """sd-scripts' layout, with alphas; SDXL's UNet under the names of the original layout."""
    two = getattr(pipeline, "text_encoder_2", None) is not None
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}
    tensors = {}
    for layer, (down, up) in made.items():
        component, _, inner = layer.partition(".")
        if component == "unet" and two:
            inner = unet_place(f"{inner}.weight", pipeline.unet.config).key.removesuffix(".weight")
        name = prefixes[component] + inner.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


def as_old_diffusers(made, pipeline) -> dict[str, torch.Tensor]:
    """Attention processors of the UNet, as diffusers saved them until 0.20."""
    tensors = {}
    for layer, pair in made.items():
        if ".attn" in layer and layer.startswith("unet."):
            block, projection = re.fullmatch(r"(.*\.attn\d)\.(\w+)(?:\.0)?", layer).groups()
            for way, matrix in zip(("down", "up"), pair, strict=True):
                tensors[f"{block}.processor.{projection}_lora.{way}.weight"] = matrix
    return tensors
