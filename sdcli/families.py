"""What a single file in the original layout holds, told from its keys and shapes: its family and its architecture.

Knows no torch. The configurations are those that the stock classes would be built with.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.headers import Shapes

Config = dict[str, Any]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
HEAD_CHANNELS = 64  # of one attention head, wherever the number of heads is not fixed
# What training and other tools leave in files, and no picture depends on.
IGNORED = (
    "model_ema.",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
    "denoiser.",
    "embedding_manager.",
    "alphas_cumprod",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "sqrt_",
    "logvar",
    "lvlb_weights",
    "model.betas",
    "global_step",
    "v_pred",
    "ztsnr",
)
IGNORED_ENDS = (".position_ids", ".logit_scale", ".attn_mask")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
OF_SD = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
OF_SDXL = {**OF_SD, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
OTHERS = {  # what a file is that has no UNet, by a part of its keys
    "lora_": "a LoRA: put it onto a model by --lora",
    ".lora_": "a LoRA: put it onto a model by --lora",
    "control_model.": "a ControlNet: name it by --controlnet",
    "controlnet_cond_embedding.": "a ControlNet: name it by --controlnet",
    "emb_params": "an embedding: teach it by --embedding",
    "decoder.conv_in.": "a VAE: name it by --vae",
    "double_blocks.": "a Flux model: give its folder in the diffusers layout",
    "joint_blocks.": "a Stable Diffusion 3 model: give its folder in the diffusers layout",
}


@dataclass(frozen=True)
class TextPart:
    """Where a text encoder lies in the file, and of which kind it is.

    Args:
        prefix: of its keys.
        openclip: whether it is in OpenCLIP's layout, else transformers'.
        dropped: last layers that are not used.
        pad: token that fills up a text.
    """

    prefix: str
    openclip: bool = False
    dropped: int = 0
    pad: str = "<|endoftext|>"


@dataclass(frozen=True)
class Family:
    """Models that differ in their weights alone.

    Args:
        name: as models.toml spells it.
        pipeline: diffusers' class.
        texts: text encoders by the component's name.
        scheduler: configuration of the noise schedule and sampler.
        scaling_factor: of the VAE.
        latents_side: rows and columns that the UNet was trained on.
        zeros_for_empty: whether an empty negative prompt is told as zeros.
    """

    name: str
    pipeline: str
    texts: Mapping[str, TextPart]
    scheduler: Config = field(default_factory=dict)
    scaling_factor: float = 0.18215
    latents_side: int = 64
    zeros_for_empty: bool = False


SD1 = Family(
    "sd1",
    "StableDiffusionPipeline",
    {"text_encoder": TextPart("cond_stage_model.transformer.text_model.")},
    scheduler={**OF_SD, "_class_name": "PNDMScheduler"},
)
SD2 = Family(
    "sd2",
    "StableDiffusionPipeline",
    {"text_encoder": TextPart("cond_stage_model.model.", openclip=True, dropped=1, pad="!")},
    scheduler={**OF_SD, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    latents_side=96,
)
SDXL = Family(
    "sdxl",
    "StableDiffusionXLPipeline",
    {
        "text_encoder": TextPart("conditioner.embedders.0.transformer.text_model."),
        "text_encoder_2": TextPart("conditioner.embedders.1.model.", openclip=True, pad="!"),
    },
    scheduler=OF_SDXL,
    scaling_factor=0.13025,
    latents_side=128,
    zeros_for_empty=True,
)
REFINER = Family(
    "sdxl-refiner",
    "StableDiffusionXLImg2ImgPipeline",
    {"text_encoder_2": TextPart("conditioner.embedders.0.model.", openclip=True, pad="!")},
    scheduler=OF_SDXL,
    scaling_factor=0.13025,
    latents_side=128,
)
REFINER_CHANNELS = 384  # of the refiner's first level; the base has 320


def family_of(shapes: Shapes, path: Path) -> Family:
    """The family of a single file, from its keys and shapes.

    Raises:
        SdcliError: it holds no UNet, or keys of no known part.
    """
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        kind = next((kind for part, kind in OTHERS.items() if any(part in key for key in shapes)), None)
        what = f"it is {kind.split(':')[0]}" if kind else f"it has no {UNET}input_blocks.0.0.weight"
        hint = kind.split(": ")[1] if kind else "sdcli reads Stable Diffusion 1, 2 and XL in the original layout"
        raise SdcliError(f"{path} is no model: {what}", hint=hint)
    if f"{UNET}label_emb.0.0.weight" in shapes:
        first = shapes[f"{UNET}input_blocks.0.0.weight"][0]
        has_base_text = has_any(shapes, "conditioner.embedders.0.transformer.", "conditioner.embedders.1.")
        family = (
            REFINER if not has_base_text and (first == REFINER_CHANNELS or has_any(shapes, "conditioner.")) else SDXL
        )
    else:
        projections = [
            shape for key, shape in shapes.items() if key.startswith(UNET) and key.endswith(".proj_in.weight")
        ]
        family = SD2 if any(len(shape) == 2 for shape in projections) else SD1
    unknown = [key for key in shapes if not is_known(key, family)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise SdcliError(f"{path} has keys of no known part: {unknown[0]}{more}", hint=f"it looks like {family.name}")
    return family


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn what is missing or odd among the shapes of a file into one error."""
    try:
        yield
    except (KeyError, IndexError, StopIteration) as error:
        what = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else "a weight has an odd shape"
        raise SdcliError(
            f"{path} is not whole: {what}", hint="fetch it again; or it was changed by another tool"
        ) from error


def has_any(shapes: Iterable[str], *prefixes: str) -> bool:
    """Whether there are keys that begin so."""
    return any(key.startswith(prefixes) for key in shapes)


def is_known(key: str, family: Family) -> bool:
    """Whether a key of a single file belongs to a part of such a model, or to nothing that counts."""
    texts = tuple(part.prefix.removesuffix("text_model.") for part in family.texts.values())
    return key.startswith((UNET, VAE, *texts, *IGNORED)) or key.endswith(IGNORED_ENDS)


def numbers(shapes: Shapes, pattern: str) -> set[int]:
    """What a number in keys is, wherever a pattern with one group finds it at their begin."""
    return {int(found[1]) for key in shapes if (found := re.match(pattern, key))}


def unet_config(shapes: Shapes, family: Family) -> Config:
    """config.json of the UNet of a single file."""
    blocks = f"{re.escape(UNET)}input_blocks"
    halvings = sorted(numbers(shapes, rf"{blocks}\.(\d+)\.0\.op\.weight"))
    count = len(numbers(shapes, rf"{blocks}\.(\d+)\."))
    per_level = (halvings[0] if halvings else count) - 1
    levels = len(halvings) + 1
    firsts = [f"{UNET}input_blocks.{1 + level * (per_level + 1)}" for level in range(levels)]
    channels = [shapes[f"{first}.0.out_layers.3.weight"][0] for first in firsts]
    attended = [f"{first}.1.proj_in.weight" in shapes for first in firsts]
    linear = any(len(shapes.get(f"{first}.1.proj_in.weight", ())) == 2 for first in firsts)
    depths = [depth(shapes, f"{first}.1") for first in firsts]
    if not attended[-1]:  # the stage in the middle has what is said of the lowest level
        depths[-1] = depth(shapes, f"{UNET}middle_block.1")
    text_keys = [key for key in shapes if key.startswith(UNET) and key.endswith(".attn2.to_k.weight")]
    config = {
        "sample_size": family.latents_side,
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": per_level,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attended)],
        "cross_attention_dim": shapes[text_keys[0]][1],
        "use_linear_projection": linear,
        "attention_head_dim": [max(1, each // HEAD_CHANNELS) for each in channels] if linear else 8,
        "transformer_layers_per_block": depths if linear else 1,
    }
    label = shapes.get(f"{UNET}label_emb.0.0.weight")
    if label is None:
        return config
    told = 5 if family is REFINER else 6
    pooled = pooled_width(shapes, family)
    return config | {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": label[1],
        "addition_time_embed_dim": (label[1] - pooled) // told,
    }


def depth(shapes: Shapes, attention: str) -> int:
    """How many transformer blocks an attention module has; 1 where there is none."""
    return len(numbers(shapes, rf"{re.escape(attention)}\.transformer_blocks\.(\d+)\.")) or 1


def pooled_width(shapes: Shapes, family: Family) -> int:
    """P, the width of the pooled text; SDXL's own where the text encoder is missing."""
    projection = shapes.get(f"{family.texts['text_encoder_2'].prefix}text_projection")
    return projection[1] if projection else 1280


def vae_config(shapes: Shapes, family: Family | None = None, prefix: str = VAE) -> Config:
    """config.json of a VAE in the original layout, in a single file or alone."""
    down = rf"{re.escape(prefix)}encoder\.down\.(\d+)\."
    levels = sorted(numbers(shapes, down))
    kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    return {
        **{name: [kind] * len(levels) for name, kind in kinds.items()},
        "block_out_channels": [shapes[f"{prefix}encoder.down.{level}.block.0.conv1.weight"][0] for level in levels],
        "layers_per_block": len(numbers(shapes, rf"{re.escape(prefix)}encoder\.down\.0\.block\.(\d+)\.")),
        "latent_channels": shapes[f"{prefix}decoder.conv_in.weight"][1],
        "scaling_factor": (family or SD1).scaling_factor,
    }


def stock_vae_config(shapes: Shapes) -> Config:
    """config.json of a VAE that has diffusers' keys, in a file without it."""
    levels = sorted(numbers(shapes, r"encoder\.down_blocks\.(\d+)\."))
    kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    return {
        **{name: [kind] * len(levels) for name, kind in kinds.items()},
        "block_out_channels": [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels],
        "layers_per_block": len(numbers(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
    }


def text_config(shapes: Shapes, part: TextPart) -> Config:
    """config.json of a text encoder of a single file."""
    prefix = part.prefix
    if part.openclip:
        layers = numbers(shapes, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
        tokens, places = shapes[f"{prefix}token_embedding.weight"], shapes[f"{prefix}positional_embedding"]
        inner = shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0]
    else:
        layers = numbers(shapes, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.")
        tokens = shapes[f"{prefix}embeddings.token_embedding.weight"]
        places = shapes[f"{prefix}embeddings.position_embedding.weight"]
        inner = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
    projection = shapes.get(f"{prefix}text_projection")
    return {
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "intermediate_size": inner,
        "num_hidden_layers": len(layers) - part.dropped,
        "num_attention_heads": max(1, tokens[1] // HEAD_CHANNELS),
        "max_position_embeddings": places[0],
        "hidden_act": "gelu" if part.openclip else "quick_gelu",
        "projection_dim": projection[1] if projection else tokens[1],
        "bos_token_id": tokens[0] - 2,
        "eos_token_id": tokens[0] - 1,
        "pad_token_id": 0 if part.pad == "!" else tokens[0] - 1,
    }
