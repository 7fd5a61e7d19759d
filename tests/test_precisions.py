"""Files of half precision and of eight bits make the picture that stock makes of what their numbers stand for."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from families import stock, write_folder, write_single_file
from safetensors.torch import load_file, save_file
from test_compatibility import ALMOST_EQUAL, our_plain, stock_plain

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.conversion import convert
from sdcli.checkpoints.folder import ON_CPU
from sdcli.checkpoints.quantized import restored
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.registry import ModelSpec, find_model

Tensors = dict[str, torch.Tensor]
UNET = "model.diffusion_model."
KIND_E4M3 = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)


@dataclass(frozen=True)
class Form:
    """How weights are kept.

    Args:
        dtype: of every floating tensor.
        scale: what ends the name of a UNet weight's scale; empty where there is none.
        by_row: whether each row has a scale of its own.
    """

    dtype: torch.dtype
    scale: str = ""
    by_row: bool = False

    def kept(self, tensors: Tensors, unet: str | None) -> Tensors:
        """Tensors as a file has them; `unet` begins the names of the UNet's, None where there are none."""
        file = {}
        for key, tensor in tensors.items():
            if not tensor.is_floating_point():
                file[key] = tensor
            elif self.scaled(key, tensor, unet):
                scale, layer = self.scale_of(tensor), key.removesuffix(".weight")
                file[key] = (tensor / scale).to(self.dtype)
                file[layer + self.scale] = scale.flatten() if self.by_row else scale.reshape(())
                if self.scale == ".scale_weight":
                    file[f"{layer}.scale_input"] = torch.ones(())
                else:
                    file |= {f"{layer}.input_scale": torch.ones(()), f"{layer}.comfy_quant": KIND_E4M3.clone()}
            else:
                file[key] = tensor.to(self.dtype)
        if self.scale == ".scale_weight" and unet is not None:
            file[f"{unet}scaled_fp8"] = torch.zeros(2, dtype=self.dtype)
        return file

    def meant(self, tensors: Tensors, unet: str | None) -> Tensors:
        """What those numbers stand for, in float32."""
        meant = {}
        for key, tensor in tensors.items():
            scale = self.scale_of(tensor) if self.scaled(key, tensor, unet) else 1
            meant[key] = (tensor / scale).to(self.dtype).float() * scale if tensor.is_floating_point() else tensor
        return meant

    def scaled(self, key: str, tensor: torch.Tensor, unet: str | None) -> bool:
        return self.scale != "" and unet is not None and key.startswith(unet) and tensor.ndim > 1

    def scale_of(self, tensor: torch.Tensor) -> torch.Tensor:
        largest = tensor.abs().flatten(1).amax(dim=1).view(-1, *[1] * (tensor.ndim - 1))
        return (largest if self.by_row else largest.amax()) / torch.finfo(self.dtype).max


FORMS = {
    "fp16": Form(torch.float16),
    "bf16": Form(torch.bfloat16),
    "fp8 e4m3": Form(torch.float8_e4m3fn),
    "fp8 e5m2": Form(torch.float8_e5m2),
    "fp8 scaled, of 2024": Form(torch.float8_e4m3fn, scale=".scale_weight"),
    "fp8 scaled, of now": Form(torch.float8_e4m3fn, scale=".weight_scale"),
    "fp8 scaled by row": Form(torch.float8_e4m3fn, scale=".weight_scale", by_row=True),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """A family's folder and single file in float32; written when first asked for."""
    known: dict[str, tuple[Path, Path]] = {}

    def write(name: str) -> tuple[Path, Path]:
        if name not in known:
            folder = tmp_path_factory.mktemp("precisions")
            known[name] = write_folder(name, folder / name), write_single_file(name, folder / "single")
        return known[name]

    return write


def rewritten(source: Path, target: Path, change: Callable[[Tensors, str | None], Tensors]) -> Path:
    """A copy of a model folder with other weights."""
    shutil.copytree(source, target)
    for path in target.rglob("*.safetensors"):
        save_file(change(load_file(path), "" if path.parent.name == "unet" else None), path)
    return target


def our_picture(model: Path, name: str, vae: Path | None = None) -> numpy.ndarray:
    """In float32."""
    spec = find_model(str(model))
    return our_plain(load_pipeline(ModelSpec(name=name, path=spec.path, vae=vae), ON_CPU), name, model)


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_weights_of_every_precision_make_stocks_picture(name, form, sources, tmp_path):
    """From a folder and from a single file, against stock with the same weights in float32."""
    folder, single = sources(name)
    reference = rewritten(folder, tmp_path / "reference", FORMS[form].meant)
    more = {"safety_checker": None} if name == "sd1" else {}
    expected = stock_plain(name, None, tmp_path, type(stock(name)).from_pretrained(reference, **more))
    assert expected.std() > 0.1
    kept = rewritten(folder, tmp_path / "kept", FORMS[form].kept)
    file = tmp_path / "kept.safetensors"
    save_file(FORMS[form].kept(load_file(single), UNET), file)
    for model in (kept, file):
        assert numpy.abs(our_picture(model, name) - expected).max() <= ALMOST_EQUAL
    if "fp8" in form:
        assert numpy.abs(our_picture(folder, name) - expected).max() > 2 * ALMOST_EQUAL, "rounding has to show"


@pytest.mark.parity
@pytest.mark.parametrize("form", ["fp16", "fp8 e4m3"])
def test_a_vae_of_less_precision_makes_stocks_picture(form, sources, tmp_path):
    """As a folder, and as a file in either layout."""
    folder, single = sources("sd1")
    vae = folder / "vae"
    reference = rewritten(vae, tmp_path / "reference", FORMS[form].meant)
    pipeline = type(stock("sd1")).from_pretrained(folder, safety_checker=None)
    pipeline.vae = type(pipeline.vae).from_pretrained(reference)
    expected = stock_plain("sd1", None, tmp_path, pipeline)
    assert numpy.abs(expected - our_picture(folder, "sd1")).max() > 0
    kept = rewritten(vae, tmp_path / "kept", FORMS[form].kept)
    original = {key: each for key, each in load_file(single).items() if key.startswith("first_stage_model.")}
    save_file(FORMS[form].kept(original, None), tmp_path / "original.safetensors")
    for path in (kept, kept / "diffusion_pytorch_model.safetensors", tmp_path / "original.safetensors"):
        assert numpy.abs(our_picture(folder, "sd1", vae=path) - expected).max() <= ALMOST_EQUAL


@pytest.mark.parametrize("form", ["fp16", "bf16", "fp8 e4m3"])
@pytest.mark.parametrize("layout", ["folder", "single file"])
def test_a_model_that_is_converted_keeps_its_precision(layout, form, sources, tmp_path):
    """Where none is asked for; the other layout is no larger."""
    folder, single = sources("sd1")
    if layout == "folder":
        source, target = rewritten(folder, tmp_path / "source", FORMS[form].kept), tmp_path / "target.safetensors"
    else:
        source, target = tmp_path / "source.safetensors", tmp_path / "target"
        save_file(FORMS[form].kept(load_file(single), UNET), source)
    convert(source, target)
    files = [target] if target.is_file() else list(target.rglob("*.safetensors"))
    dtypes = {each.dtype for file in files for each in load_file(file).values() if each.is_floating_point()}
    assert dtypes == {FORMS[form].dtype}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"a.scale_weight": torch.ones(3)}, r"a.weight is \(2, 4\) with a scale of \(3,\)"),
        ({"b.scale_weight": torch.ones(())}, "has a scale without its weight: b.scale_weight"),
        ({"a.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}, "a is kept as nvfp4"),
        ({"a.comfy_quant": torch.zeros(3)}, "a is kept as what it does not say"),
    ],
)
def test_weights_that_are_kept_in_ways_of_their_own_are_refused(more, says):
    tensors = {"a.weight": torch.ones(2, 4).to(torch.float8_e4m3fn), **more}
    with pytest.raises(SdcliError, match=says) as caught:
        restored(tensors, Path("it.safetensors"), torch.float32)
    assert caught.value.hint


def test_what_is_not_scaled_stays_in_the_file(sources):
    """Nothing is multiplied, copied or cast where no weight has a scale."""
    tensors = load_file(sources("sd1")[1])
    assert restored(tensors, Path("it.safetensors"), torch.float16) is tensors


def test_scaled_weights_are_read_in_the_precision_that_is_asked_for():
    """One product in float32 for each, and no copy of the whole in it."""
    tensors = {"a.weight": torch.ones(2, 4).to(torch.float8_e4m3fn), "a.scale_weight": torch.tensor(0.5)}
    placement = Placement(torch.device("cpu"), torch.bfloat16, "no")
    (weight,) = restored(tensors, Path("it.safetensors"), placement.dtype).values()
    assert weight.dtype == torch.bfloat16 and weight.eq(0.5).all()
