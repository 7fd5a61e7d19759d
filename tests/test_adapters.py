"""LoRAs and learned words: what we train and save, stock diffusers puts onto the same model with the same picture."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import StableDiffusionPipeline
from ended import train_until
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli import load_pipeline
from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings
from sdcli.training.stages import train

PROMPT = "a red cat"


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """Three pictures of one thing."""
    folder = tmp_path_factory.mktemp("things")
    for number in range(3):
        image = Image.new("RGB", (16, 16), "white")
        image.paste("red", (4, 4, 10 + number, 12))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red thing")
    return folder


@pytest.fixture
def fresh_stock(tiny_folder) -> StableDiffusionPipeline:
    """Stock's pipeline with networks of its own, which a test may put things onto."""
    return StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)


def trained(things: Path, model: Path, output: Path, **changes) -> Path:
    common = {"batch_size": 3, "learning_rate": 1e-1, "warmup": 0, "device": "cpu", "ema": 0.5, "steps": 6}
    everything = {"data": str(things), "output": str(output), "model": str(model), "cache": "none"}
    list(train(TrainSettings(**everything | common | changes)))
    return output


def our_picture(model: Path, prompt: str = PROMPT) -> numpy.ndarray:
    pipeline = load_pipeline(str(model), device="cpu", precision="fp32")
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="np").images


def stock_picture(pipeline: StableDiffusionPipeline, prompt: str = PROMPT) -> numpy.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    size = {"width": 16, "height": 16}
    return pipeline(
        prompt, num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="np", **size
    ).images


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "lora_kohya.safetensors"])
def test_stock_makes_the_same_picture_with_our_lora(name, things, tiny_folder, fresh_stock, tmp_path):
    """In both layouts, with an alpha that is not the rank: within 2/255 of ours, and far from the model's own."""
    run = trained(things, tiny_folder, tmp_path / "run", part="lora", rank=2, alpha=3.0)
    plain, ours = our_picture(tiny_folder), our_picture(run)
    assert abs(ours - plain).max() > 0.05
    fresh_stock.load_lora_weights(run / "model", weight_name=name)
    assert abs(stock_picture(fresh_stock) - ours).max() <= 2 / 255


def test_a_lora_learns_with_the_model_unchanged(things, tiny_folder, tmp_path):
    """Its own matrices alone are trained and saved: two for each layer."""
    before = (tiny_folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    run = trained(things, tiny_folder, tmp_path / "run", part="lora", rank=2, targets=("to_q",))
    assert (tiny_folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    tensors = load_file(run / "model" / "pytorch_lora_weights.safetensors")
    assert all(".to_q.lora_" in name for name in tensors)
    assert all(2 in tensor.shape for tensor in tensors.values())
    assert not [path for path in (run / "model").iterdir() if path.is_dir()]


def test_stock_makes_the_same_picture_with_our_word(things, tiny_folder, fresh_stock, tmp_path):
    word = "<thing>"
    run = trained(things, tiny_folder, tmp_path / "run", part="embedding", token=word, initialize_from="cat")
    ours = our_picture(run, f"a {word}")
    learned = load_file(run / "model" / "learned_embeds.safetensors")
    assert list(learned) == [word]
    fresh_stock.load_textual_inversion(run / "model" / "learned_embeds.safetensors")
    theirs = stock_picture(fresh_stock, f"a {word}")
    assert abs(theirs - ours).max() <= 2 / 255
    assert abs(our_picture(run, "a cat") - ours).max() > 0.02


@pytest.mark.parametrize("part", ["lora", "embedding"])
def test_adapters_resume_to_the_bit(part, things, tiny_folder, tmp_path):
    changes = {"part": part, "steps": 6, "checkpoint_every": 3} | ({"token": "<x>"} if part == "embedding" else {})
    whole = trained(things, tiny_folder, tmp_path / "whole", **changes)
    settings = TrainSettings(**json.loads((whole / "settings.json").read_text()) | {"output": str(tmp_path / "parted")})
    train_until(3, settings)
    list(train(settings, resume=True))
    (file,) = {"lora": ["pytorch_lora_weights.safetensors"], "embedding": ["learned_embeds.safetensors"]}[part]
    expected, actual = load_file(whole / "model" / file), load_file(tmp_path / "parted" / "model" / file)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_an_adapter_for_another_model_says_so(things, tiny_folder, tmp_path):
    run = trained(things, tiny_folder, tmp_path / "run", part="lora", rank=2, steps=1)
    file = run / "model" / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    save_file({name.replace("down_blocks.0", "down_blocks.9"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(SdcliError, match="fits 24 of 32 layers: the model has no unet.down_blocks.9"):
        load_pipeline(str(run), device="cpu")
    cut = {name: tensor[:, :-1].contiguous() if "lora_A" in name else tensor for name, tensor in tensors.items()}
    save_file(cut, file)
    with pytest.raises(SdcliError, match="fits 0 of 32 layers: .* has another shape"):
        load_pipeline(str(run), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "lora", "targets": ("to_x",)}, "no layer's name ends in 'to_x'"),
        ({"part": "embedding"}, "needs a word"),
        ({"part": "embedding", "token": "cat"}, "knows 'cat' already"),
        ({"part": "embedding", "token": "two words"}, "needs a word"),
        ({"part": "lora", "config": "emoji"}, "is put onto a model"),
        ({"part": "unet", "token": "<x>"}, "--token goes with --part embedding only"),
    ],
)
def test_what_no_adapter_can_be_is_refused(changes, message, things, tiny_folder, tmp_path):
    with pytest.raises(SdcliError, match=message):
        trained(things, tiny_folder, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
