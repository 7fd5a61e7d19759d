"""`sdcli evaluate` as it is typed: what stdout gets, and what is refused, each with one error and one hint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli.cli import run

QUICK = ("--progress", "none", "--device", "cpu")
DENOISING = (("likelihood", "--timesteps", "4"), ("denoiser", "--draws", "1"), ("vae",))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def evaluate(*arguments: object) -> int:
    return run(["evaluate", *(str(argument) for argument in arguments), *QUICK])


def refused(capsys, code: int = 1) -> tuple[str, str]:
    """The error and the hint, which are all that was said."""
    out, err = capsys.readouterr()
    assert out == ""
    error, hint = err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint:  ")
    return error[7:], hint[7:]


@pytest.mark.parametrize("command", DENOISING, ids=lambda command: command[0])
def test_figures_are_printed_and_drawn(command, squares, tiny_folder, capsys):
    """As lines, as one JSON object, and as PNG or SVG; the same each time."""
    words = (*command, "--data", squares, "--model", tiny_folder)
    assert evaluate(*words) == 0
    lines = capsys.readouterr().out
    assert "4 pictures" in lines
    found = []
    for file in ("a.png", "b.svg"):
        assert evaluate(*words, "--json", "--plot", file) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert found[-1].pop("plot") == file
    assert found[0] == found[1]
    assert Image.open("a.png").width == 900
    assert Path("b.svg").read_text().startswith("<?xml")
    assert evaluate(*words, "--plot", "a.png") == 1
    assert "a.png" in refused(capsys)[0]


def test_the_likelihood_says_what_its_terms_are(squares, tiny_folder, capsys):
    """All terms add up, and L_0 is said to be a density, beside which the VAE's own figures stand."""
    words = ("likelihood", "--data", squares, "--model", tiny_folder, "--timesteps", "10", "--json")
    assert evaluate(*words) == 0
    found = json.loads(capsys.readouterr().out)
    nats = found["nats"]
    assert nats["prior"] + nats["denoising"] + nats["decoder"] == pytest.approx(nats["bound"])
    assert found["decoder"] == "Gaussian density of the latents"
    assert (found["evaluated_timesteps"], found["num_train_timesteps"], found["stratified"]) == (11, 1000, True)
    assert set(found["vae"]) >= {"reconstruction", "kl_to_normal", "kl_to_diffusion_prior", "pixels_bits_per_dim"}
    assert len(found["by_timestep"]) == 6
    assert evaluate(*words, "--variance", "fixed_large", "--no-captions") == 0
    assert json.loads(capsys.readouterr().out)["nats"]["bound"] != nats["bound"]


def test_one_picture_has_no_error_of_pictures(squares, tiny_folder, capsys, tmp_path):
    """Its noise and timesteps have one; samples need more pictures than one."""
    words = ("--data", squares, "--model", tiny_folder, "-n", "1")
    assert evaluate("likelihood", *words, "--timesteps", "4", "--json") == 0
    nats = json.loads(capsys.readouterr().out)["nats"]
    assert nats["standard_error"] is None and nats["sampling_error"] > 0
    assert evaluate("likelihood", *words, "--timesteps", "4") == 0
    assert "± pictures" not in capsys.readouterr().out
    for command in ("vae", "denoiser"):
        assert evaluate(command, *words) == 0
    capsys.readouterr()
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(squares / "red.png", one)
    (one / "red.txt").write_text("a red square")
    assert evaluate("samples", "--data", one, "--samples", squares) == 1
    assert refused(capsys) == (f"{one} has 1 picture", "at least 4 are needed")
    assert evaluate("clip", "--data", one) == 1
    assert refused(capsys) == (f"{one} has 1 picture", "at least 2 are needed")


@pytest.mark.parametrize("command", ["likelihood", "vae", "clip", "denoiser", "samples"])
def test_an_empty_folder_is_refused(command, tmp_path, capsys):
    """And a missing one."""
    (tmp_path / "empty").mkdir()
    samples = ("--samples", "empty") if command == "samples" else ()
    assert evaluate(command, "--data", "empty", *samples) == 1
    assert refused(capsys)[0] == "empty has no pictures"
    assert evaluate(command, "--data", "nowhere", *samples) == 1
    assert refused(capsys)[0] == "no folder nowhere"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("likelihood", "--timesteps", "5000"), "--timesteps 5000 does not fit a schedule of 1000"),
        (("likelihood", "--timesteps", "7"), "--timesteps 7 does not fit a schedule of 1000"),
        (("likelihood", "--variance", "learned"), "--variance knows no 'learned'"),
        (("likelihood", "--plot", "a.jpg"), "--plot a.jpg must end in .png or .svg"),
        (("likelihood", "--resolution", "18"), "--resolution must be a positive multiple of 4"),
        (("denoiser", "--draws", "0"), "--draws must be from 1 to 1000"),
        (("vae", "--resolution", "8"), "SSIM needs pictures of at least 11 pixels, got 8"),
        (("vae", "--batch-size", "0"), "--batch-size must be from 1"),
        (("vae", "-n", "0"), "--num-pictures must be at least 1"),
        (("clip",), "has no CLIP image tower"),
        (("samples", "--samples", "x"), "has no CLIP image tower"),
    ],
)
def test_what_does_not_fit_is_one_error_and_one_hint(arguments, message, squares, tiny_folder, capsys):
    """Found before anything is computed."""
    assert evaluate(*arguments, "--data", squares, "--model", tiny_folder) == 1
    error, hint = refused(capsys)
    assert message in error
    if "tower" in message:
        assert "emoji" in hint


def test_a_bad_picture_is_named(squares, tiny_folder, tmp_path, capsys):
    """A damaged file, and a caption for none."""
    folder = tmp_path / "bad"
    shutil.copytree(squares, folder)
    (folder / "blue.png").write_bytes(b"no picture")
    assert evaluate("vae", "--data", folder, "--model", tiny_folder) == 1
    assert "blue.png is not a picture" in refused(capsys)[0]
    (folder / "blue.png").unlink()
    assert evaluate("vae", "--data", folder, "--model", tiny_folder) == 1
    assert "names a picture that is not there" in refused(capsys)[0]


@pytest.mark.parametrize(("part", "network"), [("unet", "UNet"), ("vae", "VAE")])
def test_weights_that_are_no_numbers_end_with_4(part, network, squares, tiny_folder, tmp_path, capsys):
    """Of whichever network the figures need."""
    folder = tmp_path / "nan"
    shutil.copytree(tiny_folder, folder)
    path = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias" if part == "unet" else "quant_conv.bias"].fill_(torch.nan)
    save_file(weights, path)
    for command in DENOISING[: 2 if part == "unet" else 3]:
        assert evaluate(*command, "--data", squares, "--model", folder) == 4
        assert refused(capsys)[0] == f"the {network}'s output is not a number"


def test_clip_and_samples_on_the_built_in_model(squares, tmp_path, capsys):
    """Figures of the squares themselves: distance 0 from themselves, everything found in them."""
    assert evaluate("samples", "--data", squares, "--samples", squares, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-5)
    assert (found["precision"], found["recall"], found["features"]) == (1.0, 1.0, 256)
    assert "4 pictures for 256 features" in err
    assert evaluate("clip", "--data", squares, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["captions"], found["image_to_text"]["r@10"]) == (4, 8, 1.0)
    assert "zero_shot" not in found


def test_a_caption_of_400_words_is_refused_or_cut(squares, tmp_path, capsys):
    """With its length, the length that fits, and the flag that cuts it; what is cut is told."""
    folder = tmp_path / "long"
    folder.mkdir()
    for name in ("red", "blue"):
        shutil.copy(squares / f"{name}.png", folder)
        (folder / f"{name}.txt").write_text(f"{name} square " * 200)
    assert evaluate("clip", "--data", folder) == 1
    error, hint = refused(capsys)
    assert "CLIP's text tower takes 32 (2 captions are too long)" in error
    assert "--truncate" in hint
    assert evaluate("clip", "--data", folder, "--truncate") == 0
    assert capsys.readouterr().err.count("warning: cut off after 32 tokens") == 2
    assert evaluate("likelihood", "--data", folder, "--timesteps", "2") == 0  # the UNet reads them in chunks
