"""Every command: exit code, stdout, stderr, help. Run in this process, by the function that `main` calls."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import sdcli
from sdcli.cli import app, run
from sdcli.images import load_image, read_text
from sdcli.settings import SAMPLER_NAMES

COMMANDS = (
    *("", "generate", "encode", "decode", "add-noise", "train", "info", "reproduce", "sweep", "serve"),
    *("evaluate", "evaluate likelihood", "evaluate vae", "evaluate clip", "evaluate denoiser", "evaluate samples"),
    *("plot", "plot schedule", "plot training", "plot similarity", "plot trajectory", "plot forward"),
    *("models", "models list", "models show", "models verify", "models convert"),
)
QUICK = ("--steps", "2", "--progress", "none")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def one_error(self, code: int = 1) -> tuple[str, str]:
        """The error and the hint, which are all that was said."""
        assert self.code == code, self
        assert self.out == ""
        error, hint = self.err.splitlines()
        assert error.startswith("error: ") and hint.startswith("hint:  ")
        return error[7:], hint[7:]


@pytest.fixture
def sdcli_run(capsys, tmp_path, monkeypatch, tiny_folder) -> Callable[..., Ended]:
    """Run a command in an empty folder; TINY stands for the tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def command(*arguments: str) -> Ended:
        capsys.readouterr()
        code = run([str(tiny_folder) if argument == "TINY" else argument for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return command


@pytest.fixture
def photo(tmp_path) -> Path:
    """A 16x16 picture."""
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(path)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples_that_parse(command):
    """Each example names a command that exists and flags that it has; nothing heavy is imported."""
    code = (
        "import sys\nfrom sdcli.cli import run\ncode = run(sys.argv[1:])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'PIL', 'numpy', 'rich', 'safetensors', 'accelerate'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    words = [sys.executable, "-c", code, *command.split(), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(sdcli.__file__).parent.parent, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    first, *lines = done.stdout.splitlines()
    assert first == "Examples:"
    examples = [line.strip() for line in lines[: lines.index("")]]
    assert examples
    for example in examples:
        for stage in example.split(" | "):
            check_example(shlex.split(stage))
    usage = " ".join(done.stdout.split("Usage: ")[1].split()[: 1 + len(command.split())])
    assert usage == f"sdcli {command}".strip()


def check_example(words: list[str]) -> None:
    """Parse an example as the command line does, without running it."""
    import typer

    assert words[0] == "sdcli"
    if "COMMAND" in words:
        return
    with typer.main.get_command(app).make_context("sdcli", words[1:]) as context:
        name, command, rest = context.command.resolve_command(context, context._protected_args + context.args)
        context.invoked_subcommand = name
        while True:
            inner = command.make_context(name, rest, parent=context)
            if not hasattr(command, "commands"):
                return
            name, command, rest = command.resolve_command(inner, inner._protected_args + inner.args)
            context = inner


def test_version_is_printed(sdcli_run):
    """On stdout."""
    assert sdcli_run("--version") == Ended(0, f"sdcli {sdcli.__version__}\n", "")


# Wrong usage: exit code 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "a", "--stesp", "3"), "--steps"),
        (("generate", "a", "--steps", "three"), "--steps"),
        (("generate", "a", "--if-exists", "maybe"), "--if-exists"),
        (("generate", "--steps", "3"), "PROMPT"),
        (("genrate", "a"), "generate"),
        (("encode", "a.png"), "--output"),
        (("models", "lst"), "list"),
    ],
)
def test_wrong_usage_ends_with_2(sdcli_run, arguments, message):
    """One line, and how to learn more."""
    error, hint = sdcli_run(*arguments).one_error(2)
    assert message in error
    assert "--help" in hint


@pytest.mark.parametrize("arguments", [(), ("generate",), ("models",)])
def test_a_command_without_arguments_shows_its_help(sdcli_run, arguments):
    """On stderr, as it is no result."""
    ended = sdcli_run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Examples:\n")


# Mistakes: exit code 1, before anything is loaded


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("-W", "515"), "--width must be a positive multiple of 8, got 515", "512 or 520"),
        (("--steps", "0"), "--steps must be from 1 to 1000, got 0", "20 to 50"),
        (("--seed", "-1"), "--seed must be from 0", "one is drawn"),
        (("-n", "0"), "--num-images must be from 1 to 100000, got 0", "1"),
        (("--sampler", "dpm++2m"), "--sampler knows no 'dpm++2m'", "did you mean dpmpp_2m"),
        (("--schedule", "karra"), "--schedule knows no 'karra'", "did you mean karras"),
        (("-m", "emoij"), "no model named 'emoij'", "did you mean emoji"),
        (("-m", "."), ". is no model", "diffusers"),
        (("-m", "photo.png"), "photo.png is no safetensors file", "again"),
        (("--models-file", "none.toml"), "--models-file: there is no file none.toml", "models.toml"),
        (("-o", "photo.png"), "photo.png is already there", "--if-exists"),
        (("-o", "photo.png/a.png"), "cannot make the folder photo.png", "--output"),
        (("-o", "{sed}.png"), "--output knows no field {sed}", "seed"),
        (("-o", "kitten"), "--output kitten: the name has no suffix", "kitten.png"),
        (("-n", "2", "-o", "a.png"), "2 files would all be a.png", "{index}"),
        (("--save-steps", "steps.mp4"), "--save-steps steps.mp4 must end in", "steps.gif"),
    ],
)
def test_a_mistake_in_generate_is_told_before_torch_loads(sdcli_run, photo, monkeypatch, arguments, message, hint):
    """One error, one hint, exit code 1, nothing written."""
    monkeypatch.setitem(sys.modules, "sdcli.batch.run", None)  # an attempt to import it would be a traceback
    before = files_in(photo.parent)
    model = () if "-m" in arguments else ("-m", "TINY")
    error, said = sdcli_run("generate", "a cat", *model, *arguments).one_error()
    assert message in error
    assert hint in said
    assert files_in(photo.parent) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sampler", "ddim", "--schedule", "karras"), "ddim has no sigma_schedule"),
        (("--sampler", "euler", "--eta", "1"), "--eta means nothing"),
        (("--device", "cuda:77"), "--device cuda:77"),
        (("--device", "cpu", "--precision", "fp16"), "fp16 does not work on the CPU"),
    ],
)
def test_a_mistake_that_torch_has_to_see_is_told_alone(sdcli_run, arguments, message):
    """Not even the drawn seed is mentioned."""
    assert message in sdcli_run("generate", "a cat", "-m", "TINY", *arguments).one_error()[0]


def break_model(folder: Path, how: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "pickle":
        weights.write_bytes(b"PK\x03\x04" + bytes(100))
    elif how == "no weights":
        weights.unlink()
    elif how == "no vae":
        for path in (folder / "vae").iterdir():
            path.unlink()
        (folder / "vae").rmdir()
    elif how == "a key":
        tensors = load_file(weights)
        tensors.pop("conv_in.weight")
        save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "damaged"),
        ("empty", "empty (0 bytes)"),
        ("pickle", "is a pickle"),
        ("no weights", "has no weights"),
        ("no vae", "has no vae"),
        ("a key", "conv_in.weight"),
    ],
)
def test_a_damaged_model_is_told(sdcli_run, tmp_path, tiny_folder, how, message):
    """With the file, exit code 1, nothing written."""
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "model")
    break_model(tmp_path / "model", how)
    ended = sdcli_run("generate", "a cat", "-m", "model", "-o", "a.png", *QUICK)
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err.splitlines()[0]
    assert ended.err.startswith("error: ") and "Traceback" not in ended.err
    assert not (tmp_path / "a.png").exists()


# generate


def test_generate_prints_paths_and_nothing_else(sdcli_run, tmp_path):
    """Results on stdout, one a line; with a given seed and no progress nothing on stderr."""
    ended = sdcli_run("generate", "a cat", "a dog", "-n", "2", "-s", "5", "-m", "TINY", "-o", "out/", *QUICK)
    names = ["00000-5-a-cat", "00001-6-a-cat", "00002-5-a-dog", "00003-6-a-dog"]
    assert ended == Ended(0, "".join(f"out/{name}.png\n" for name in names), "")
    assert files_in(tmp_path / "out") == [f"{name}.png" for name in names]


def test_generate_goes_to_outputs_by_time(sdcli_run):
    """Without --output."""
    path = sdcli_run("generate", "a cat", "-s", "1", "-m", "TINY", *QUICK).out.strip()
    assert path.startswith("outputs/") and path.endswith("-1-a-cat.png")
    assert load_image(Path(path)).size == (16, 16)


def test_a_drawn_seed_is_reported_and_makes_the_picture_again(sdcli_run, tmp_path):
    """On stderr, in the file, and in --json."""
    ended = sdcli_run("generate", "a cat", "-m", "TINY", "-o", "a.png", "--json", *QUICK)
    about = json.loads(ended.out)
    assert ended.err == f"seed: {about['seed']}\n"
    text, _, _ = read_text(tmp_path / "a.png")
    assert json.loads(text["sdcli"])["settings"]["seed"] == about["seed"]
    assert (about["path"], about["width"], about["sampler"]) == ("a.png", 16, "pndm")
    sdcli_run("generate", "a cat", "-m", "TINY", "-o", "b.png", "-s", str(about["seed"]), *QUICK)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_flag_reaches_the_settings(sdcli_run):
    """As --json shows them."""
    flags = "-N dog -s 9 --steps 3 -g 2.5 -W 24 -H 32 --sampler ddim --eta 0.5 --guidance-rescale 0.25 --clip-skip 1"
    ended = sdcli_run("generate", "a cat", "-m", "TINY", "-o", "a.png", "--json", *flags.split(), "--progress", "none")
    about = json.loads(ended.out)
    expected = {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "seed": 9,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "width": 24,
        "height": 32,
        "sampler": "ddim",
        "schedule": "normal",
        "eta": 0.5,
        "guidance_rescale": 0.25,
        "clip_skip": 1,
    }
    assert expected.items() <= about.items()


def test_defaults_are_the_models_own_unless_given(sdcli_run, tmp_path, tiny_folder):
    """From models.toml; its schedule goes with its sampler only."""
    (tmp_path / "models.toml").write_text(
        f'[models.mine]\npath = "{tiny_folder}"\nsteps = 2\nguidance_scale = 3\nwidth = 24\nsampler = "dpmpp_2m"\n'
        'schedule = "karras"\n'
    )
    common = ("generate", "a cat", "-m", "mine", "-s", "1", "--json", "--progress", "none", "-o")
    about = json.loads(sdcli_run(*common, "a.png").out)
    assert (about["num_inference_steps"], about["guidance_scale"], about["width"], about["height"]) == (2, 3, 24, 16)
    assert (about["sampler"], about["schedule"]) == ("dpmpp_2m", "karras")
    about = json.loads(sdcli_run(*common, "b.png", "--sampler", "ddim").out)
    assert (about["sampler"], about["schedule"]) == ("ddim", "normal")


def test_half_precision_works_on_the_cpu(sdcli_run):
    """bf16, for a picture, latents and back; the file says so."""
    half = ("-m", "TINY", "--precision", "bf16")
    assert sdcli_run("generate", "a cat", "-s", "1", "-o", "a.png", *QUICK, *half).code == 0
    assert json.loads(sdcli_run("info", "a.png", "--json").out)["sdcli"]["precision"] == "bf16"
    assert sdcli_run("encode", "a.png", "-o", "a.safetensors", *half).code == 0
    assert sdcli_run("decode", "a.safetensors", "-o", "b.png", *half).code == 0


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_sampler_makes_a_picture(sdcli_run, sampler):
    """None needs more than its name."""
    command = ("generate", "a cat", "-m", "TINY", "-s", "1", "-o", "a.png", "--steps", "4", "--progress", "none")
    ended = sdcli_run(*command, "--sampler", sampler)
    assert (ended.code, ended.err) == (0, "")


def test_existing_files_are_treated_as_told(sdcli_run, tmp_path):
    """Skip makes nothing and loads nothing; number and overwrite make the same picture."""
    command = ("generate", "a cat", "-m", "TINY", "-s", "1", *QUICK, "-o", "a.png")
    sdcli_run(*command)
    first = (tmp_path / "a.png").read_bytes()
    assert sdcli_run(*command, "--if-exists", "skip") == Ended(0, "", "")
    assert sdcli_run(*command, "--if-exists", "number").out == "a-1.png\n"
    assert sdcli_run(*command, "--if-exists", "overwrite").out == "a.png\n"
    assert (tmp_path / "a-1.png").read_bytes() == (tmp_path / "a.png").read_bytes() == first


@pytest.mark.parametrize("file_format", ["jpg", "webp"])
def test_other_formats_hold_the_same_texts(sdcli_run, tmp_path, file_format):
    """In EXIF."""
    sdcli_run("generate", "a cat", "-m", "TINY", "-s", "1", *QUICK, "-o", "out/", "--format", file_format)
    text, size, _ = read_text(tmp_path / "out" / f"00000-1-a-cat.{file_format}")
    assert size == (16, 16)
    assert text["parameters"].startswith("a cat\nSteps: 2, ")
    assert json.loads(text["sdcli"])["settings"]["prompt"] == "a cat"


def test_progress_as_json_is_an_event_a_line(sdcli_run):
    """Seed, load, steps, image, done; with rate and time left."""
    ended = sdcli_run("generate", "a cat", "-m", "TINY", "--steps", "2", "-o", "a.png", "--progress", "json")
    events = [json.loads(line) for line in ended.err.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "load" and kinds[1] == "seed" and kinds[-2:] == ["image", "done"]
    step = next(event for event in events if event["event"] == "step")
    assert {"step", "steps", "images_per_s", "eta_s", "elapsed_s"} <= set(step)
    assert events[-2]["path"] == "a.png" and ended.out == "a.png\n"


def test_a_prompt_may_be_long_and_prompt_editing_is_refused_at_once(sdcli_run):
    """Nothing is cut off; what is not there is said before a model loads."""
    long = "the (red:1.2) cat " * 30 + "the dog"
    ended = sdcli_run("generate", long, "-m", "TINY", "-s", "1", "--steps", "2", "-o", "a.png", "--progress", "none")
    assert (ended.code, ended.err) == (0, "")
    ended = sdcli_run("generate", "a [cat:dog:0.5]", "-m", "TINY", "-o", "b.png")
    assert ended.code == 1 and ended.err.startswith("error: prompt editing is not there: [cat:dog:0.5]\nhint: ")


def test_offline_opens_no_socket(sdcli_run, monkeypatch):
    """Nor does anything else with a model on disk."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert sdcli_run("generate", "a cat", "-m", "TINY", "-s", "1", "-o", "a.png", "--offline", *QUICK).code == 0
    assert os.environ["HF_HUB_OFFLINE"] == "1"


# encode, add-noise, decode


def test_latents_hold_what_decodes_them(sdcli_run, photo, tmp_path):
    """Scaled latents of every picture, and the metadata of the contract."""
    ended = sdcli_run("encode", "photo.png", "photo.png", "-m", "TINY", "-o", "both.safetensors", "--json")
    about = json.loads(ended.out)
    assert (about["path"], about["shape"], about["scaling_factor"]) == ("both.safetensors", [2, 4, 8, 8], "0.18215")
    assert (about["width"], about["height"], len(about["vae_sha256"])) == ("16", "16", 64)
    latents = load_file(tmp_path / "both.safetensors")["latents"]
    assert latents.shape == (2, 4, 8, 8)
    assert latents[0].equal(latents[1])


def test_decode_makes_a_picture_of_each(sdcli_run, photo):
    """With the model that the file names; several need names of their own."""
    sdcli_run("encode", "photo.png", "photo.png", "-m", "TINY", "-o", "both.safetensors")
    assert sdcli_run("decode", "both.safetensors", "-o", "p-{index}.png") == Ended(0, "p-0.png\np-1.png\n", "")
    assert load_image(Path("p-0.png")).size == (16, 16)
    assert sdcli_run("decode", "both.safetensors", "-o", "out/").out == "out/00000.png\nout/00001.png\n"
    assert "2 files would all be p.png" in sdcli_run("decode", "both.safetensors", "-o", "p.png").one_error()[0]
    assert sdcli_run("decode", "both.safetensors", "-o", "p-{index}.png", "--if-exists", "skip") == Ended(0, "", "")


def test_decode_warns_of_another_vae(sdcli_run, photo, tmp_path, tiny_folder):
    """It may be meant, so it is no error."""
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "other")
    weights = tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "quant_conv.bias": tensors["quant_conv.bias"] + 1}, weights, metadata={"format": "pt"})
    sdcli_run("encode", "photo.png", "-m", "TINY", "-o", "a.safetensors")
    ended = sdcli_run("decode", "a.safetensors", "-m", "other", "-o", "a.png")
    assert (ended.code, ended.out) == (0, "a.png\n")
    assert ended.err.startswith("warning: these latents were made by another VAE")


def test_comfyui_latents_are_decoded_and_noised(sdcli_run, photo, tmp_path):
    """They say less about themselves; scaled as the model has it."""
    sdcli_run("encode", "photo.png", "-m", "TINY", "-o", "a.safetensors")
    latents = load_file(tmp_path / "a.safetensors")["latents"]
    import torch

    save_file({"latent_tensor": latents / 0.18215, "latent_format_version_0": torch.tensor([])}, "a.latent")
    sdcli_run("decode", "a.safetensors", "-o", "ours.png")
    assert sdcli_run("decode", "a.latent", "-m", "TINY", "-o", "comfy.png").code == 0
    assert load_image(Path("comfy.png")).tobytes() == load_image(Path("ours.png")).tobytes()
    assert sdcli_run("add-noise", "a.latent", "-t", "10", "-s", "1", "-o", "n.safetensors").code == 0


def test_noise_is_the_forward_process(sdcli_run, photo, tmp_path):
    """sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) noise, of the seed, on latents and on pixels."""
    import torch

    from sdcli.components.schedule import alphas_cumprod, make_betas
    from sdcli.images import to_image, to_pixel_values

    sdcli_run("encode", "photo.png", "photo.png", "-m", "TINY", "-o", "a.safetensors")
    clean = load_file(tmp_path / "a.safetensors")["latents"]
    assert sdcli_run("add-noise", "a.safetensors", "-t", "500", "-s", "3", "-o", "n.safetensors").code == 0
    noisy = load_file(tmp_path / "n.safetensors")["latents"]
    left = alphas_cumprod(make_betas("scaled_linear"))[500]
    for place in range(2):
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3 + place))
        torch.testing.assert_close(noisy[place], left**0.5 * clean[place] + (1 - left) ** 0.5 * noise)
    assert sdcli_run("add-noise", "photo.png", "-t", "500", "-s", "3", "-o", "n.png").code == 0
    noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = left**0.5 * to_pixel_values(load_image(photo)) + (1 - left) ** 0.5 * noise
    assert load_image(Path("n.png")).tobytes() == to_image(expected).tobytes()
    about = json.loads(sdcli_run("info", "n.safetensors", "--json").out)
    assert (about["metadata"]["timestep"], about["metadata"]["seed"]) == ("500", "3")


def test_a_strip_goes_from_clean_to_noise(sdcli_run, photo):
    """Of a picture, and of latents by way of their VAE."""
    assert sdcli_run("add-noise", "photo.png", "--strip", "0,500,999", "-s", "1", "-o", "s.png").code == 0
    strip = load_image(Path("s.png"))
    assert strip.size == (48, 16)
    clean = load_image(photo).convert("L")
    differences = [
        sum(
            abs(a - b)
            for a, b in zip(strip.crop((x, 0, x + 16, 16)).convert("L").tobytes(), clean.tobytes(), strict=True)
        )
        for x in (0, 16, 32)
    ]
    assert differences == sorted(differences) and differences[0] < differences[2] / 5
    sdcli_run("encode", "photo.png", "-m", "TINY", "-o", "a.safetensors")
    assert sdcli_run("add-noise", "a.safetensors", "--strip", "0,999", "-s", "1", "-o", "l.png").code == 0
    assert load_image(Path("l.png")).size == (32, 16)


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        ("encode none.png -o a.safetensors", "there is no file none.png", "path"),
        ("encode empty.png -o a.safetensors", "empty.png is empty", "picture"),
        ("encode words.png -o a.safetensors", "words.png is not a picture", "PNG"),
        ("encode cut.png -o a.safetensors", "cut.png is damaged", "cut off"),
        ("encode photo.png odd.png -o a.safetensors", "photo.png is 16x16, odd.png is 15x16", "files of their own"),
        ("encode odd.png -o a.safetensors", "odd.png is 15x16, no multiple of 2", "14x16"),
        ("encode photo.png -o a.png", "--output a.png must end in .safetensors", "a.png.safetensors"),
        ("encode photo.png -o photo.png/a.safetensors", "cannot make the folder photo.png", "--output"),
        ("encode photo.png -o clean.safetensors", "clean.safetensors is already there", "--if-exists"),
        ("decode none.safetensors -o a.png", "there is no file none.safetensors", "path"),
        ("decode empty.png -o a.png", "empty.png is empty", "again"),
        ("decode cut.safetensors -o a.png", "cut.safetensors is ", "again"),
        ("decode scale.safetensors -o a.png", "scaling_factor is 'big', no positive number", "again"),
        ("decode clean.safetensors -o photo.png", "photo.png is already there", "--if-exists"),
        ("decode clean.safetensors -o a", "--output a: the name has no suffix", "a.png"),
        ("add-noise photo.png -o a.png", "needs one of --timestep and --strip", "-t 500"),
        ("add-noise photo.png -t 5 --strip 1,2 -o a.png", "needs one of --timestep and --strip", "-t 500"),
        ("add-noise photo.png --strip 1,x -o a.png", "--strip 1,x is no list", "0,250"),
        ("add-noise photo.png -t 1000 -o a.png", "there is no timestep 1000", "999"),
        ("add-noise photo.png -t -1 -o a.png", "there is no timestep -1", "999"),
        ("add-noise photo.png -t 5 -s -1 -o a.png", "--seed must be from 0", "drawn"),
        ("add-noise words.png -t 5 -o a.png", "words.png is not a picture", "PNG"),
        ("add-noise clean.safetensors -t 5 -o a.png", "must end in .safetensors", "a.png.safetensors"),
        ("add-noise noisy.safetensors -t 5 -o a.safetensors", "already noised, to timestep 500", "clean"),
        ("info none.png", "there is no file none.png", "path"),
        ("info empty.png", "empty.png is empty", "picture"),
        ("info words.png", "words.png is not a picture", "again"),
        ("info cut.safetensors", "cut.safetensors is ", "again"),
    ],
)
def test_bad_files_are_told(sdcli_run, photo, tmp_path, tiny_folder, command, message, hint):
    """One error, one hint, exit code 1, nothing written."""
    sdcli_run("encode", "photo.png", "-m", "TINY", "-o", "clean.safetensors")
    sdcli_run("add-noise", "clean.safetensors", "-t", "500", "-s", "1", "-o", "noisy.safetensors")
    Image.new("RGB", (15, 16)).save("odd.png")
    for name, content in {
        "empty.png": b"",
        "words.png": b"only words\n",
        "cut.png": photo.read_bytes()[:-30],
        "cut.safetensors": (tmp_path / "clean.safetensors").read_bytes()[:200],
    }.items():
        (tmp_path / name).write_bytes(content)
    metadata = {"scaling_factor": "big", "model": str(tiny_folder)}
    save_file(load_file("clean.safetensors"), "scale.safetensors", metadata=metadata)
    before = files_in(tmp_path)
    words = command.split()
    model = ("-m", "TINY") if words[0] == "encode" else ()
    error, said = sdcli_run(*words, *model).one_error()
    assert message in error
    assert hint in said
    assert files_in(tmp_path) == before


# models, info


def test_models_are_listed_with_the_default(sdcli_run, tmp_path):
    """A star in the text, a key in the JSON; what is not on disk says so."""
    (tmp_path / "models.toml").write_text('[models.gone]\npath = "gone"\nlicence = "MIT"\n')
    lines = {line.split()[0]: line for line in sdcli_run("models", "list").out.splitlines()}
    assert {"emoji", "gone", "sd15", "sdxl", "sdxl-turbo"} <= lines.keys()
    assert lines["emoji"].startswith("emoji *") and "missing" in lines["gone"] and "MIT" in lines["gone"]
    entries = [json.loads(line) for line in sdcli_run("models", "list", "--json").out.splitlines()]
    assert {entry["name"]: entry["default"] for entry in entries if entry["default"]} == {"emoji": True}
    (turbo,) = [entry["defaults"] for entry in entries if entry["name"] == "sdxl-turbo"]
    assert (turbo["num_inference_steps"], turbo["guidance_scale"], turbo["timestep_spacing"]) == (2, 1.0, "trailing")


def test_models_are_verified_file_by_file(sdcli_run, tmp_path, tiny_folder):
    """Size, hash and what is wrong; a bad one is exit code 1."""
    ended = sdcli_run("models", "verify", "TINY", "--json")
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 0 and {each["problem"] for each in found} == {""}
    assert {each["file"].split("/")[0] for each in found} == {"unet", "vae", "text_encoder"}
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, file)
    cut = broken / "vae" / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    ended = sdcli_run("models", "verify", "broken")
    assert ended.code == 1 and "error: 2 of the files of broken are bad" in ended.err
    assert "conv_in.bias has values that are no numbers" in ended.out and "is damaged" in ended.out


def test_a_model_is_shown_with_its_defaults(sdcli_run):
    """By name or folder."""
    about = json.loads(sdcli_run("models", "show", "TINY", "--json").out)
    assert about["on_disk"] is True and about["defaults"]["width"] == 16
    assert "clip_skip:" in sdcli_run("models", "show", "emoji").out
    assert "did you mean emoji" in sdcli_run("models", "show", "emoij").one_error()[1]


def test_info_tells_pictures_latents_and_weights(sdcli_run, photo, tiny_folder):
    """As text and as JSON."""
    sdcli_run("generate", "a cat", "-m", "TINY", "-s", "1", *QUICK, "-o", "a.png")
    sdcli_run("encode", "photo.png", "-m", "TINY", "-o", "a.safetensors")
    unet = str(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = sdcli_run("info", "a.png", "photo.png", "a.safetensors", unet).out
    assert "Steps: 2, Sampler: PLMS" in text and "seed: 1" in text and "kind: weights" in text
    about = [json.loads(line) for line in sdcli_run("info", "a.png", "a.safetensors", unet, "--json").out.splitlines()]
    assert [each["kind"] for each in about] == ["picture", "latents", "weights"]
    assert about[0]["sdcli"]["settings"]["prompt"] == "a cat"
    assert about[1]["tensors"]["latents"]["shape"] == [1, 4, 8, 8]
    assert "conv_in.weight" in about[2]["tensors"]


def test_info_tells_pictures_of_other_programs(sdcli_run, tmp_path):
    """Who made it, in our words what can be said so, and the rest in theirs; what is long only as JSON."""
    from foreign_pictures import A1111, COMFY, WORKFLOW, comfy_webp, png

    (tmp_path / "a.png").write_bytes(png({"parameters": A1111}, "iTXt"))
    (tmp_path / "b.webp").write_bytes(comfy_webp())
    (tmp_path / "c.png").write_bytes(
        png({"Title": "my cat", "width": "wide", "long": "a" * 1000, "ring": "a\a\x1b[2J"})
    )
    ended = sdcli_run("info", "a.png", "b.webp", "c.png")
    assert ended.code == 0
    text = ended.out
    for line in ("  made by: A1111", "  settings:", "    sampler: dpmpp_2m", "    clip_skip: 1", "  not understood:"):
        assert f"\n{line}\n" in text
    assert "    Model hash: 6ce0161689\n" in text and "  made by: ComfyUI" in text
    assert "    prompt:\n      a cat, \n      in the (snow:1.2)\n" in text
    assert (
        "    Title: my cat" in text and "  width: 8\n" in text and "    long: 1000 letters (--json shows them)" in text
    )
    about = [json.loads(line) for line in sdcli_run("info", "a.png", "b.webp", "c.png", "--json").out.splitlines()]
    assert [each.get("made_by") for each in about] == ["A1111", "ComfyUI", None]
    assert about[1]["settings"]["seed"] == COMFY["3"]["inputs"]["seed"]
    assert about[1]["not_understood"]["workflow"] == WORKFLOW
    assert about[2]["texts"]["width"] == "wide" and about[2]["width"] == 8


def test_info_refuses_a_text_that_unfolds(sdcli_run, tmp_path):
    """A few kilobytes that would become many megabytes."""
    from foreign_pictures import png

    (tmp_path / "a.png").write_bytes(png({"parameters": "a" * 2**24}, "zTXt"))
    error, hint = sdcli_run("info", "a.png").one_error()
    assert "a.png holds a text that is too large" in error and "again" in hint
