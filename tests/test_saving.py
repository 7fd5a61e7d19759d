"""Models on disk: stock reads what we write, we read what stock writes, and nothing is lost or left half written."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from sdcli.checkpoints import (
    load_clip,
    load_component,
    load_components,
    load_pipeline,
    save_clip,
    save_component,
    save_components,
    save_pipeline,
    sha256_of,
    weight_files,
    writing,
)
from sdcli.checkpoints.clip import clip_parts
from sdcli.checkpoints.folder import ON_CPU, load_network
from sdcli.checkpoints.stock import named
from sdcli.components.clip import CLIP
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.pipeline import SdPipeline
from sdcli.registry import find_model
from sdcli.settings import GenerationDefaults

BF16 = Placement(torch.device("cpu"), torch.bfloat16, "bf16")


def picture(pipeline, prompt="a red cat", seed=1) -> numpy.ndarray:
    """One small picture, (H, W, 3) uint8."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    images = pipeline([prompt], generator=[generator], num_inference_steps=4, guidance_scale=7.5).images
    return numpy.asarray(images[0])


def differs_by(first: numpy.ndarray, second: numpy.ndarray) -> int:
    """Largest difference of any pixel, of 255."""
    return int(numpy.abs(first.astype(int) - second.astype(int)).max())


def load(folder) -> SdPipeline:
    """Our pipeline from a folder."""
    return load_pipeline(find_model(str(folder)), ON_CPU)


@pytest.mark.parity
def test_we_make_the_picture_of_a_folder_that_stock_wrote(tiny_stock, tiny_folder):
    """`--model FOLDER` runs what stock's save_pretrained wrote."""
    expected = picture(tiny_stock)
    assert expected.std() > 25
    assert differs_by(picture(load(tiny_folder)), expected) <= 2


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_stock_makes_the_picture_of_a_folder_that_we_wrote(tiny_pipeline, tmp_path, dtype, caplog):
    """Stock's from_pretrained reads our folder without a warning; in fp16 the weights are rounded for both alike."""
    save_pipeline(tiny_pipeline, tmp_path / "saved", dtype=dtype)
    with caplog.at_level("WARNING"):
        stock = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert not caplog.records
    assert differs_by(picture(stock), picture(load(tmp_path / "saved"))) <= 2


def test_a_saved_pipeline_gives_the_same_bits(tiny_pipeline, tmp_path):
    """Ours to disk and back: the same picture bit for bit, the same weights, the same settings."""
    tiny_pipeline.save_pretrained(tmp_path / "saved")
    again = SdPipeline.from_pretrained(tmp_path / "saved")
    assert numpy.array_equal(picture(tiny_pipeline), picture(again))
    for name in ("vae", "text_encoder", "unet"):
        before, after = getattr(tiny_pipeline, name), getattr(again, name)
        assert dict(before.config) == dict(after.config)
        assert all(torch.equal(before.state_dict()[key], tensor) for key, tensor in after.state_dict().items())
    assert again.scheduler.stock_config() == tiny_pipeline.scheduler.stock_config()


def test_files_say_what_stock_says(tiny_pipeline, tiny_folder, tmp_path):
    """Our folder names the stock classes and holds the settings and keys that stock's own folder holds."""
    save_pipeline(tiny_pipeline, tmp_path / "saved", metadata={"made_by": "a test"})
    components = ("vae/config.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
    for name in ("model_index.json", *components):
        ours, stock = (json.loads((folder / name).read_text()) for folder in (tmp_path / "saved", tiny_folder))
        assert {key: ours.get(key) for key in stock} == stock, name
    for path in weight_files(tiny_folder):
        with (
            safe_open(path, "pt") as stock_file,
            safe_open(tmp_path / "saved" / path.relative_to(tiny_folder), "pt") as our_file,
        ):
            keys = {key.removeprefix("text_model.") for key in our_file.keys()}
            assert keys == {key.removeprefix("text_model.") for key in stock_file.keys()}
            assert our_file.metadata() == {"format": "pt", "made_by": "a test"}


def test_text_keys_of_both_transformers_generations_are_read(tiny_pipeline, tiny_folder, tmp_path):
    """Stock 5 writes keys without `text_model.`; files on the hub, and ours, have it: both give the same tower."""
    save_pipeline(tiny_pipeline, tmp_path / "saved")
    texts = [load_component(folder, "text_encoder").state_dict() for folder in (tiny_folder, tmp_path / "saved")]
    assert all(torch.equal(texts[0][key], texts[1][key]) for key in texts[0])
    for folder, prefixed in ((tiny_folder, False), (tmp_path / "saved", True)):
        with safe_open(folder / "text_encoder" / "model.safetensors", "pt") as file:
            assert all(key.startswith("text_model.") == prefixed for key in file.keys())


def test_sharded_weights_and_the_fp16_variant_are_read(tiny_stock, tiny_folder, tmp_path):
    """A component may lie in several files with an index, or be there in fp16 only."""
    shutil.copytree(tiny_folder, tmp_path / "sharded")
    (tmp_path / "sharded" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny_stock.unet.save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="300KB")
    names = [path.name for path in weight_files(tmp_path / "sharded") if path.parent.name == "unet"]
    assert len(names) > 2
    plain = load_component(tiny_folder, "unet").state_dict()
    sharded = load_component(tmp_path / "sharded", "unet").state_dict()
    assert all(torch.equal(sharded[key], tensor) for key, tensor in plain.items())

    shutil.copytree(tiny_folder, tmp_path / "fp16")
    (tmp_path / "fp16" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    save_component(load_component(tiny_folder, "unet"), tmp_path / "half", dtype=torch.float16)
    variant = tmp_path / "fp16" / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    (tmp_path / "half" / "diffusion_pytorch_model.safetensors").rename(variant)
    halved = load_component(tmp_path / "fp16", "unet").state_dict()
    assert all(torch.equal(halved[key], tensor.half().float()) for key, tensor in plain.items())
    assert variant in weight_files(tmp_path / "fp16")


def test_vae_files_from_before_diffusers_0_15_are_read(tiny_folder, tmp_path):
    """Stable Diffusion 1's VAE on the hub names its attention query, key, value and proj_attn."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_folder, tmp_path / "old")
    path = tmp_path / "old" / "vae" / "diffusion_pytorch_model.safetensors"
    spelled = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for key, tensor in load_file(path).items():
        for new, old in spelled.items():
            key = key.replace(new, old)
        tensors[key] = tensor.clone()
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    plain, old = (load_component(folder, "vae").state_dict() for folder in (tiny_folder, tmp_path / "old"))
    assert all(torch.equal(plain[key], tensor) for key, tensor in old.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_stay_in_the_file_until_they_are_used(tiny_folder):
    """Loading copies nothing where nothing is cast: parameters of a component share the file's memory map."""
    vae = load_component(tiny_folder, "vae")
    name = str(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors")
    mappings = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    ranges = [range(int(first, 16), int(last, 16)) for first, last in mappings]
    for parameter in vae.parameters():
        assert any(parameter.data_ptr() in mapped for mapped in ranges)
    assert load_component(tiny_folder, "vae", BF16).dtype == torch.bfloat16


def test_a_pipeline_takes_the_models_sampler_and_defaults(tiny_folder, tmp_path):
    """What models.toml says of a model holds in the pipeline."""
    models = tmp_path / "models.toml"
    entry = f'path = "{tiny_folder}"\nsampler = "euler"\nschedule = "karras"\nsteps = 7\nwidth = 32\nheight = 24\n'
    models.write_text(f"[models.tiny]\n{entry}")
    pipeline = load_pipeline(find_model("tiny", models), ON_CPU)
    assert (pipeline.scheduler.sampler, pipeline.scheduler.sigma_schedule) == ("euler", "karras")
    assert pipeline.defaults.num_inference_steps == 7
    assert pipeline("a cat", num_inference_steps=1).images[0].size == (32, 24)


def test_a_saved_pipeline_keeps_its_defaults_and_stock_passes_over_them(tiny_pipeline, tmp_path, caplog):
    tiny_pipeline.defaults = GenerationDefaults(num_inference_steps=7, guidance_scale=2.5, width=16, height=16)
    tiny_pipeline.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["_defaults"] == {
        "num_inference_steps": 7,
        "guidance_scale": 2.5,
    }
    assert load(tmp_path / "model").defaults == tiny_pipeline.defaults
    StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    assert "_defaults" not in caplog.text


@pytest.mark.parametrize("kept", [{"guidance_scale": "much"}, {"num_inference_steps": 0}, {"sampler": "magic"}, 5])
def test_defaults_that_make_no_sense_are_refused(kept, tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_defaults": kept}))
    with pytest.raises(SdcliError, match=f"{index}: _defaults"):
        find_model(str(tmp_path / "model"))


def test_parts_that_there_are_not_yet_are_null_and_reported(tiny_pipeline, tmp_path):
    """A training run saves what it has; generating from it says which part is missing and how to get it."""
    save_components({"vae": tiny_pipeline.vae}, tmp_path / "run")
    index = json.loads((tmp_path / "run" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["unet"] == [None, None]
    assert list(load_components(tmp_path / "run")) == ["vae"]
    with pytest.raises(SdcliError, match="has no text_encoder") as caught:
        load(tmp_path / "run")
    assert "--part clip" in caught.value.hint


def test_a_model_is_replaced_whole_and_its_card_kept(tiny_pipeline, tmp_path):
    """Saving again over a model leaves no stale component, keeps what is no component, and no temporary files."""
    save_pipeline(tiny_pipeline, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("the card")
    save_components({"vae": tiny_pipeline.vae}, tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == ["README.md", "model_index.json", "vae"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_failed_save_leaves_what_was_there(tiny_pipeline, tmp_path, monkeypatch):
    """A full disk in the middle of saving: the error says so, the model that was there still loads, no scraps stay."""
    save_pipeline(tiny_pipeline, tmp_path / "model")

    def full_disk(_, path, metadata):
        path.write_bytes(b"as far as it goes")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writing, "save_file", full_disk)
    path = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(SdcliError, match=f"cannot write {path}: No space left on device"):
        save_pipeline(tiny_pipeline, tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    load(tmp_path / "model")


def test_a_place_that_cannot_be_written_is_named(tiny_pipeline, tmp_path):
    """As a folder inside of a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SdcliError, match=f"cannot write {tmp_path / 'file' / 'model'}: Not a directory"):
        save_pipeline(tiny_pipeline, tmp_path / "file" / "model")


def test_a_folder_that_is_no_model_is_never_replaced(tiny_pipeline, tmp_path):
    """Saving into a folder with other things in it is refused, because it would delete them."""
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(SdcliError, match="holds no model_index.json"):
        save_pipeline(tiny_pipeline, tmp_path)
    with pytest.raises(SdcliError, match="holds no config.json"):
        save_component(tiny_pipeline.vae, tmp_path)
    assert os.listdir(tmp_path) == ["diary.txt"]


def test_weights_too_large_for_half_precision_are_not_saved_as_infinity(tiny_pipeline, tmp_path):
    """Fp16 ends at 65504; a weight beyond it is an error that names it."""
    with torch.no_grad():
        tiny_pipeline.vae.decoder.conv_out.bias[0] = 1e6
    with pytest.raises(SdcliError, match=r"vae: decoder.conv_out.bias has values too large for fp16"):
        save_pipeline(tiny_pipeline, tmp_path / "saved", dtype=torch.float16)
    assert not (tmp_path / "saved").exists()


def test_one_component_is_saved_and_read_alone(tiny_pipeline, tmp_path):
    """A VAE of its own, as `--vae` will take it."""
    save_component(tiny_pipeline.vae, tmp_path / "vae")
    again = load_network(tmp_path / "vae", named("diffusers", "AutoencoderKL", "vae"))
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in tiny_pipeline.vae.state_dict().items())
    sums = {sha256_of(path) for path in (tmp_path / "vae").iterdir()}
    assert len(sums) == 2 and all(len(checksum) == 64 for checksum in sums)


def test_components_are_replaced_and_readable_by_others(tiny_pipeline, tmp_path):
    """A component may be saved again over itself, and files have the permissions that the user's other files have."""
    (tmp_path / "plain").write_text("")
    for component in (tiny_pipeline.vae, tiny_pipeline.scheduler, tiny_pipeline.tokenizer):
        for _ in range(2):
            save_component(component, tmp_path / "component")
        for path in (tmp_path / "component").iterdir():
            assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, path.name
        shutil.rmtree(tmp_path / "component")


def tiny_clip(pipeline) -> CLIP:
    """A CLIP whose text encoder has the size of a pipeline's, with fresh weights."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {key: value for key, value in dict(pipeline.text_encoder.config).items() if not key.startswith("_")}
    return CLIP(text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8}, projection_dim=24).eval()


def test_a_whole_clip_is_saved_and_read(tiny_pipeline, tmp_path):
    """Text encoder, image encoder and head come back, and stock's image encoder reads its part."""
    clip = tiny_clip(tiny_pipeline)
    save_clip(clip, tmp_path / "clip", tiny_pipeline.tokenizer, metadata={"epoch": "3"})
    again = load_clip(tmp_path / "clip")
    assert clip.state_dict().keys() == again.state_dict().keys()
    input_ids = tiny_pipeline.tokenizer(["a cat", "a dog"], padding="max_length", return_tensors="pt").input_ids
    pixel_values = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(clip(input_ids, pixel_values).logits_per_text, again(input_ids, pixel_values).logits_per_text)
    parts = load_components(tmp_path / "clip")
    assert set(parts) == {"text_encoder", "tokenizer", "image_encoder", "clip_head"}
    stock = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip" / "image_encoder")
    torch.testing.assert_close(stock(pixel_values).image_embeds, clip.towers()[1](pixel_values).image_embeds)


@pytest.mark.parity
def test_stock_reads_a_model_with_a_whole_clip_in_it(tiny_pipeline, tmp_path, caplog):
    """The image encoder is one of stock's optional components, and the head's folder is passed over."""
    save_components({**tiny_pipeline.components, **clip_parts(tiny_clip(tiny_pipeline))}, tmp_path / "model")
    with caplog.at_level("WARNING"):
        stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert not caplog.records
    assert stock.image_encoder is not None
    assert differs_by(picture(stock), picture(load(tmp_path / "model"))) <= 2


@pytest.mark.parity
def test_encoders_with_a_projection_go_both_ways(tiny_stock, tmp_path):
    """CLIPTextModelWithProjection (SDXL) and CLIPVisionModelWithProjection keep their weights through our classes."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8
    )
    for stock in (CLIPTextModelWithProjection(tiny_stock.text_encoder.config), CLIPVisionModelWithProjection(vision)):
        name = type(stock).__name__
        stock.save_pretrained(tmp_path / "stock" / name)
        ours = load_network(tmp_path / "stock" / name, named("transformers", name, name))
        save_component(ours, tmp_path / "ours" / name)
        again, info = type(stock).from_pretrained(tmp_path / "ours" / name, output_loading_info=True)
        assert not any(info.values())
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in stock.state_dict().items())
