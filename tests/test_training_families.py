"""Training of the families whose UNets are told or shown more: SDXL, its refiner, and those for inpainting."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from ended import train_until
from families import BETAS, stock, write_folder
from first_batch import part_of
from safetensors.torch import load_file
from torch import nn

from sdcli import load_pipeline
from sdcli.training.masks import draw_masks
from sdcli.training.settings import TrainSettings
from sdcli.training.stages import train

NAMES = ("sdxl", "sdxl-refiner", "sd1-inpainting", "sdxl-inpainting")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of stock's pipelines, as its own saver writes them."""
    return {name: write_folder(name, tmp_path_factory.mktemp("family") / name) for name in NAMES}


def settings(data: Path, output: Path, **changes) -> TrainSettings:
    common = {"batch_size": 4, "learning_rate": 2e-3, "warmup": 1, "device": "cpu", "ema": 0.9, "steps": 3}
    common |= {"sample_every": 0, "resolution": 32, "cache": "none", "prediction_type": "epsilon"}
    return TrainSettings(**{"data": str(data), "output": str(output), **common, **changes})


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_stocks_networks(name, folders, squares, tmp_path):
    """As diffusers' own training scripts compute it, with stock's networks and text code; caption dropout included."""
    run = settings(squares, tmp_path, model=str(folders[name]), caption_dropout=0.5, random_flip=0.5)
    part, data = part_of(run)
    batch = part.batch(data, 1)
    ours = part.losses(part.network, batch)["loss"]

    pipeline, shown = stock(name), data.batch(1)
    generator = data.generator(1)  # replayed as the part draws from it
    shape = (4, 4, 16, 16)
    drawn = torch.randn(shape, generator=generator)
    timesteps = torch.randint(1000, (4,), generator=generator)
    noise = torch.randn(shape, generator=generator)
    dropped = torch.rand(4, generator=generator) < 0.5
    assert 0 < dropped.sum() < 4
    captions = ["" if drop else caption for drop, caption in zip(dropped, data.captions(shown, 1), strict=True)]
    pixel_values = data.pixel_values(shown)
    with torch.no_grad():
        told = {}
        if "xl" in name:
            embeds, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
            if "refiner" not in name:
                embeds, pooled = embeds * ~dropped[:, None, None], pooled * ~dropped[:, None]
            ids = [32.0, 32.0, 0.0, 0.0, *([6.0] if "refiner" in name else [32.0, 32.0])]
            told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.tensor([ids] * 4)}
        else:
            embeds, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
        factor = pipeline.vae.config.scaling_factor
        posterior = pipeline.vae.encode(pixel_values).latent_dist
        latents = factor * (posterior.mean + posterior.std * drawn)
        model_input = DDPMScheduler(**BETAS).add_noise(latents, noise, timesteps)
        if "inpainting" in name:
            mask = batch["mask"]
            again = pipeline.vae.encode(pixel_values * (mask < 0.5)).latent_dist
            masked = factor * (again.mean + again.std * batch["drawn_masked"])
            model_input = torch.cat([model_input, nn.functional.interpolate(mask, (16, 16)), masked], dim=1)
        output = pipeline.unet(model_input, timesteps, embeds, **told).sample
        expected = (output - noise).square().mean()
    torch.testing.assert_close(ours.detach(), expected, rtol=1e-5, atol=0)


def test_sdxl_is_told_the_size_that_a_picture_had_and_what_was_cut_off(folders, tmp_path):
    """A picture of 96x48 becomes 32x32: half of 64 columns is cut off, a quarter on each side."""
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (96, 48), (60 * number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("a wide picture")
    part, pictures = part_of(settings(data, tmp_path / "run", model=str(folders["sdxl"])))
    assert part.batch(pictures, 0)["time_ids"].tolist() == [[48, 96, 0, 16, 32, 32]] * 4
    flipped = dataclasses.replace(pictures.at_rest(0), place=(0.25, 0.0), flipped=True)
    assert pictures.sizes_told(flipped) == (48, 96, 0, 24, 32, 32)  # 8 columns left of it become those to the right


@pytest.mark.parametrize("name", [*NAMES[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_every_family_learns_and_stays_a_model_for_stock(name, folders, squares, tmp_path):
    """The UNet changes, nothing else does, and what it is told is still understood."""
    run = settings(squares, tmp_path / "run", model=str(folders[name]), sample_every=3)
    list(train(run))
    before, after = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (folders[name], tmp_path / "run/model")
    )
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[key], after[key].float()) for key in before) > len(before) / 2
    kind = type(stock(name))
    again = kind.from_pretrained(tmp_path / "run" / "model", **({} if "xl" in name else {"safety_checker": None}))
    again.set_progress_bar_config(disable=True)
    arguments = {"image": torch.rand(1, 3, 32, 32), "strength": 1.0, "num_inference_steps": 2, "output_type": "np"}
    if "inpainting" in name:
        arguments |= {"mask_image": torch.ones(1, 1, 32, 32), "height": 32, "width": 32}
    elif name == "sdxl":
        arguments = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}
    assert again("a cat", **arguments).images.std() > 0.01
    assert list((tmp_path / "run" / "samples").glob("*.png"))


def test_a_lora_of_sdxl_is_stocks(folders, squares, tmp_path):
    """Trained on what SDXL is told; stock reads it, and generate puts it onto the model."""
    pytest.importorskip("peft")
    run = tmp_path / "run"
    list(train(settings(squares, run, part="lora", model=str(folders["sdxl"]), rank=4, learning_rate=0.05)))
    arguments = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
    pipeline = StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    pipeline.set_progress_bar_config(disable=True)
    plain = pipeline("a cat", generator=torch.Generator().manual_seed(0), **arguments).images
    pipeline.load_lora_weights(run / "model", weight_name="pytorch_lora_weights.safetensors")
    theirs = pipeline("a cat", generator=torch.Generator().manual_seed(0), **arguments).images
    ours = load_pipeline(str(run))("a cat", generator=torch.Generator().manual_seed(0), guidance_scale=5.0, **arguments)
    assert abs(theirs - plain).max() > 0.02, "a LoRA without effect proves nothing"
    assert abs(theirs - ours.images).max() <= 2 / 255


@pytest.mark.parametrize("name", ["sdxl", "sdxl-refiner"])
def test_a_word_of_sdxl_has_a_vector_for_each_text_encoder(name, folders, squares, tmp_path):
    """Under the names of SDXL's files; a run that goes on ends where one that was not interrupted does."""
    run = settings(squares, tmp_path / "run", part="embedding", token="<thing>", model=str(folders[name]), steps=4)
    list(train(run))
    vectors = load_file(tmp_path / "run" / "model" / "learned_embeds.safetensors")
    assert vectors.keys() == ({"clip_g"} if "refiner" in name else {"clip_l", "clip_g"})
    assert all(vector.std() > 0 for vector in vectors.values())
    half = dataclasses.replace(run, output=str(tmp_path / "half"))
    train_until(2, half)
    list(train(half, resume=True))
    again = load_file(tmp_path / "half" / "model" / "learned_embeds.safetensors")
    assert all(torch.equal(vectors[key], again[key]) for key in vectors)
    assert "<thing>" in load_pipeline(str(tmp_path / "run")).tokenizer_2.get_vocab()


def test_masks_are_shapes_or_everything():
    """Of the generator alone; a quarter covers everything, the others a part that has no hole."""
    masks = draw_masks(400, (24, 16), torch.Generator().manual_seed(0))
    assert masks.shape == (400, 1, 16, 24) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks, draw_masks(400, (24, 16), torch.Generator().manual_seed(0)))
    shares = masks.mean(dim=(1, 2, 3))
    assert 0.2 < (shares == 1).float().mean() < 0.3
    assert shares.min() > 0.01
    for mask in masks[:40, 0]:
        rows = mask[mask.any(dim=1)]
        assert all((row.diff() == 1).sum() <= 1 for row in rows)
