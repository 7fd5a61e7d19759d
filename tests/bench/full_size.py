"""Write a Stable Diffusion 1.5 of full size with random weights, as a folder: python tests/bench/full_size.py FOLDER

With --dtype fp16 its files are half as large. It is what load.py and whole_process.py --model measure on.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sdcli.checkpoints.tokenizers import clip_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from unet_step import build, random_weights

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}


def network(cls, config, dtype):
    with torch.device("meta"):
        shapes = cls(**config).state_dict()
    return build(cls, config, random_weights(shapes, "cpu", dtype))


def text_encoder(dtype):
    config = CLIPTextConfig(vocab_size=49408, projection_dim=768, **TEXT)
    torch.manual_seed(0)
    return CLIPTextModel(config).to(dtype).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16"))
    options = parser.parse_args()
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[options.dtype]
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipeline = StableDiffusionPipeline(
        vae=network(AutoencoderKL, VAE, dtype),
        text_encoder=text_encoder(dtype),
        tokenizer=clip_tokenizer("<|endoftext|>", {"vocab_size": 49408, "max_position_embeddings": 77}),
        unet=network(UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768}, dtype),
        scheduler=PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
