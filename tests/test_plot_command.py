"""`sdcli plot` as it is typed: what is drawn, what is told, and what is refused with one error and one hint."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.folder import ON_CPU
from sdcli.cli import run
from sdcli.components.divergence import prior_kl
from sdcli.components.guidance import guide
from sdcli.components.schedule import make_betas, to_original_sample
from sdcli.errors import SdcliError
from sdcli.evaluation.schedules import Range, betas_of, figures_of, visited, without_signal_at_the_end
from sdcli.evaluation.trajectory import prior_divergences, record, spread
from sdcli.registry import find_model
from sdcli.settings import DenoiseSettings

UPDATES = [{"global_step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 21)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def plot(*arguments: object) -> int:
    return run(["plot", *(str(argument) for argument in arguments)])


def refused(capsys, code: int = 1) -> tuple[str, str]:
    """The error and the hint, which are all that was said."""
    out, err = capsys.readouterr()
    assert out == ""
    error, hint = err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint:  ")
    return error[7:], hint[7:]


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "run"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in UPDATES) + '{"glob')
    return folder


def commands(tiny_folder: Path, squares: Path, run_folder: Path) -> dict[str, tuple]:
    picture = squares / "red.png"
    return {
        "schedule": ("linear", "cosine", tiny_folder, "--zero-snr", "--steps", "10", "--sampler", "euler"),
        "training": (run_folder / "unet",),
        "similarity": (picture, squares / "blue.png", "--caption", "a red square", "--caption", "a blue square"),
        "trajectory": ("the cat", "--model", tiny_folder, "--seed", "1", "--steps", "4", "--rows", "3"),
        "forward": (picture, "--model", tiny_folder, "--latents"),
    }


@pytest.mark.parametrize("name", ["schedule", "training", "similarity", "trajectory", "forward"])
def test_figures_are_drawn_as_png_and_svg(name, tiny_folder, squares, run_folder, capsys):
    """The path is the result; the same words give the same bytes; nothing is overwritten unasked."""
    words = commands(tiny_folder, squares, run_folder)[name]
    assert plot(name, *words, "-o", "a.png") == 0
    assert capsys.readouterr() == ("a.png\n", "")
    first = Path("a.png").read_bytes()
    pixels = numpy.asarray(Image.open("a.png").convert("RGB"))
    assert 300 < min(pixels.shape[:2]) and len(numpy.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert plot(name, *words, "-o", "b.svg", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == "b.svg"
    assert Path("b.svg").read_text().startswith("<?xml") and "dc:date" not in Path("b.svg").read_text()
    assert plot(name, *words, "-o", "a.png") == 1
    assert "a.png" in refused(capsys)[0]
    assert plot(name, *words, "-o", "a.png", "--if-exists", "overwrite") == 0
    assert Path("a.png").read_bytes() == first
    Path("a.png").write_bytes(b"mine")
    assert plot(name, *words, "-o", "a.png", "--if-exists", "number") == 0
    assert capsys.readouterr().out.strip().endswith("a-1.png") and Path("a-1.png").exists()
    assert plot(name, *words, "-o", "a.png", "--if-exists", "skip") == 0
    assert Path("a.png").read_bytes() == b"mine"
    capsys.readouterr()
    assert plot(name, *words, "-o", "a.pdf") == 1
    assert refused(capsys) == ("--output a.pdf must end in .png or .svg", "try --output a.png")


def test_the_grid_is_a_table_too(squares, capsys):
    """Without --output; in JSON also as probabilities, which sum to 1 for each picture."""
    words = ("similarity", squares / "red.png", squares / "blue.png", "--caption", "a red square")
    assert plot(*words, "--caption", "a blue square") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["red.png", "blue.png"]
    assert [row.split()[:3] for row in rows] == [["a", "red", "square"], ["a", "blue", "square"]]
    assert plot(*words, "--caption", "a blue square", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert float(rows[0].split()[3]) == pytest.approx(told["similarities"][0][0], abs=5e-4)
    assert numpy.sum(told["probabilities"], axis=0) == pytest.approx([1, 1])
    assert "path" not in told
    assert all(abs(value) <= 1 for row in told["similarities"] for value in row)


def test_dollars_are_no_formulas(squares, tiny_folder, capsys):
    """In captions and prompts, also where they would be a bad one; and a grid may be one cell."""
    assert plot("similarity", squares / "red.png", "--caption", r"$\bad 5$", "-o", "a.png") == 0
    quick = ("--model", tiny_folder, "--seed", "1", "--steps", "1")
    assert plot("trajectory", r"$\bad 5$ " * 30, *quick, "-o", "b.png") == 0


@pytest.mark.parametrize(
    ("words", "message", "in_hint"),
    [
        (("schedule", "cosin"), "'cosin' is neither a noise schedule nor a model", "cosine"),
        (("schedule", "linear", "--steps", "1001"), "--steps 1001 does not fit a schedule of 1000", "1 to 1000"),
        (
            ("schedule", "--num-train-timesteps", "10", "--steps", "20"),
            "--steps 20 does not fit a schedule of 10",
            "10",
        ),
        (("schedule", "--steps", "0"), "--steps 0 does not fit a schedule of 1000", "1 to 1000"),
        (("schedule", "--num-train-timesteps", "1"), "--num-train-timesteps must be from 2", "1000"),
        (("schedule", "--beta-start", "0.5", "--beta-end", "0.1"), "do not rise between 0 and 1", "0.012"),
        (("schedule", "--sampler", "eular"), "--sampler knows no 'eular'", "euler"),
        (("schedule", "--steps", "9", "--schedule", "karras"), "ddim", "--schedule"),
        (("training", "nowhere"), "there is no run nowhere", "train"),
        (("training", "RUN"), "has no metrics.jsonl", "run/unet"),
        (("similarity", "nowhere.png", "--caption", "a"), "there is no file nowhere.png", "path"),
        (("similarity", "RED", "--caption", "a", "--model", "TINY"), "has no CLIP image tower", "emoji"),
        (("trajectory", "a", "--model", "TINY", "--steps", "1001"), "--steps", "20 to 50"),
        (("trajectory", "a", "--sampler", "pndm"), "pndm cannot start where no signal is left", "--sampler"),
        (("trajectory", "a", "--model", "TINY", "--rows", "0"), "--rows must be from 1 to 20", "--rows 1"),
        (
            ("trajectory", "a", "--model", "TINY", "--width", "13"),
            "--width must be a positive multiple of 8",
            "8 or 16",
        ),
        (("forward", "RED", "--timesteps", "0,1000"), "there is no timestep 1000", "to 999"),
        (("forward", "RED", "--timesteps", "a"), "--timesteps a is no list of timesteps", "--timesteps 0,250"),
        (("forward", "nowhere.png"), "there is no file nowhere.png", "path"),
    ],
)
def test_what_does_not_fit_is_one_error_and_one_hint(words, message, in_hint, tiny_folder, squares, run_folder, capsys):
    """And nothing is written."""
    stand_for = {"TINY": tiny_folder, "RED": squares / "red.png", "RUN": run_folder}
    assert plot(*(stand_for.get(word, word) for word in words), "-o", "a.png") == 1
    error, hint = refused(capsys)
    assert message in error and in_hint in hint
    assert not Path("a.png").exists()


def test_a_caption_of_400_words_is_refused_or_cut(squares, capsys):
    """With how long it is, and how long it may be."""
    words = ("similarity", squares / "red.png", "--caption", "red square " * 200)
    assert plot(*words) == 1
    error, hint = refused(capsys)
    assert "CLIP's text tower takes 32" in error and "--truncate" in hint
    assert plot(*words, "--truncate") == 0
    assert "warning: cut off after 32 tokens" in capsys.readouterr().err


def test_weights_that_are_no_numbers_end_with_4(tiny_folder, squares, tmp_path, capsys):
    """Of the UNet that draws, of the VAE that encodes, and of CLIP's image tower."""
    folder = tmp_path / "nan"
    shutil.copytree(tiny_folder, folder)
    for part, name in (("unet", "conv_out.bias"), ("vae", "quant_conv.bias")):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights[name].fill_(torch.nan)
        save_file(weights, path)
    assert plot("trajectory", "the cat", "--model", folder, "--steps", "2", "--seed", "1", "-o", "a.png") == 4
    assert "the UNet's output is not a number" in refused(capsys)[0]
    assert plot("forward", squares / "red.png", "--latents", "--model", folder, "-o", "a.png") == 4
    assert "the VAE's output is not a number" in refused(capsys)[0]
    emoji = tmp_path / "emoji"
    shutil.copytree(find_model("emoji").path, emoji)
    path = emoji / "image_encoder" / "model.safetensors"
    weights = load_file(path)
    weights["visual_projection.weight"].fill_(torch.nan)
    save_file(weights, path)
    assert plot("similarity", squares / "red.png", "--caption", "a", "--model", emoji) == 4
    assert "the CLIP image tower's output is not a number" in refused(capsys)[0]
    assert not Path("a.png").exists()


# What the figures show


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "heun"])
def test_the_trajectory_is_what_the_unet_was_shown_and_what_it_meant(sampler, tiny_model):
    """Whatever the sampler's own scale: noise first, and shown to the UNet again it gives the prediction beside it."""
    pipeline = load_pipeline(tiny_model, ON_CPU)
    changes = {"sampler": sampler, "clip_sample": False}
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
    settings = DenoiseSettings(num_inference_steps=5, guidance_scale=2.0)
    moments = record(pipeline, ("the cat", ""), (16, 16), settings, seed=3)
    noise = pipeline.prepare_latents([torch.Generator().manual_seed(3)], 16, 16)
    assert moments[0].step == 1 and moments[0].alpha_bar < 0.05
    torch.testing.assert_close(moments[0].noisy, noise, atol=0.01, rtol=0.01)
    timesteps = [each.timestep for each in moments]
    assert timesteps == sorted(timesteps, reverse=True)
    wanted, unwanted = pipeline.encode_prompt(["the cat"], [""])
    for moment in moments:
        shown = moment.noisy.repeat(2, 1, 1, 1)
        told = unwanted.joined(wanted).arguments(pipeline.unet)
        with torch.no_grad():
            output = pipeline.unet(shown, torch.tensor(moment.timestep), **told)
        predicted = to_original_sample(guide(*output.chunk(2), 2.0), moment.noisy, moment.alpha_bar, "epsilon")
        torch.testing.assert_close(moment.predicted, predicted, rtol=1e-3, atol=2e-3)


def test_steps_beyond_the_schedule_are_refused(tiny_model):
    """Of a model with few training timesteps."""
    pipeline = load_pipeline(tiny_model, ON_CPU)
    pipeline.scheduler = type(pipeline.scheduler)(num_train_timesteps=8)
    with pytest.raises(SdcliError, match="--steps 9 does not fit a schedule of 8"):
        record(pipeline, ("a", ""), (16, 16), DenoiseSettings(num_inference_steps=9, guidance_scale=1.0), 0)


def test_rows_are_spread_from_the_first_to_the_last():
    """One row is the last step; no step is drawn twice."""
    assert spread(list(range(20)), 6) == [0, 4, 8, 11, 15, 19]
    assert spread([1, 2], 6) == [1, 2]
    assert spread([1, 2, 3], 1) == [3]


def test_the_divergence_of_a_picture_is_the_prior_term_of_each_timestep():
    """One number with the mean square of all stands for them."""
    clean = torch.randn(1, 3, 8, 8) * 0.7
    left = torch.tensor([0.9, 0.5, 0.01, 0.0])
    expected = [float(prior_kl(clean.double(), alpha_bar)) / clean.numel() for alpha_bar in left.double().tolist()]
    assert prior_divergences(clean, left) == pytest.approx(expected, rel=1e-9)


def test_schedules_are_those_of_names_and_models(tiny_folder):
    """A model's own, and with zero terminal SNR the last alpha-bar 0 and the first kept."""
    about = Range()
    assert torch.equal(betas_of("cosine", about), make_betas("squaredcos_cap_v2"))
    stable = betas_of("scaled_linear", about)
    assert torch.equal(betas_of(str(tiny_folder), about), stable)
    assert figures_of(stable) == {"num_train_timesteps": 1000, "last_alpha_bar": pytest.approx(0.00466, abs=1e-5),
                                  "equal_at": 354}  # fmt: skip
    rescaled = without_signal_at_the_end(stable)
    assert float(rescaled[0]) == pytest.approx(float(stable[0]), rel=1e-3)
    assert figures_of(rescaled)["last_alpha_bar"] == 0
    assert without_signal_at_the_end(rescaled) is None
    assert visited(stable, 4, "ddim", None, "trailing") == [999, 749, 499, 249]
    assert visited(rescaled, 4, "ddim", None, "linspace")[0] == 999
