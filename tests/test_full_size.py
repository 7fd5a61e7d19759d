"""Stable Diffusion 1.5 of full size: stock's picture from a folder and a single file, and memory while it loads."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import sd15
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from test_compatibility import ALMOST_EQUAL

from sdcli import load_pipeline
from sdcli.checkpoints import load_components
from sdcli.checkpoints.single_file import original_tensors
from sdcli.components.scheduler import Scheduler
from sdcli.device import Placement
from sdcli.families import BETAS, SD1
from sdcli.pipeline import SdPipeline

pytestmark = [pytest.mark.slow, pytest.mark.alone]

LARGEST_PEAK = 1.15  # of the weights, above what was there before loading
SIDE_PX, STEPS = 64, 1
# What the kernel tells of a process by getrusage begins with the peak of the one that started it; VmHWM does not.
LOAD = """
import json, sys
import torch
import sdcli.checkpoints, sdcli.pipeline
from sdcli.checkpoints import load_pipeline
from sdcli.device import Placement
from sdcli.registry import find_loadable

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

model, dtype = sys.argv[1:]
spec, before = find_loadable(model, allow_pickle=True), peak()
pipeline = load_pipeline(spec, Placement(torch.device("cpu"), getattr(torch, dtype), "no"))
loaded, weights = peak(), 0
for name in ("unet", "vae", "text_encoder"):
    for parameter in getattr(pipeline, name).parameters():
        parameter.detach().view(-1)[::512].sum()
        weights += parameter.numel() * parameter.element_size()
print(json.dumps([(each - before) / weights for each in (loaded, peak())] + [weights]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model as folders of half and full precision and as a single file of half precision; 8.6 GB."""
    folder = tmp_path_factory.mktemp("full")
    pipeline = sd15.stock_pipeline(torch.float16)
    pipeline.save_pretrained(folder / "fp16")
    components = load_components(folder / "fp16", Placement(torch.device("cpu"), torch.float16, "no"))
    save_file(original_tensors(components, SD1), folder / "fp16.safetensors")
    pipeline.to(torch.float32).save_pretrained(folder / "fp32")
    del pipeline, components
    gc.collect()
    yield folder
    shutil.rmtree(folder)  # pytest would keep it for three runs


@pytest.fixture(scope="module")
def expected(models) -> numpy.ndarray:
    """Stock's picture, (H, W, 3) in [0, 1]."""
    pipeline = StableDiffusionPipeline.from_pretrained(models / "fp16", torch_dtype=torch.float32, safety_checker=None)
    return drawn_by(pipeline)


def drawn_by(pipeline) -> numpy.ndarray:
    """A picture of either pipeline, in a step that begins where there is nothing but noise, so that the UNet shows."""
    gc.collect()  # the one before
    stock = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    ours = isinstance(pipeline, SdPipeline)
    pipeline.scheduler = Scheduler.from_config(json.loads(stock.to_json_string())) if ours else stock
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": SIDE_PX, "width": SIDE_PX, "num_inference_steps": STEPS, "output_type": "np"}
    return pipeline("a red cat", generator=[torch.Generator().manual_seed(1)], guidance_scale=5.0, **size).images[0]


@pytest.mark.parity
@pytest.mark.parametrize("layout", ["fp16", "fp16.safetensors"])
def test_a_model_of_full_size_makes_stocks_picture(layout, models, expected):
    """From files of half precision, computed in float32."""
    made = drawn_by(load_pipeline(str(models / layout), device="cpu", precision="fp32"))
    assert expected.std() > 0.1
    assert numpy.abs(made - expected).max() <= ALMOST_EQUAL


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("layout", "dtype"), [("fp16", "float16"), ("fp16.safetensors", "float16"), ("fp32", "float32")]
)
def test_loading_takes_little_more_than_the_weights(layout, dtype, models):
    """Neither while it loads, nor once every page of the weights was touched."""
    root = str(Path(sd15.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(models / layout), dtype],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    loading, read, weights = json.loads(done.stdout.splitlines()[-1])
    assert weights > 1.06e9 * getattr(torch, dtype).itemsize
    assert 0.9 < read, "every page was touched, so less is a mistake of measuring"
    assert max(loading, read) <= LARGEST_PEAK
