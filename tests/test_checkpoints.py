"""Bad files are told apart, and the error names the file, the key and what to do; latents files keep what they say."""

import io
import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.checkpoints import load_component, load_latents, load_pipeline, save_latents
from sdcli.checkpoints.folder import ON_CPU
from sdcli.errors import SdcliError
from sdcli.registry import ModelSpec

UNET = "unet/diffusion_pytorch_model.safetensors"
LATENTS_OF = {"model": "tiny", "scaling_factor": "0.18215", "vae_sha256": "0" * 64, "width": "16", "height": "16"}


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load(folder: Path):
    """The pipeline of a folder, whatever state it is in."""
    return load_pipeline(ModelSpec(name="model", path=folder), ON_CPU)


def refused(folder: Path, *named: str) -> SdcliError:
    """The error of loading a folder, which must name all of these and say what to do."""
    with pytest.raises(SdcliError) as caught:
        load(folder)
    for name in named:
        assert name in str(caught.value)
    assert caught.value.hint
    return caught.value


def header_says(length: int, content: bytes) -> bytes:
    """A safetensors file whose first eight bytes give another length of the header."""
    return struct.pack("<Q", length) + content[8:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "is empty (0 bytes)"),
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: content[:100], "no safetensors file, or damaged"),
        (lambda content: content[:5], "no safetensors file, or damaged"),
        (lambda content: content + b"more", "is damaged"),
        (lambda content: header_says(10**12, content), "says its header has 1000000000000 bytes"),
        (lambda content: header_says(50, content), "is damaged"),
        (lambda content: pickle.dumps({"a": 1}), "is a pickle"),
        (lambda content: b"PK\x03\x04" + content, "is a pickle"),
        (lambda content: b"<html>404 not found</html>", "no safetensors file"),
    ],
    ids=["empty", "half", "header", "five", "longer", "far", "near", "pickle", "zip", "html"],
)
def test_a_bad_weights_file_is_named(folder, damage, says):
    """Each way a file can be bad is said of that file."""
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(damage(content))
    refused(folder, str(folder / UNET), says)


def test_a_real_pickle_with_another_name_is_refused(folder):
    """What torch.save wrote is a pickle whatever it is called."""
    torch.save({"conv_in.weight": torch.zeros(1)}, folder / UNET)
    refused(folder, str(folder / UNET), "is a pickle")


def test_weights_in_a_pickle_only_are_refused(folder):
    """A folder with .bin files only is not read: a pickle can run code."""
    torch.save(load_file(folder / UNET), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()
    error = refused(folder, str(folder / "unet"), "diffusion_pytorch_model.bin is a pickle")
    assert "--allow-pickle" in error.hint


@pytest.mark.parametrize(
    "name",
    [UNET, "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "model_index.json"],
)
def test_a_missing_file_is_named(folder, name):
    """A folder that was copied in part says which part."""
    (folder / name).unlink()
    refused(folder, str((folder / name).parent))


@pytest.mark.parametrize(
    "name", ["vae/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "model_index.json"]
)
@pytest.mark.parametrize("content", [b"", b'{"_class_name": ', b"[]", b"\xff\xfe"])
def test_a_settings_file_that_is_not_json_is_named(folder, name, content):
    """So is one that is no JSON object."""
    (folder / name).write_bytes(content)
    refused(folder, str(folder / name))


@pytest.mark.parametrize("name", ["vae", "text_encoder", "tokenizer", "unet", "scheduler"])
def test_a_model_without_a_component_says_so(folder, name):
    """Whether its folder is gone or model_index.json names none."""
    shutil.rmtree(folder / name)
    refused(folder, f"has no {name}")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, name: [None, None]}))
    refused(folder, f"has no {name}")


def test_a_folder_that_is_no_model_says_so(tmp_path):
    """No such folder, and a folder without model_index.json."""
    refused(tmp_path / "nothing", "there is no folder")
    refused(tmp_path, "is no model")


def edit(path: Path, **changes) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_classes_that_are_not_ours_are_named(folder):
    """Of the pipeline, of a network and of the scheduler."""
    edit(folder / "model_index.json", unet=["diffusers", "FluxTransformer2DModel"])
    refused(folder, "model_index.json: unet is a FluxTransformer2DModel")
    edit(folder / "model_index.json", unet="UNet2DConditionModel")
    refused(folder, "unet must be [library, class name]")
    edit(folder / "model_index.json", unet=["diffusers", "UNet2DConditionModel"], _class_name="FluxPipeline")
    refused(folder, "is a FluxPipeline")


def test_a_scheduler_that_is_not_ours_is_named(folder):
    """The class in scheduler_config.json decides."""
    edit(folder / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    refused(folder, "scheduler_config.json", "FlowMatchEulerDiscreteScheduler")


def test_settings_that_no_network_has_are_named(folder):
    """A value that our class refuses is said of its config.json."""
    edit(folder / "vae/config.json", act_fn="sine")
    refused(folder, str(folder / "vae/config.json"), "sine")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("conv_in.weight"), "conv_in.weight missing"),
        (lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}), "no place for extra.weight"),
        (
            lambda tensors: tensors.update({"conv_in.weight": torch.zeros(32, 9, 3, 3)}),
            "conv_in.weight is (32, 9, 3, 3), expected (32, 4, 3, 3)",
        ),
        (lambda tensors: tensors.clear(), "more missing"),
    ],
    ids=["missing", "unexpected", "shape", "none"],
)
def test_weights_that_do_not_fit_are_named(folder, change, says):
    """File, key and both shapes."""
    tensors = load_file(folder / UNET)
    change(tensors)
    save_file(tensors, folder / UNET)
    error = refused(folder, f"{folder / UNET} does not fit this UNet", says)
    if "9" in says:
        assert "inpainting" in error.hint


def test_parts_that_do_not_fit_each_other_are_refused(folder, tiny_folder):
    """A VAE with other latents, as when two models are mixed."""
    from sdcli.checkpoints import save_component
    from sdcli.components.vae import VAE

    config = json.loads((folder / "vae/config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    save_component(VAE(**kept | {"latent_channels": 8}), folder / "vae")
    refused(folder, "the UNet takes 4 channels, the VAE's latents have 8")


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"conv_in.weight": "absent.safetensors"}, "absent.safetensors is missing"),
        ({"conv_in.weight": "../unet/diffusion_pytorch_model.safetensors"}, "no file beside the index"),
        ({"nonsense": "part.safetensors"}, "lacks nonsense"),
        ([], "has no weight_map"),
    ],
    ids=["absent", "outside", "lacking", "none"],
)
def test_a_bad_index_of_shards_is_named(folder, weight_map, says):
    """The index names files beside it, which hold what it says."""
    (folder / UNET).rename(folder / "unet" / "part.safetensors")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, says)


def test_a_component_can_be_loaded_alone_from_a_broken_model(folder):
    """`encode` needs the VAE only, so a damaged UNet does not matter to it."""
    (folder / UNET).unlink()
    assert load_component(folder, "vae").config.latent_channels == 4
    with pytest.raises(SdcliError, match="has no text_encoder_2"):
        load_component(folder, "text_encoder_2")


@pytest.mark.parametrize("as_stream", [False, True])
def test_latents_come_back_with_what_they_say(tmp_path, as_stream):
    """Through a file and through a pipe, bit for bit."""
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    metadata = {**LATENTS_OF, "timestep": "500", "seed": "1"}
    target = io.BytesIO() if as_stream else tmp_path / "a.safetensors"
    save_latents(target, latents, metadata)
    if as_stream:
        target.seek(0)
    again, said = load_latents(target)
    assert torch.equal(again, latents)
    assert said.items() >= metadata.items()
    assert as_stream or [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("versioned", [False, True])
def test_comfyui_latents_are_scaled_as_ours(tmp_path, versioned):
    """Files with latent_format_version_0 hold unscaled latents, earlier ones scaled latents."""
    scaled = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    tensors = {"latent_tensor": scaled / 0.18215 if versioned else scaled}
    if versioned:
        tensors["latent_format_version_0"] = torch.tensor([])
    save_file(tensors, tmp_path / "a.latent", metadata={"prompt": "{}"})
    latents, metadata = load_latents(tmp_path / "a.latent")
    torch.testing.assert_close(latents, scaled)
    assert float(metadata["scaling_factor"]) == 0.18215


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "no safetensors file"),
        (pickle.dumps(1), "is a pickle"),
    ],
)
def test_bad_latents_files_are_named(tmp_path, content, says):
    """Whether they come from a file or a pipe."""
    (tmp_path / "a.latent").write_bytes(content)
    for source in (tmp_path / "a.latent", io.BytesIO(content)):
        with pytest.raises(SdcliError) as caught:
            load_latents(source)
        assert says in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({"weight": torch.zeros(1)}, LATENTS_OF, "no tensor named latents"),
        ({"latents": torch.zeros(4, 8, 8)}, LATENTS_OF, "must be (N, C, h, w)"),
        ({"latents": torch.zeros(1, 4, 0, 8)}, LATENTS_OF, "must be (N, C, h, w)"),
        ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, LATENTS_OF, "not numbers"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, {}, "scaling_factor"),
    ],
    ids=["weights", "rank", "empty", "nan", "unscaled"],
)
def test_files_that_hold_no_usable_latents_are_refused(tmp_path, tensors, metadata, says):
    """A whole safetensors file may still not be latents."""
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(SdcliError) as caught:
        load_latents(tmp_path / "a.safetensors")
    assert says in str(caught.value) and str(tmp_path) in str(caught.value)


def test_latents_that_are_no_numbers_are_not_written(tmp_path):
    """Nor those that nobody could decode again."""
    good = torch.zeros(1, 4, 8, 8)
    for latents, metadata in ((good / 0, LATENTS_OF), (good[0], LATENTS_OF), (good, {"model": "tiny"})):
        with pytest.raises(ValueError, match="latents"):
            save_latents(tmp_path / "a.safetensors", latents, metadata)
    assert not list(tmp_path.iterdir())


def test_latents_that_cannot_be_written_say_why(tmp_path):
    """A folder that is not there."""
    with pytest.raises(SdcliError, match="cannot write .*No such file"):
        save_latents(tmp_path / "absent" / "a.safetensors", torch.zeros(1, 4, 8, 8), LATENTS_OF)
    with pytest.raises(SdcliError, match="there is no file"):
        load_latents(tmp_path / "absent.safetensors")
