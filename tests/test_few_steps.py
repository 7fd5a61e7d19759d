"""Models of few steps, a base and a LoRA in models.toml: the picture that stock makes as their authors' cards say."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler, TCDScheduler
from families import write_folder
from lora_files import as_kohya, as_peft, matrices
from PIL import Image
from safetensors.torch import save_file
from test_compatibility import ALMOST_EQUAL

from sdcli import load_pipeline
from sdcli.checkpoints import sha256_of
from sdcli.cli import run
from sdcli.images import load_image, read_text
from sdcli.registry import find_model, read_models_file, shipped_models_file

SIDE_PX = 32
KINDS = {"lcm": LCMScheduler, "tcd": TCDScheduler, "ddim": DDIMScheduler}
SHIPPED = read_models_file(shipped_models_file()).models
FEW = [name for name, spec in SHIPPED.items() if spec.lora_hub is not None]
QUICK = ("-s", "1", "--device", "cpu", "--progress", "none")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a family; written when first asked for."""
    known: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in known:
            known[name] = write_folder(name, tmp_path_factory.mktemp("few") / name)
        return known[name]

    return write


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stock_of(base: Path) -> DiffusionPipeline:
    """Stock's pipeline with networks of its own."""
    pipeline = DiffusionPipeline.from_pretrained(base, **({} if "xl" in base.name else {"safety_checker": None}))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def entry_of(name: str, base: Path) -> None:
    """Write models.toml with a shipped entry's settings for a base on disk and a LoRA beside it."""
    defaults = SHIPPED[name].defaults
    lines = [
        f"[models.{name}]",
        f'path = "{base}"',
        'lora = "fast.safetensors"',
        f"steps = {defaults.num_inference_steps}",
    ]
    lines += [f"guidance_scale = {defaults.guidance_scale}", f'sampler = "{defaults.sampler}"', f"eta = {defaults.eta}"]
    lines += [f'timestep_spacing = "{defaults.timestep_spacing}"'] if defaults.timestep_spacing else []
    Path("models.toml").write_text("\n".join([*lines, f"width = {SIDE_PX}", f"height = {SIDE_PX}"]))


@pytest.mark.parity
@pytest.mark.parametrize("name", FEW)
def test_a_model_of_few_steps_makes_stocks_picture(name, bases):
    """By its name alone; stock is told what the cards say, with guidance 0, which is off as 1 is."""
    base, defaults = bases("sdxl" if "xl" in name else "sd1"), SHIPPED[name].defaults
    stock = stock_of(base)
    layout = as_kohya if "hyper" in name else as_peft  # as the files on the hub have it
    made = layout(matrices(stock), stock)
    save_file({key: tensor.contiguous() for key, tensor in made.items()}, "fast.safetensors")
    entry_of(name, base)
    assert run(["generate", "a red cat", "-m", name, *QUICK, "-o", "out.png"]) == 0
    spacing = {"timestep_spacing": "trailing"} if "hyper" in name else {}
    stock.scheduler = KINDS[defaults.sampler].from_config(stock.scheduler.config, **spacing)
    stock.load_lora_weights("fast.safetensors")
    stock.fuse_lora()
    drawn = {"generator": [torch.Generator().manual_seed(1)], "num_inference_steps": defaults.num_inference_steps}
    size = {"height": SIDE_PX, "width": SIDE_PX, "output_type": "np"}
    expected = stock(["a red cat"], guidance_scale=0.0, eta=defaults.eta, **drawn, **size).images[0]
    assert expected.std() > 0.1
    assert numpy.abs(numpy.asarray(load_image(Path("out.png"))) / 255 - expected).max() <= ALMOST_EQUAL
    about = json.loads(read_text(Path("out.png"))[0]["sdcli"])
    assert about["weights"]["fast.safetensors"] == sha256_of(Path("fast.safetensors"))
    assert (about["settings"]["eta"], about["settings"]["lora"]) == (defaults.eta, [])


def test_another_sampler_does_not_inherit_eta(bases):
    """Which would be an error; a LoRA of the user's comes on top of the model's own."""
    base = bases("sd1")
    stock = stock_of(base)
    save_file(as_peft(matrices(stock), stock), "fast.safetensors")
    entry_of("tcd-sd15", base)
    pictures = []
    for number, flags in enumerate(((), ("--sampler", "euler"), ("--eta", "0"), ("--lora", "fast.safetensors:0.5"))):
        assert run(["generate", "a red cat", "-m", "tcd-sd15", *flags, *QUICK, "-o", f"{number}.png"]) == 0
        pictures.append(numpy.asarray(Image.open(f"{number}.png")).astype(int))
    assert all(numpy.abs(each - pictures[0]).max() > 2 for each in pictures[1:])


def test_python_has_the_same_defaults(bases):
    """`load_pipeline` gives the LoRA, the sampler and eta of the entry."""
    base = bases("sd1")
    stock = stock_of(base)
    save_file(as_peft(matrices(stock), stock), "fast.safetensors")
    entry_of("tcd-sd15", base)
    assert run(["generate", "a red cat", "-m", "tcd-sd15", *QUICK, "-o", "out.png"]) == 0
    made = load_pipeline("tcd-sd15", device="cpu")("a red cat", generator=torch.Generator().manual_seed(1)).images[0]
    assert numpy.array_equal(numpy.asarray(made), numpy.asarray(Image.open("out.png")))


def test_a_model_with_a_lora_is_not_trained(bases, squares, capsys):
    """What came out would be another model than what went in."""
    entry_of("tcd-sd15", bases("sd1"))
    Path("fast.safetensors").write_bytes(b"anything")
    command = ["train", "--data", str(squares), "-m", "tcd-sd15", "--part", "unet", "--steps", "1", "-o", "made"]
    assert run([*command, "--device", "cpu", "--progress", "none"]) == 1
    assert "is a base and a LoRA, which are not trained as one" in capsys.readouterr().err


def test_a_lora_that_belongs_to_a_model_is_verified_too(bases, capsys):
    """By its own name, and found bad where it is."""
    base = bases("sd1")
    stock = stock_of(base)
    save_file(as_peft(matrices(stock), stock), "fast.safetensors")
    entry_of("tcd-sd15", base)
    assert run(["models", "verify", "tcd-sd15", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["file"] for each in found][-1] == "fast.safetensors" and len(found) == 4
    assert found[-1]["sha256"] == sha256_of(Path("fast.safetensors"))
    Path("fast.safetensors").write_bytes(Path("fast.safetensors").read_bytes()[:-9])
    assert run(["models", "verify", "tcd-sd15"]) == 1
    assert "1 of the files of tcd-sd15 are bad" in capsys.readouterr().err


def test_what_is_not_known_of_a_model_is_shown_as_such(capsys):
    """A file of the hub by its place there; no sampler's default stands for a size, nor ignorance for nothing."""
    assert run(["models", "show", "sdxl-lightning"]) == 0
    shown = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    shown = {key: value.strip() for key, value in shown.items()}
    assert shown["hub"] == "hf:ByteDance/SDXL-Lightning:sdxl_lightning_4step.safetensors"
    assert (shown["lora"], shown["path"], shown["bytes"]) == ("none", "none", "unknown")
    assert (shown["schedule"], shown["family"]) == ("the model's own", "unknown")


def test_a_model_with_a_lora_is_shown_and_not_converted(bases, capsys):
    """No other layout keeps both."""
    entry_of("tcd-sd15", bases("sd1"))
    Path("fast.safetensors").write_bytes(b"anything")
    assert run(["models", "show", "tcd-sd15", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lora"] == str(find_model("tcd-sd15").lora)
    assert run(["models", "convert", "tcd-sd15", "-o", "it.safetensors"]) == 1
    assert "a model and what is put onto it" in capsys.readouterr().err and not Path("it.safetensors").exists()
