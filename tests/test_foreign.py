"""Other families run by diffusers' own pipelines, with the same command, flags, files and metadata."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.utils import logging as diffusers_logging
from families import VOCABULARY, text_encoder
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers.utils import logging as transformers_logging

from sdcli.checkpoints.tokenizers import clip_tokenizer
from sdcli.cli import run
from sdcli.images import load_image, read_text

SIDE_PX = 32
OPTIONS = {"height": SIDE_PX, "width": SIDE_PX, "num_inference_steps": 2, "output_type": "np"}


def vae(channels: int) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=channels,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def t5() -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    """A text encoder of one layer, and a tokenizer of a few words."""
    words = ["<pad>", "</s>", "<unk>", "a", "red", "cat", "dog"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(1)
    config = T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    return T5EncoderModel(config).eval(), fast


def sd3() -> StableDiffusion3Pipeline:
    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pooled_projection_dim=128,
        out_channels=4,
    )
    tokenizer = clip_tokenizer("<|endoftext|>", VOCABULARY)
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(4),
        text_encoder=text_encoder(2, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder(3, openclip=True, projection=True),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux() -> FluxPipeline:
    torch.manual_seed(2)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    encoder, tokenizer = t5()
    return FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(4),
        text_encoder=text_encoder(2),
        tokenizer=clip_tokenizer("<|endoftext|>", VOCABULARY),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    )


def pixart() -> PixArtAlphaPipeline:
    torch.manual_seed(2)
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
    )
    encoder, tokenizer = t5()
    return PixArtAlphaPipeline(
        transformer=transformer.eval(),
        scheduler=DDIMScheduler(clip_sample=False),
        vae=vae(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


MAKERS = {"sd3": sd3, "flux": flux, "pixart": pixart}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Each family as a folder of stock's own saver."""
    made = {}
    for name, make in MAKERS.items():
        made[name] = tmp_path_factory.mktemp("foreign") / name
        make().save_pretrained(made[name])
    return made


@pytest.mark.parity
@pytest.mark.parametrize("name", MAKERS)
def test_another_family_makes_stocks_picture_by_the_same_command(name, folders, tmp_path, monkeypatch, capsys):
    """Path on stdout, settings and hashes in the file, the picture of the stock pipeline and generator."""
    monkeypatch.chdir(tmp_path)
    command = ["generate", "a red cat", "-m", str(folders[name]), "-W", str(SIDE_PX), "-H", str(SIDE_PX)]
    command += ["--steps", "2", "-g", "3", "-s", "7", "-o", "cat.png", "--device", "cpu", "--progress", "none"]
    assert run(command) == 0
    assert capsys.readouterr().out == "cat.png\n"
    absent = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor") if name == "sd3" else ()
    pipeline = type(MAKERS[name]()).from_pretrained(folders[name], **dict.fromkeys(absent))
    pipeline.set_progress_bar_config(disable=True)
    more = {"use_resolution_binning": False} if name == "pixart" else {}
    drawn = [torch.Generator().manual_seed(7)]
    expected = pipeline(["a red cat"], guidance_scale=3.0, generator=drawn, **OPTIONS, **more).images[0]
    made = numpy.asarray(load_image(tmp_path / "cat.png")) / 255
    assert expected.std() > 0.01
    assert numpy.abs(expected - made).max() <= 1 / 255
    about = json.loads(read_text(tmp_path / "cat.png")[0]["sdcli"])
    assert about["settings"]["guidance_scale"] == 3.0 and about["settings"]["seed"] == 7
    assert any(path.startswith("transformer/") for path in about["weights"])


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("sd3", ("--sampler", "euler"), "--sampler does not go with StableDiffusion3Pipeline"),
        ("sd3", ("--eta", "0.5"), "--eta does not go with StableDiffusion3Pipeline"),
        ("flux", ("--clip-skip", "1"), "--clip-skip does not go with FluxPipeline"),
        ("flux", ("--hires-scale", "2"), "--hires-scale does not go with FluxPipeline"),
        ("pixart", ("--save-steps", "a.png"), "--save-steps does not go with"),
        ("pixart", ("--schedule", "karras"), "--schedule does not go with PixArtAlphaPipeline"),
        ("flux", ("--lenient",), "--lenient does not go with"),
        ("flux", ("--clip-guidance", "2"), "--clip-guidance does not go with FluxPipeline"),
        ("flux", ("--best-of", "2"), "has no CLIP image tower"),
    ],
)
def test_what_a_family_does_not_take_is_refused(name, flags, message, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ("-W", str(SIDE_PX), "-H", str(SIDE_PX))
    assert run(["generate", "a cat", "-m", str(folders[name]), *size, *flags, "-o", "b.png"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_said_where_nothing_is_to_be_said(name, folders, tmp_path, monkeypatch, capsys):
    """The libraries' bars of loading are not ours, and do not stay switched off for others."""
    monkeypatch.chdir(tmp_path)
    size = ("-W", str(SIDE_PX), "-H", str(SIDE_PX), "--steps", "1", "-s", "1", "--progress", "none")
    assert run(["generate", "a cat", "-m", str(folders[name]), *size, "-o", "b.png"]) == 0
    assert capsys.readouterr().err == ""
    assert diffusers_logging.is_progress_bar_enabled() and transformers_logging.is_progress_bar_enabled()


def test_a_size_that_a_family_would_change_is_refused(folders, tmp_path, monkeypatch, capsys):
    """Flux takes latents in twos, and stock cuts what is left over; as wide as that goes, nothing is cut."""
    monkeypatch.chdir(tmp_path)
    pipeline = FluxPipeline.from_pretrained(folders["flux"])
    torch.manual_seed(0)
    config = {**pipeline.vae.config, "block_out_channels": (16,) * 4}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    FluxPipeline(**{**pipeline.components, "vae": AutoencoderKL.from_config(config)}).save_pretrained("eight")
    command = ["generate", "a cat", "-m", "eight", "-H", "32", "--steps", "1", "--progress", "none", "-o", "b.png"]
    assert run([*command, "-W", "40"]) == 1
    assert "error: FluxPipeline takes multiples of 16 pixels only, not 40x32" in capsys.readouterr().err
    assert not Path("b.png").exists()
    assert run([*command, "-W", "48"]) == 0
    assert load_image(Path("b.png")).size == (48, 32)


def test_a_lora_in_a_pickle_needs_to_be_allowed(folders, tmp_path, monkeypatch, capsys):
    """And is not run then either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.bin").write_bytes(b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch it-ran\x85R.")
    command = [
        "generate",
        "a cat",
        "-m",
        str(folders["flux"]),
        "-W",
        "32",
        "-H",
        "32",
        "--lora",
        "evil.bin",
        "-o",
        "b.png",
    ]
    for flags, says in (([], "evil.bin is a pickle"), (["--allow-pickle"], "a LoRA does not fit FluxPipeline")):
        assert run([*command, *flags]) == 1
        error = capsys.readouterr().err
        assert says in error and "Traceback" not in error
    assert not (tmp_path / "it-ran").exists() and not (tmp_path / "b.png").exists()


def test_a_folder_of_another_family_that_is_damaged_is_one_error(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["sd3"], tmp_path / "broken")
    (tmp_path / "broken" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    assert run(["generate", "a cat", "-m", "broken", "-W", "32", "-H", "32", "-o", "c.png"]) == 1
    error = capsys.readouterr().err
    assert "error: broken does not load: " in error and "Traceback" not in error


def test_what_is_no_number_is_no_picture(folders, tmp_path, monkeypatch, capsys):
    """Exit code 4 and no file, as for our own components."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["sd3"], tmp_path / "broken")
    file = tmp_path / "broken" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_out.bias"][0] = float("nan")
    save_file(tensors, file)
    assert run(["generate", "a cat", "-m", "broken", "-W", "32", "-H", "32", "--steps", "1", "-o", "c.png"]) == 4
    assert "is not a number" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()
