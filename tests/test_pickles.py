"""Models in pickles: refused, or with --allow-pickle the picture of the same weights as safetensors; never run."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch
from conftest import seeded
from diffusers import ControlNetModel
from families import NAMES, stock, write_folder, write_single_file
from PIL import Image
from safetensors.torch import load_file, save_file
from test_compatibility import our_plain
from test_generate_features import QUICK, generate, refused

from sdcli import pickles
from sdcli.checkpoints import load_pipeline, sha256_of
from sdcli.checkpoints.folder import ON_CPU
from sdcli.cli import run
from sdcli.errors import SdcliError
from sdcli.images import read_text
from sdcli.registry import find_loadable

SIZE = ("-W", "32", "-H", "32")
STEMS = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[str, str], Path]:
    """Where a family lies, as a folder or a single file; written when first asked for."""
    known: dict[tuple[str, str], Path] = {}

    def write(name: str, layout: str) -> Path:
        if (name, layout) not in known:
            writer = {"folder": write_folder, "single file": write_single_file}[layout]
            known[name, layout] = writer(name, tmp_path_factory.mktemp("pickles") / name)
        return known[name, layout]

    return write


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lightning(tensors: dict[str, torch.Tensor]) -> dict:
    """Weights and what Lightning keeps beside them, a class of its own among it, as the authors' files have it."""
    kept = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]}
    module, _, name = pickles.OF_TRAINING[0].rpartition(".")
    parts = module.split(".")
    packages = {".".join(parts[: count + 1]): ModuleType(part) for count, part in enumerate(parts)}
    callback = type(name, (), {"__module__": module})
    setattr(packages[module], name, callback)
    sys.modules.update(packages)
    content = {"epoch": 1, "global_step": 470000, "pytorch-lightning_version": "1.4.2", "state_dict": tensors}
    return {**content, "optimizer_states": [kept], "lr_schedulers": [], "callbacks": {callback: {"monitor": "loss"}}}


def write_pickle(tensors: dict[str, torch.Tensor], form: str) -> Path:
    """A single file in one of the forms that people share."""
    name, content, zipped = {
        "Lightning's": ("model.ckpt", lightning(tensors), True),
        "bare": ("model.pt", tensors, True),
        "of PyTorch before 1.6": ("model.bin", {"state_dict": tensors}, False),
    }[form]
    try:
        torch.save(content, name, _use_new_zipfile_serialization=zipped)
    finally:
        for module in [each for each in sys.modules if each.startswith("pytorch_lightning")]:
            del sys.modules[module]
    return Path(name)


def as_bins(folder: Path, only: str = "") -> Path:
    """A copy of a model folder with its weights as .bin files, in shards with an index where they were in shards."""
    shutil.copytree(folder, "bins")
    for path in Path("bins").rglob("*.safetensors"):
        if only in path.parent.name:
            torch.save(load_file(path), path.with_name(f"{STEMS[path.stem]}.bin"))
            path.unlink()
    return Path("bins")


def picture(path: Path, name: str, allow_pickle: bool = True) -> numpy.ndarray:
    """Of a family's model."""
    model = find_loadable(str(path), allow_pickle=allow_pickle)
    return our_plain(load_pipeline(model, ON_CPU), name, Path())


@pytest.mark.parametrize("form", ["Lightning's", "bare", "of PyTorch before 1.6"])
@pytest.mark.parametrize("name", ["sd1", *(pytest.param(each, marks=pytest.mark.slow) for each in NAMES[1:])])
def test_a_single_file_that_is_a_pickle_makes_the_same_picture(name, form, written):
    """Bit for bit, whatever is beside the weights; and only where it is allowed."""
    source = written(name, "single file")
    file = write_pickle(load_file(source), form)
    with pytest.raises(SdcliError, match="is a pickle") as caught:
        picture(file, name, allow_pickle=False)
    assert "--allow-pickle" in caught.value.hint
    assert numpy.array_equal(picture(file, name), picture(source, name))


@pytest.mark.parametrize("name", ["sd1", *(pytest.param(each, marks=pytest.mark.slow) for each in NAMES[1:])])
def test_a_folder_of_pickles_makes_the_same_picture(name, written):
    """Also where only one component is one."""
    source = written(name, "folder")
    expected = picture(source, name)
    for only in ("", "unet"):
        bins = as_bins(source, only)
        with pytest.raises(SdcliError, match=r"\.bin is a pickle") as caught:
            picture(bins, name, allow_pickle=False)
        assert "--allow-pickle" in caught.value.hint
        assert numpy.array_equal(picture(bins, name), expected)
        shutil.rmtree(bins)


def test_shards_of_pickles_and_variants_are_read(written):
    """`pytorch_model.bin.index.json` and `.fp16.bin`, as transformers and diffusers wrote them."""
    source = written("sd1", "folder")
    bins = as_bins(source)
    tensors = torch.load(bins / "unet/diffusion_pytorch_model.bin")
    halves = [dict(list(tensors.items())[half::2]) for half in range(2)]
    files = [f"diffusion_pytorch_model-0000{half}-of-00002.bin" for half in range(2)]
    for file, half in zip(files, halves, strict=True):
        torch.save(half, bins / "unet" / file)
    places = {key: file for file, half in zip(files, halves, strict=True) for key in half}
    (bins / "unet/diffusion_pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (bins / "unet/diffusion_pytorch_model.bin").unlink()
    (bins / "text_encoder/pytorch_model.bin").rename(bins / "text_encoder/pytorch_model.fp16.bin")
    assert numpy.array_equal(picture(bins, "sd1"), picture(source, "sd1"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells what is mapped in /proc")
def test_weights_of_a_pickle_stay_in_the_file_until_they_are_used(written):
    """As those of safetensors do; a model is not read as a whole to know its shapes."""
    file = write_pickle(load_file(written("sd1", "single file")), "Lightning's")
    tensors = pickles.read_tensors(file, allowed=True)
    places = {each.data_ptr() for each in tensors.values() if each.numel()}
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    mapped = [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]
    assert all(any(place in pages for pages in mapped) for place in places)


def test_the_command_reads_pickles_where_that_is_allowed(written, capsys):
    """One error and one hint without the flag; the hashes of what was read are in the picture."""
    single, folder = written("sd1", "single file"), written("sd1", "folder")
    file = write_pickle(load_file(single), "Lightning's")
    bins = as_bins(folder)
    torch.save(load_file(folder / "vae/diffusion_pytorch_model.safetensors"), "vae.pt")
    for flags in (("-m", file), ("-m", bins, *SIZE), ("-m", folder, "--vae", "vae.pt", *SIZE)):
        assert "is a pickle" in refused(capsys, *flags)
    plain = generate(folder, *SIZE, output="plain.png")
    for number, (model, flags) in enumerate(((file, ()), (bins, ()), (folder, ("--vae", "vae.pt")))):
        made = generate(model, *SIZE, *flags, "--allow-pickle", output=f"{number}.png")
        assert numpy.array_equal(made, plain)
        weights = json.loads(read_text(Path(f"{number}.png"))[0]["sdcli"])["weights"]
        if model == bins:
            assert weights.keys() == {
                "text_encoder/pytorch_model.bin",
                "unet/diffusion_pytorch_model.bin",
                "vae/diffusion_pytorch_model.bin",
            }
            assert all(digest == sha256_of(bins / name) for name, digest in weights.items())
        else:
            path = Path("vae.pt") if flags else file
            assert weights[path.name] == sha256_of(path)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_of_the_original_layout_may_be_a_pickle(prefix, written):
    """With or without the outer state_dict and a prefix, and what its training left there."""
    part = "first_stage_model."
    tensors = {key: each for key, each in load_file(written("sd1", "single file")).items() if key.startswith(part)}
    tensors = {prefix + key.removeprefix(part): each for key, each in tensors.items()}
    tensors[f"{prefix}loss.logvar"] = torch.zeros(())
    save_file(tensors, "vae.safetensors")
    torch.save({"state_dict": tensors, "global_step": 3}, "vae.ckpt")
    model = written("sd1", "folder")
    pictures = [
        generate(model, *SIZE, "--vae", name, "--allow-pickle", output=f"{name}.png")
        for name in ("vae.safetensors", "vae.ckpt")
    ]
    assert numpy.array_equal(*pictures)


class Evil:
    """Runs a command where it is unpickled without care."""

    def __reduce__(self):
        return os.system, ("touch it-ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(zipped, written, capsys):
    """With the name of what it asks for, wherever it lies."""
    tensors = load_file(written("sd1", "single file"))
    torch.save({"state_dict": tensors, "more": Evil()}, "evil.ckpt", _use_new_zipfile_serialization=zipped)
    bins = as_bins(written("sd1", "folder"))
    torch.save({"conv_in.weight": Evil()}, bins / "unet/diffusion_pytorch_model.bin")
    says = f"asks for {os.name}.system, which is code"
    for flags in (("-m", "evil.ckpt"), ("-m", bins, *SIZE), ("-m", written("sd1", "folder"), "--vae", "evil.ckpt")):
        assert says in refused(capsys, *flags, "--allow-pickle")
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 and no more", "cannot be read"),
        (b"\x80\x02", "cannot be read"),
        (b"", "is empty"),
    ],
)
def test_a_damaged_pickle_is_one_error(content, says, capsys):
    Path("model.ckpt").write_bytes(content)
    assert says in refused(capsys, "-m", "model.ckpt", "--allow-pickle")


def test_a_controlnet_in_a_pickle_is_read_where_that_is_allowed(written, capsys):
    """Of half precision by its name, too."""
    reference = stock("sd1")
    network = ControlNetModel.from_unet(reference.unet, conditioning_embedding_out_channels=(16, 32))
    seeded(network, 9).save_pretrained("safe")
    network.save_pretrained("pickled", safe_serialization=False)
    network.save_pretrained("half", variant="fp16")
    Image.new("RGB", (32, 32), "red").save("control.png")
    folder = written("sd1", "folder")
    flags = ("--control-image", "control.png", *SIZE)
    expected = generate(folder, "--controlnet", "safe", *flags)
    assert "diffusion_pytorch_model.bin is a pickle" in refused(capsys, "-m", folder, "--controlnet", "pickled", *flags)
    for name, more in (("pickled", ("--allow-pickle",)), ("half", ())):
        made = generate(folder, "--controlnet", name, *flags, *more, output=f"{name}.png")
        assert numpy.array_equal(made, expected)
    torch.save({"conv_in.weight": Evil()}, "pickled/diffusion_pytorch_model.bin")
    said = refused(capsys, "-m", folder, "--controlnet", "pickled", *flags, "--allow-pickle")
    assert "pickled does not load" in said and not Path("it-ran").exists()


def test_a_pickle_that_is_called_safetensors_is_one_error(capsys):
    torch.save({}, "model.safetensors")
    assert "is a pickle" in refused(capsys, "-m", "model.safetensors", "--allow-pickle")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {}}, {"epoch": 3}])
def test_a_pickle_without_a_model_is_one_error(content, capsys):
    torch.save(content, "model.ckpt")
    assert "model.ckpt" in refused(capsys, "-m", "model.ckpt", "--allow-pickle")


def test_a_pickle_is_converted_where_that_is_allowed(written, capsys):
    """To a file of safetensors that makes the same picture and needs no flag."""
    file = write_pickle(load_file(written("sd1", "single file")), "Lightning's")
    command = ["models", "convert", str(file), "-o", "safe.safetensors"]
    assert run(command) == 1
    assert "is a pickle" in capsys.readouterr().err and not Path("safe.safetensors").exists()
    assert run([*command, "--allow-pickle"]) == 0
    assert numpy.array_equal(picture(Path("safe.safetensors"), "sd1", allow_pickle=False), picture(file, "sd1"))


def test_a_pickle_may_stand_in_models_toml(written):
    """With the native size of its own family, as any other file."""
    write_pickle(load_file(written("sd1", "single file")), "bare")
    Path("mine.toml").write_text('[models.old]\npath = "model.pt"\nsteps = 4\n')
    command = ["generate", "a red cat", "-m", "old", "--models-file", "mine.toml", *QUICK, *SIZE, "-o", "old.png"]
    assert run(command) == 1
    assert run([*command, "--allow-pickle"]) == 0
    assert find_loadable("old", Path("mine.toml"), allow_pickle=True).defaults.width == 128
