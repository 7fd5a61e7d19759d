"""Pictures wider than high, with latents of odd sides, as they are typed: stock's picture of the same files."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from conftest import seeded
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from families import OF_FAMILY, stock
from PIL import Image
from test_compatibility import ALMOST_EQUAL

from sdcli.cli import run
from sdcli.images import load_image

WIDTH, HEIGHT = 104, 72  # 13 by 9 latents
SIZE = ("-W", str(WIDTH), "-H", str(HEIGHT))
PROMPT = "a red cat"
QUICK = ("--steps", "3", "-s", "1", "-g", "3", "--device", "cpu", "--progress", "none")
PHOTO, MASK = ("--init-image", "photo.png"), ("--mask", "mask.png")
CONTROL = ("--controlnet", "control", "--control-image", "photo.png")
NAMES = ("sd1", "sdxl", "sd1-inpainting", "sdxl-inpainting")
Kinds = tuple[type, type]  # of Stable Diffusion 1 and of SDXL
IMG2IMG: Kinds = (StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline)
INPAINT: Kinds = (StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline)
CONTROLLED: Kinds = (StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline)
CONTROLLED_IMG2IMG: Kinds = (StableDiffusionControlNetImg2ImgPipeline, StableDiffusionXLControlNetImg2ImgPipeline)
CONTROLLED_INPAINT: Kinds = (StableDiffusionControlNetInpaintPipeline, StableDiffusionXLControlNetInpaintPipeline)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a family with eight pixels a latent, as published ones have; written when first asked for."""
    known: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in known:
            parts = stock(name).components
            family = OF_FAMILY[name.removesuffix("-inpainting")]
            parts["vae"] = seeded(
                AutoencoderKL(
                    block_out_channels=(32,) * 4,
                    down_block_types=("DownEncoderBlock2D",) * 4,
                    up_block_types=("UpDecoderBlock2D",) * 4,
                    sample_size=64,
                    scaling_factor=family.scaling_factor,
                ),
                1,
            )
            known[name] = tmp_path_factory.mktemp("sizes") / name
            more = {} if "xl" in name else {"requires_safety_checker": False}
            type(stock(name))(**parts, **more).save_pretrained(known[name])
            network = ControlNetModel.from_unet(
                parts["unet"], conditioning_embedding_out_channels=(16, 16, 32, 32), load_weights_from_unet=False
            )
            seeded(network, 9).save_pretrained(known[name].parent / "control")
        return known[name]

    return write


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a picture, and a mask whose edges are not those of latents."""
    monkeypatch.chdir(tmp_path)
    image = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    image.paste("teal", (20, 20, 70, 50))
    image.save("photo.png")
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (11, 13, 67, 55))
    mask.save("mask.png")


def of_stock(folder: Path, kinds: Kinds | None = None, tiled: bool = False, **arguments) -> numpy.ndarray:
    """Stock's picture, (H, W, 3) in [0, 1]."""
    xl = "xl" in folder.name
    pipeline = DiffusionPipeline.from_pretrained(folder, **({} if xl else {"safety_checker": None}))
    if kinds is not None and "controlnet" in arguments:
        parts = {**pipeline.components, "controlnet": arguments.pop("controlnet")}
        arguments["controlnet_conditioning_scale"] = 1.0  # which defaults to less in some of them
        pipeline = kinds[xl](**parts, **({} if xl else {"requires_safety_checker": False}))
    elif kinds is not None:
        pipeline = kinds[xl].from_pipe(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    if tiled:
        pipeline.vae.enable_tiling()
    drawn = arguments.pop("generator", torch.Generator().manual_seed(1))
    common = {"generator": [drawn], "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    return pipeline([PROMPT], **{**common, **arguments}).images[0]


SIZED = {"height": HEIGHT, "width": WIDTH}


def plain(folder: Path, **arguments) -> numpy.ndarray:
    return of_stock(folder, **SIZED, **arguments)


def tiled(folder: Path) -> numpy.ndarray:
    return plain(folder, tiled=True)


def img2img(folder: Path) -> numpy.ndarray:
    return of_stock(folder, IMG2IMG, image=Image.open("photo.png"), strength=0.7)


def inpaint(folder: Path) -> numpy.ndarray:
    pictures = {"image": Image.open("photo.png"), "mask_image": Image.open("mask.png")}
    return of_stock(folder, INPAINT, **pictures, **SIZED, strength=0.7)


def controlled(folder: Path) -> numpy.ndarray:
    network = ControlNetModel.from_pretrained(folder.parent / "control")
    return of_stock(folder, CONTROLLED, controlnet=network, image=Image.open("photo.png"), **SIZED)


def controlled_img2img(folder: Path) -> numpy.ndarray:
    network, picture = ControlNetModel.from_pretrained(folder.parent / "control"), Image.open("photo.png")
    return of_stock(folder, CONTROLLED_IMG2IMG, controlnet=network, image=picture, control_image=picture, strength=0.7)


def controlled_inpaint(folder: Path) -> numpy.ndarray:
    network = ControlNetModel.from_pretrained(folder.parent / "control")
    pictures = {"image": Image.open("photo.png"), "mask_image": Image.open("mask.png")}
    pictures["control_image"] = pictures["image"]
    return of_stock(folder, CONTROLLED_INPAINT, controlnet=network, **pictures, **SIZED, strength=0.7)


def enlarged(folder: Path) -> numpy.ndarray:
    drawn = torch.Generator().manual_seed(1)
    small = of_stock(folder, output_type="pil", generator=drawn, **SIZED)
    larger = small.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.LANCZOS)
    return of_stock(folder, IMG2IMG, image=larger, strength=0.7, generator=drawn)


TABLE = {
    "plain": (SIZE, plain, NAMES[:2]),
    "in tiles": ((*SIZE, "--tile-vae"), tiled, NAMES[:2]),
    "img2img": ((*PHOTO, "--strength", "0.7"), img2img, NAMES[:2]),
    "inpaint": ((*PHOTO, *MASK, "--strength", "0.7"), inpaint, NAMES),
    "ControlNet": ((*CONTROL, *SIZE), controlled, NAMES[:2]),
    "ControlNet, img2img": ((*CONTROL, *PHOTO, "--strength", "0.7"), controlled_img2img, NAMES[:2]),
    "ControlNet, inpaint": ((*CONTROL, *PHOTO, *MASK, "--strength", "0.7"), controlled_inpaint, NAMES[:2]),
    "hires": ((*SIZE, "--hires-scale", "2", "--hires-strength", "0.7"), enlarged, NAMES[:2]),
}


CASES = [  # those of SDXL are slow
    pytest.param(title, name, marks=[pytest.mark.slow] if "xl" in name else [])
    for title, (*_, names) in TABLE.items()
    for name in names
]


@pytest.mark.parity
@pytest.mark.parametrize(("title", "name"), CASES)
def test_a_picture_of_any_size_is_stocks(title, name, folders):
    flags, make, _ = TABLE[title]
    folder = folders(name)
    if CONTROL[0] in flags:
        Path("control").symlink_to(folder.parent / "control")
    assert run(["generate", PROMPT, "-m", str(folder), *flags, *QUICK, "-o", "out.png"]) == 0
    made = numpy.asarray(load_image(Path("out.png"))) / 255
    expected = make(folder)
    assert made.shape == expected.shape and made.shape[0] * WIDTH == made.shape[1] * HEIGHT
    assert expected.std() > 0.05, "a picture without contrast would prove nothing"
    assert numpy.abs(expected - made).max() <= ALMOST_EQUAL
