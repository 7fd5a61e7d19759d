"""A tiny Stable Diffusion with seeded weights, made by stock diffusers, and ours loaded from its folder. No network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores run tests already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.folder import ON_CPU
from sdcli.pipeline import SdPipeline
from sdcli.registry import ModelSpec, find_model

# What tests keep between runs goes away with them, and never meets what the user has kept.
CACHES = tempfile.TemporaryDirectory(prefix="sdcli-tests-")
os.environ["XDG_CACHE_HOME"] = CACHES.name

TINY_SIZE_PX = 16
BYTES = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
MERGES = ("t h", "th e</w>", "c a", "ca t</w>", "r e", "re d</w>", "d o", "do g</w>")


def write_tokenizer(folder: Path, length: int = 77) -> Path:
    """CLIP's byte-level tokenizer with a handful of merges: vocab.json, merges.txt and tokenizer_config.json."""
    alphabet = [chr(byte) for byte in BYTES] + [chr(256 + extra) for extra in range(256 - len(BYTES))]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(merge.replace(" ", "") for merge in MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def seeded(network: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """The network with weights that any PyTorch draws alike, large enough that its inputs show in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(0.1 * noise + float(name.endswith("weight")))
            elif parameter.ndim > 1:
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise)
    return network.eval()


def stock_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers, 32 wide."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            **ids,
        )
    )


def stock_unet(**changes) -> UNet2DConditionModel:
    """Two resolutions of 8x8 latents, text on the first."""
    config = {
        "sample_size": TINY_SIZE_PX // 2,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**config | changes)


def stock_vae() -> AutoencoderKL:
    """Two pixels per latent, each way."""
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=TINY_SIZE_PX,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> CLIPTokenizer:
    """A tokenizer that knows the words the, cat, red and dog, and spells all others."""
    return CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")), local_files_only=True)


@pytest.fixture(scope="session")
def unchanged_stock(tiny_tokenizer) -> StableDiffusionPipeline:
    """Stock's pipeline for 16x16 pixels, with Stable Diffusion 1's schedule; for the fixtures here alone."""
    return StableDiffusionPipeline(
        vae=seeded(stock_vae(), seed=1),
        text_encoder=seeded(stock_text_encoder(tiny_tokenizer), seed=2),
        tokenizer=tiny_tokenizer,
        unet=seeded(stock_unet(), seed=3),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def tiny_stock(unchanged_stock) -> StableDiffusionPipeline:
    """Stock's pipeline; a test may give it another scheduler, which the next one does not see."""
    return StableDiffusionPipeline(**unchanged_stock.components, requires_safety_checker=False)


@pytest.fixture(scope="session")
def tiny_folder(unchanged_stock, tmp_path_factory) -> Path:
    """The folder that stock's save_pretrained writes. Read only: tests that change it copy it."""
    folder = tmp_path_factory.mktemp("tiny")
    unchanged_stock.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder) -> ModelSpec:
    """The tiny model as the registry finds it."""
    return find_model(str(tiny_folder))


@pytest.fixture
def tiny_pipeline(tiny_model) -> SdPipeline:
    """Ours, from the folder that stock wrote."""
    return load_pipeline(tiny_model, ON_CPU)


SQUARES = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
TINY_ARCHITECTURE = """
[tokenizer]
vocab_size = 600
model_max_length = 16
[vae]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
block_out_channels = [8, 8, 16]
norm_num_groups = 4
sample_size = 32
[text_encoder]
vocab_size = 600
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 16
projection_dim = 16
bos_token_id = 598
eos_token_id = 599
pad_token_id = 599
[image_encoder]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
image_size = 32
patch_size = 8
projection_dim = 16
[unet]
sample_size = 8
in_channels = 4
out_channels = 4
block_out_channels = [16, 32]
layers_per_block = 1
down_block_types = ["DownBlock2D", "CrossAttnDownBlock2D"]
up_block_types = ["CrossAttnUpBlock2D", "UpBlock2D"]
cross_attention_dim = 32
attention_head_dim = 2
norm_num_groups = 8
[scheduler]
_class_name = "DDIMScheduler"
beta_start = 0.00085
beta_end = 0.012
beta_schedule = "scaled_linear"
prediction_type = "v_prediction"
timestep_spacing = "trailing"
"""


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """Four coloured squares on white, with two captions each."""
    folder = tmp_path_factory.mktemp("squares")
    rows = []
    for name, colour in SQUARES.items():
        image = Image.new("RGB", (32, 32), "white")
        image.paste(colour, (8, 8, 24, 24))
        image.save(folder / f"{name}.png")
        rows.append({"file_name": f"{name}.png", "text": f"a {name} square", "captions": [f"{name} square"]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def architecture(tmp_path_factory) -> Path:
    """A file for `--config`: every part, as small as it can be."""
    path = tmp_path_factory.mktemp("architecture") / "tiny.toml"
    path.write_text(TINY_ARCHITECTURE)
    return path
