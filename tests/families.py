"""Every family of Stable Diffusion with few and seeded weights, made by the stock classes, as files of every layout.

The architectures are the true ones but for their width; tokenizers are CLIP's own.
"""

from functools import lru_cache
from pathlib import Path

import torch
from conftest import seeded
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdcli import families
from sdcli.checkpoints import load_components
from sdcli.checkpoints.single_file import original_tensors
from sdcli.checkpoints.tokenizers import clip_tokenizer

WIDTH = 64  # of text features
SIDE_PX = 32
VOCABULARY = {"vocab_size": 49408, "max_position_embeddings": 77}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd1-inpainting", "sdxl-inpainting")
OF_FAMILY = {"sd1": families.SD1, "sd2": families.SD2, "sdxl": families.SDXL, "sdxl-refiner": families.REFINER}


def text_encoder(seed: int, openclip: bool = False, projection: bool = False, layers: int = 3) -> torch.nn.Module:
    """A text tower of one head."""
    config = CLIPTextConfig(
        **VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=1,
        projection_dim=WIDTH,
        hidden_act="gelu" if openclip else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=0 if openclip else 49407,
    )
    return seeded((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


def unet(seed: int, **changes) -> UNet2DConditionModel:
    """Two levels of 16x16 latents, or as `changes` say."""
    config = {
        "sample_size": SIDE_PX // 2,
        "block_out_channels": (64, 128),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 8,
    }
    return seeded(UNet2DConditionModel(**config | changes), seed)


LINEAR = {"use_linear_projection": True, "attention_head_dim": (1, 2)}
OF_XL = {
    **LINEAR,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
}


def vae(seed: int, scaling_factor: float) -> AutoencoderKL:
    """Two pixels per latent, each way."""
    return seeded(
        AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=2,
            sample_size=SIDE_PX,
            scaling_factor=scaling_factor,
        ),
        seed,
    )


@lru_cache
def stock(name: str) -> DiffusionPipeline:
    """Stock's pipeline of a family. Not to be changed."""
    family, _, task = name.partition("-inpainting")
    channels = {"in_channels": 9} if "inpainting" in name else {}
    common = {"vae": vae(1, OF_FAMILY[family].scaling_factor)}
    if family in ("sd1", "sd2"):
        second = family == "sd2"
        kind = StableDiffusionInpaintPipeline if channels else StableDiffusionPipeline
        scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
        if second:
            scheduler = DDIMScheduler(
                **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
            )
        return kind(
            **common,
            text_encoder=text_encoder(2, openclip=second),
            tokenizer=clip_tokenizer("!" if second else "<|endoftext|>", VOCABULARY),
            unet=unet(3, **(LINEAR if second else {}), **channels),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    base = family == "sdxl"
    kind = StableDiffusionXLInpaintPipeline if channels else StableDiffusionXLPipeline
    common |= {
        "text_encoder": text_encoder(2) if base else None,
        "tokenizer": clip_tokenizer("<|endoftext|>", VOCABULARY) if base else None,
        "text_encoder_2": text_encoder(4, openclip=True, projection=True),
        "tokenizer_2": clip_tokenizer("!", VOCABULARY),
        "scheduler": EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
    }
    if base:
        told = {"cross_attention_dim": 2 * WIDTH, "projection_class_embeddings_input_dim": WIDTH + 6 * 32}
        return kind(**common, unet=unet(3, **OF_XL, **told, **channels))
    told = {"projection_class_embeddings_input_dim": WIDTH + 5 * 32}
    three_levels = {
        "block_out_channels": (64, 128, 128),
        "attention_head_dim": (1, 2, 2),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 2,
    }
    return StableDiffusionXLImg2ImgPipeline(
        **common,
        unet=unet(3, **OF_XL | three_levels, **told),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def write_folder(name: str, folder: Path) -> Path:
    """The plain folder of stock's own saver."""
    stock(name).save_pretrained(folder)
    return folder


def write_variant(name: str, folder: Path) -> Path:
    """With `fp16` in the names of weights."""
    stock(name).save_pretrained(folder, variant="fp16")
    return folder


def write_shards(name: str, folder: Path) -> Path:
    """Every network in several files with an index."""
    stock(name).save_pretrained(folder, max_shard_size="300KB")
    return folder


def write_single_file(name: str, folder: Path) -> Path:
    """The original layout, with what training leaves in such files."""
    stock(name).save_pretrained(folder / "source")
    components = load_components(folder / "source")
    family = OF_FAMILY[name.removesuffix("-inpainting")]
    tensors = {key: value.clone().contiguous() for key, value in original_tensors(components, family).items()}
    if family is families.SD2:  # the file has a layer that stock leaves out
        tensors["cond_stage_model.model.text_projection"] = torch.zeros(WIDTH, WIDTH)
        tensors["cond_stage_model.model.logit_scale"] = torch.ones(())
    if family is families.SD1:
        places = torch.arange(77)[None]
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = places
        tensors["model_ema.decay"] = torch.ones(())
        tensors["alphas_cumprod"] = torch.ones(1000)
    path = folder / f"{name}.safetensors"
    save_file(tensors, path)
    return path


LAYOUTS = {
    "folder": write_folder,
    "fp16 variant": write_variant,
    "shards": write_shards,
    "single file": write_single_file,
}
