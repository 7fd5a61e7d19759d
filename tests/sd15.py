"""Stable Diffusion 1.5 of full size with seeded weights, made by the stock classes, for slow tests and the bench."""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdcli.checkpoints.tokenizers import clip_tokenizer

VOCABULARY = {"vocab_size": 49408, "max_position_embeddings": 77}
UNET = {"sample_size": 64, "cross_attention_dim": 768}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}


def random_weights(shapes: Mapping[str, torch.Tensor], device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights that keep the size of activations about constant, as those of a trained network do."""
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, empty in shapes.items():
        weight = torch.empty(empty.shape, device=device).normal_(generator=generator)
        if weight.ndim > 1:
            weight *= weight[0].numel() ** -0.5
        else:
            weight = 0.1 * weight + (1 if "norm" in name and name.endswith("weight") else 0)
        weights[name] = weight.to(dtype)
    return weights


def build(cls: type[nn.Module], config: Mapping, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A network that has these weights, without others before."""
    with torch.device("meta"):
        model = cls(**config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def network(cls: type[nn.Module], config: Mapping, dtype: torch.dtype) -> nn.Module:
    """A network of stock's with random weights."""
    with torch.device("meta"):
        shapes = cls(**config).state_dict()
    return build(cls, config, random_weights(shapes, "cpu", dtype))


def text_encoder(dtype: torch.dtype) -> CLIPTextModel:
    """CLIP's, with the weights that its library draws."""
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(**VOCABULARY, projection_dim=768, **TEXT)).to(dtype).eval()


def stock_pipeline(dtype: torch.dtype) -> StableDiffusionPipeline:
    """Everything of stock's; 4.3 GB in float32."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return StableDiffusionPipeline(
        vae=network(AutoencoderKL, VAE, dtype),
        text_encoder=text_encoder(dtype),
        tokenizer=clip_tokenizer("<|endoftext|>", VOCABULARY),
        unet=network(UNet2DConditionModel, UNET, dtype),
        scheduler=PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
