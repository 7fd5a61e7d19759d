"""What `sdcli generate` takes beside a prompt, as it is typed: pictures to begin from, LoRAs, ControlNets, previews."""

import json
import pickle
import random
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from conftest import seeded
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverSinglestepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from families import stock, write_folder, write_single_file
from lora_files import as_kohya, matrices
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli.checkpoints import load_pipeline, sha256_of
from sdcli.checkpoints.folder import ON_CPU
from sdcli.cli import run
from sdcli.errors import SdcliError
from sdcli.families import IGNORED, IGNORED_ENDS
from sdcli.images import load_image, read_text
from sdcli.registry import find_loadable

ROOT = Path(__file__).parent.parent
SIZE = ("-W", "32", "-H", "32")
QUICK = ("--steps", "3", "-s", "1", "-g", "3", "--device", "cpu", "--progress", "none")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory) -> Path:
    return write_folder("sd1", tmp_path_factory.mktemp("features") / "sd1")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return write_single_file("sd1", tmp_path_factory.mktemp("features") / "single")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder with a picture and a mask of 32 pixels, and a picture of 24."""
    monkeypatch.chdir(tmp_path)
    pixels = numpy.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(pixels[:24, :24]).save("small.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save("mask.png")


def generate(model: Path, *arguments: object, output: str = "out.png") -> numpy.ndarray:
    """The picture of a command that succeeds, (H, W, 3) in [0, 1]."""
    assert run(["generate", "a red cat", "-m", str(model), *map(str, arguments), *QUICK, "-o", output]) == 0
    return numpy.asarray(load_image(Path(output.format(seed=1)))) / 255


def refused(capsys, *arguments: object) -> str:
    """What a command says that fails: one error, one hint, no traceback, nothing written."""
    before = sorted(Path().iterdir())
    capsys.readouterr()
    assert run(["generate", "a red cat", *map(str, arguments), *QUICK, "-o", "refused.png"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    lines = [line for line in said.err.splitlines() if line.startswith(("error: ", "hint:  "))]
    assert [line[:5] for line in lines] == ["error", "hint:"], said.err
    assert sorted(Path().iterdir()) == before
    return lines[0]


def test_settings_of_everything_are_in_the_picture(sd1):
    """Enough to make it again: files, weights and strengths; hashes of what was put onto the model."""
    reference = StableDiffusionPipeline.from_pretrained(sd1, safety_checker=None)
    save_file(as_kohya(matrices(reference), reference), "it.safetensors")
    generate(
        sd1, "--init-image", "photo.png", "--mask", "mask.png", "--strength", "0.7", "--lora", "it.safetensors:0.5"
    )
    about = json.loads(read_text(Path("out.png"))[0]["sdcli"])
    settings = about["settings"]
    assert (settings["init_image"], settings["mask"], settings["strength"]) == ("photo.png", "mask.png", 0.7)
    assert settings["lora"] == ["it.safetensors:0.5"] and len(about["weights"]["it.safetensors"]) == 64
    assert (settings["width"], settings["height"]) == (32, 32)


@pytest.mark.slow
def test_each_of_them_changes_the_picture(sd1):
    """None is read and then forgotten."""
    reference = StableDiffusionPipeline.from_pretrained(sd1, safety_checker=None)
    save_file(as_kohya(matrices(reference), reference), "it.safetensors")
    save_file({"<thing>": torch.randn(2, 64)}, "word.safetensors")
    network = ControlNetModel.from_unet(
        reference.unet, conditioning_embedding_out_channels=(16, 32), load_weights_from_unet=False
    )
    seeded(network, 9).save_pretrained("control")
    seeded(reference.vae, 8).save_pretrained("vae")
    save_file(reference.vae.state_dict(), "vae.safetensors")
    plain = generate(sd1, output="plain.png")
    pictures = {}
    for number, flags in enumerate(
        (
            ("--init-image", "photo.png"),
            ("--init-image", "photo.png", "--strength", "0.4"),
            ("--init-image", "photo.png", "--mask", "mask.png"),
            ("--lora", "it.safetensors"),
            ("--lora", "it.safetensors:0.5"),
            ("--controlnet", "control", "--control-image", "photo.png"),
            ("--controlnet", "control", "--control-image", "photo.png", "--control-scale", "0.5"),
            ("--controlnet", "control", "--control-image", "photo.png", "--control-start", "0.5"),
            ("--vae", "vae"),
            ("--prediction-type", "v_prediction"),
            ("--timestep-spacing", "trailing"),
            ("--sampler", "diffusers.DPMSolverSinglestepScheduler"),
        )
    ):
        pictures[flags] = generate(sd1, *flags, output=f"{number}.png")
    values = [plain, *pictures.values()]
    for one in range(len(values)):
        for other in range(one):
            assert numpy.abs(values[one] - values[other]).max() > 4 / 255, (one, other)
    assert numpy.array_equal(pictures["--vae", "vae"], generate(sd1, "--vae", "vae.safetensors", output="same.png"))
    generate(sd1, "--embedding", "word.safetensors", output="word.png")
    assert run(["generate", "a <thing>", "-m", str(sd1), "--embedding", "word.safetensors", *QUICK, "-o", "t.png"]) == 0
    assert run(["generate", "a <thing>", "-m", str(sd1), *QUICK, "-o", "u.png"]) == 0
    with_word, without = (numpy.asarray(load_image(Path(name))) for name in ("t.png", "u.png"))
    assert not numpy.array_equal(with_word, without)


@pytest.mark.parity
def test_the_second_pass_is_stocks_image_to_image_of_the_enlarged_picture(sd1):
    """With the generator that goes on: first pass, enlarged as a file of 8 bits, second pass."""
    made = generate(sd1, "--hires-scale", "2", "--hires-strength", "0.7", "-W", "32", "-H", "32")
    assert made.shape == (64, 64, 3)
    stock = StableDiffusionPipeline.from_pretrained(sd1, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    drawn = [torch.Generator().manual_seed(1)]
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": drawn}
    image = stock(["a red cat"], height=32, width=32, **options).images[0]
    again = StableDiffusionImg2ImgPipeline.from_pipe(stock)
    again.set_progress_bar_config(disable=True)
    larger = image.resize((64, 64), Image.Resampling.LANCZOS)
    expected = again(["a red cat"], image=larger, strength=0.7, output_type="np", **options).images[0]
    assert numpy.abs(expected - made).max() <= 2 / 255


@pytest.mark.parity
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverSinglestepScheduler])
def test_any_scheduler_of_diffusers_may_be_the_sampler(kind, sd1):
    """By package.module.Class, on the model's own noise schedule."""
    made = generate(sd1, "--sampler", f"diffusers.{kind.__name__}", "-W", "32", "-H", "32")
    stock = StableDiffusionPipeline.from_pretrained(sd1, safety_checker=None)
    stock.scheduler = kind.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    drawn = [torch.Generator().manual_seed(1)]
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "generator": drawn, "output_type": "np"}
    expected = stock(["a red cat"], height=32, width=32, **options).images[0]
    assert numpy.abs(expected - made).max() <= 2 / 255
    about = json.loads(read_text(Path("out.png"))[0]["sdcli"])
    assert about["settings"]["sampler"] == f"diffusers.{kind.__name__}"


def test_a_lora_that_fits_in_part_is_an_error_or_a_warning(sd1, capsys):
    """The error says what to add; the warning says how many layers of how many were left out, once for all pictures."""
    reference = StableDiffusionPipeline.from_pretrained(sd1, safety_checker=None)
    tensors = as_kohya(matrices(reference), reference)
    save_file(tensors, "whole.safetensors")
    save_file({**tensors, "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2)}, "mixed.safetensors")
    count = len(matrices(reference))
    assert f"fits {count} of {count + 1} layers" in refused(capsys, "-m", sd1, *SIZE, "--lora", "mixed.safetensors")
    flags = ("--lenient", "-n", "2", *SIZE)
    generate(sd1, *flags, "--lora", "mixed.safetensors", output="{seed}.png")
    said = capsys.readouterr().err
    assert (
        said
        == f"warning: mixed.safetensors: 1 of {count + 1} layers were left out: the model has no lora_unet_nowhere\n"
    )
    generate(sd1, *flags, "--lora", "whole.safetensors", output="whole-{seed}.png")
    assert capsys.readouterr().err == ""
    for seed in (1, 2):
        made = (numpy.asarray(load_image(Path(f"{name}{seed}.png"))) for name in ("", "whole-"))
        assert numpy.array_equal(*made)


def test_a_preview_shows_the_colours_of_what_is_made(sd1, capsys):
    """By a projection that is fitted to the model's own VAE, or by a small VAE."""
    generate(sd1, "--preview", "preview.png", "-W", "32", "-H", "32")
    assert load_image(Path("preview.png")).size == (16, 16)
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained("tiny")
    generate(sd1, "--preview", "other.png", "--preview-vae", "tiny", "-W", "32", "-H", "32", output="b.png")
    assert load_image(Path("other.png")).size == (32, 32)
    assert "needs a file to show it in" in refused(capsys, "-m", sd1, "--preview-vae", "tiny")
    assert "must end in .png" in refused(capsys, "-m", sd1, "--preview", "a.jpg")
    assert "is no AutoencoderTiny" in refused(capsys, "-m", sd1, "--preview", "a.png", "--preview-vae", sd1 / "vae")


def test_the_projection_fits_the_built_in_vae():
    """White, a red and a blue are told apart: no channel is off by more than a third of the range."""
    from sdcli import load_pipeline
    from sdcli.preview import fit_projection

    pipeline = load_pipeline("emoji", device="cpu")
    for colour in ((1.0, 1.0, 1.0), (0.8, -0.6, -0.7), (-0.6, -0.2, 0.7)):
        picture = torch.ones(1, 3, 128, 128)
        picture[:, :, 32:96, 32:96] = torch.tensor(colour).view(3, 1, 1)
        latents = pipeline.encode(picture)[0, :, 8, 8]
        seen = fit_projection(pipeline) @ torch.cat([latents, torch.ones(1)])
        assert (seen - torch.tensor(colour)).abs().max() < 0.6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mask", "mask.png"), "--mask needs a picture to begin from"),
        (("--strength", "0.5"), "--strength needs a picture to begin from"),
        (("--init-image", "photo.png", "--strength", "0.1"), "--strength 0.1 of 3 steps is not one step"),
        (("--init-image", "photo.png", "--strength", "1.5"), "--strength must be from 0 to 1"),
        (("--init-image", "none.png"), "none.png"),
        (("--init-image", "photo.png", "-W", "24"), "--init-image photo.png is 32x32, the picture is to be 24x32"),
        (("--init-image", "photo.png", "--mask", "small.png"), "--mask small.png is 24x24"),
        (("--controlnet", "x/y"), "1 --controlnet and 0 --control-image"),
        (("--controlnet", "x/y", "--control-image", "small.png", "-W", "32", "-H", "32"), "small.png is 24x24"),
        (("--controlnet", "nothing", "--control-image", "photo.png"), "there is no ControlNet nothing"),
        (("--lora", "none.safetensors"), "there is no file none.safetensors"),
        (("--lora", "photo.png:0.5"), "photo.png is no safetensors file"),
        (("--lora", "a.safetensors:inf"), "the weight must be a number"),
        (("--embedding", "none.pt"), "there is no file none.pt"),
        (("--vae", "photo.png"), "photo.png is no safetensors file"),
        (("--vae", "nothing"), "no model named 'nothing'"),
        (("--hires-scale", "1.1"), "no multiple of 8"),
        (("--hires-scale", "0.5"), "--hires-scale must be from 1 to 8"),
        (("--sampler", "diffusers.Nothing"), "there is no sampler diffusers.Nothing"),
        (("--sampler", "diffusers.UNet2DModel"), "is no scheduler"),
        (("--sampler", "no_such_package.X"), "there is no sampler no_such_package.X"),
        (("--prediction-type", "noise"), "--prediction-type knows no 'noise'"),
    ],
)
def test_a_mistake_is_one_error(flags, message, sd1, capsys):
    size = () if "--init-image" in flags or "-W" in flags else ("-W", "32", "-H", "32")
    assert message in refused(capsys, "-m", sd1, *size, *flags)


def test_more_layers_than_a_text_encoder_has_are_not_left_out(sd1, tmp_path, capsys):
    """With the largest number that there is, for one text encoder and for two."""
    assert "--clip-skip must be from 0 to 3, got 4" in refused(capsys, "-m", sd1, *SIZE, "--clip-skip", "4")
    sdxl = write_folder("sdxl", tmp_path.parent / "clip-skip")
    assert "--clip-skip must be from 0 to 2, got 3" in refused(capsys, "-m", sdxl, *SIZE, "--clip-skip", "3")
    for model, most in ((sd1, 3), (sdxl, 2)):
        generate(model, *SIZE, "--clip-skip", most, output=f"{most}.png")


def test_a_picture_of_an_odd_size_to_begin_from_is_named(sd1, capsys):
    """Not the flags for the size, which were not given; one of many by a pattern too."""
    Image.open("photo.png").resize((32, 30)).save("photo-odd.png")
    for pattern in ("photo-odd.png", "photo*.png"):
        said = refused(capsys, "-m", sd1, "--init-image", pattern)
        assert said == "error: --init-image photo-odd.png: its height must be a positive multiple of 8, got 30"


@pytest.mark.parametrize("extra", ["extra", "missing", "shape", "lies", "cut", "no text", "no vae", "no unet", "vae"])
def test_a_single_file_that_is_not_whole_is_one_error(extra, single, capsys):
    """With the name of the key or the part."""
    tensors = load_file(single)
    unet = "model.diffusion_model."
    changed, message = {
        "extra": ({**tensors, f"{unet}odd.weight": torch.zeros(1)}, "no place for model.diffusion_model.odd.weight"),
        "missing": ({k: v for k, v in tensors.items() if k != f"{unet}out.2.bias"}, "conv_out.bias missing"),
        "shape": ({**tensors, f"{unet}out.0.bias": torch.zeros(3)}, "conv_norm_out.bias is (3,), expected (64,)"),
        "lies": (tensors, "it says its header has"),
        "cut": (tensors, "is damaged"),
        "no text": ({k: v for k, v in tensors.items() if "cond_stage" not in k}, "has no text_encoder"),
        "no vae": ({k: v for k, v in tensors.items() if "first_stage" not in k}, "has no vae"),
        "no unet": ({k: v for k, v in tensors.items() if unet not in k}, "is no model"),
        "vae": ({"decoder.conv_in.weight": torch.zeros(1)}, "is no model: it is a VAE"),
    }[extra]
    save_file(changed, "it.safetensors")
    content = Path("it.safetensors").read_bytes()
    if extra == "lies":
        Path("it.safetensors").write_bytes((10**9).to_bytes(8, "little") + content[8:])
    if extra == "cut":
        Path("it.safetensors").write_bytes(content[:-50])
    assert message in refused(capsys, "-m", "it.safetensors", "-W", "32", "-H", "32")


def test_a_part_that_a_file_of_sdxl_lacks_is_named(tmp_path, capsys):
    """Either of its text encoders, or both; with its VAE given beside it, the same picture as of the whole file."""
    whole = write_single_file("sdxl", tmp_path)
    tensors = load_file(whole)
    for lacks, name in (
        ("conditioner.embedders.0", "text_encoder"),
        ("conditioner.embedders.1", "text_encoder_2"),
        ("conditioner", "text_encoder_2"),
        ("first_stage_model", "vae"),
    ):
        save_file({key: each for key, each in tensors.items() if not key.startswith(lacks)}, "it.safetensors")
        assert f"it.safetensors has no {name}: " in refused(capsys, "-m", "it.safetensors", *SIZE), lacks
    with_vae = generate("it.safetensors", *SIZE, "--vae", tmp_path / "source" / "vae", output="with.png")
    assert numpy.array_equal(with_vae, generate(whole, *SIZE, output="whole.png"))


def test_pickles_links_and_strangers_are_one_error(sd1, capsys):
    """A model that is a pickle, a link that leads to itself, a hub id that is nowhere, files of another family."""
    Path("model.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
    assert "is a pickle" in refused(capsys, "-m", "model.ckpt")
    Path("loop").symlink_to("loop")
    for flag in ("-m", "--vae"):
        model = () if flag == "-m" else ("-m", sd1, *SIZE)
        assert "loop is a link that leads nowhere" in refused(capsys, *model, flag, "loop")
    assert "owner/nothing is not in the hub's cache" in refused(capsys, "-m", "owner/nothing", "--offline")
    levels = {"block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    network = ControlNetModel(cross_attention_dim=32, attention_head_dim=8, **levels)
    network.save_pretrained("control")
    said = refused(capsys, "-m", sd1, "--controlnet", "control", "--control-image", "photo.png", "-W", "32", "-H", "32")
    assert "is for another family of models" in said
    shutil.copytree(sd1, "copy")
    shutil.rmtree("copy/vae")
    assert "has no vae" in refused(capsys, "-m", "copy", "-W", "32", "-H", "32")


def test_what_is_for_another_model_is_one_error(sd1, capsys):
    """A LoRA of another family, embeddings of another width or for two text encoders, headers that lie."""
    reference = stock("sdxl")
    save_file(as_kohya(matrices(reference), reference), "xl.safetensors")
    save_file({"<a>": torch.zeros(1, 99)}, "wide.safetensors")
    save_file({"clip_l": torch.zeros(1, 64), "clip_g": torch.zeros(1, 64)}, "two.safetensors")
    Path("lies.safetensors").write_bytes((10**9).to_bytes(8, "little") + b"{}" * 50)
    for flag, file, says in (
        ("--lora", "xl.safetensors", "fits 22 of 138 layers"),
        ("--vae", "xl.safetensors", "is no VAE"),
        ("--embedding", "wide.safetensors", "99 numbers wide, the text encoder's 64"),
        ("--embedding", "two.safetensors", "vectors for text_encoder, text_encoder_2, the model has text_encoder"),
        ("--lora", "lies.safetensors", "it says its header has 1000000000 bytes"),
        ("--vae", "lies.safetensors", "it says its header has 1000000000 bytes"),
        ("--embedding", "lies.safetensors", "it says its header has 1000000000 bytes"),
    ):
        assert says in refused(capsys, "-m", sd1, flag, file, *SIZE), (flag, file)
    flags = ("--controlnet", "owner/nothing", "--control-image", "photo.png", "--offline")
    assert "owner/nothing is not in the hub's cache" in refused(capsys, "-m", sd1, *flags, *SIZE)


@pytest.mark.parametrize("count", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_a_single_file_without_any_of_its_keys_is_one_error(single, count):
    """Or with one of an odd shape: keys by chance, and no traceback."""
    tensors = load_file(single)
    draw = random.Random(0)
    for key in draw.sample(sorted(key for key in tensors if tensors[key].ndim), count):
        for changed in ({}, {key: torch.zeros(3)}):
            save_file({name: each for name, each in tensors.items() if name != key} | changed, "it.safetensors")
            try:
                load_pipeline(find_loadable("it.safetensors"), ON_CPU)
            except SdcliError as error:
                assert error.hint
                continue
            assert key.endswith(IGNORED_ENDS) or key.startswith(IGNORED), key


def test_a_model_for_inpainting_says_what_it_needs(tmp_path, capsys):
    """Before its weights are read; in either layout."""
    for write in (write_folder, write_single_file):
        model = write("sd1-inpainting", tmp_path / write.__name__)
        said = refused(capsys, "-m", model, "-W", "32", "-H", "32")
        assert "is for inpainting, and needs a picture and a mask" in said
    assert generate(model, "--init-image", "photo.png", "--mask", "mask.png").shape == (32, 32, 3)
    flags = ("--init-image", "photo.png", "--mask", "mask.png", "--hires-scale", "2")
    assert "--hires-scale does not go with --mask" in refused(capsys, "-m", model, *flags)


def test_every_file_of_weights_is_hashed(sd1, tmp_path):
    """Two of one name, a ControlNet and a VAE in the place of the model's own among them."""
    reference = StableDiffusionPipeline.from_pretrained(sd1, safety_checker=None)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        save_file(as_kohya(matrices(reference), reference), f"{folder}/it.safetensors")
    reference.vae.save_pretrained("other")
    network = ControlNetModel.from_unet(reference.unet, conditioning_embedding_out_channels=(16, 32))
    network.save_pretrained("control")
    flags = (
        "--lora",
        "a/it.safetensors:0.1",
        "--lora",
        "b/it.safetensors:0.1",
        "--vae",
        "other",
        "-W",
        "32",
        "-H",
        "32",
    )
    generate(sd1, *flags, "--controlnet", "control", "--control-image", "photo.png")
    weights = json.loads(read_text(Path("out.png"))[0]["sdcli"])["weights"]
    assert weights["it.safetensors"] == weights["b/it.safetensors"] == sha256_of(Path("a/it.safetensors"))
    files = [Path("other/diffusion_pytorch_model.safetensors"), Path("control/diffusion_pytorch_model.safetensors")]
    assert {sha256_of(path) for path in files} <= {*weights.values()}
    assert "vae/diffusion_pytorch_model.safetensors" not in weights
