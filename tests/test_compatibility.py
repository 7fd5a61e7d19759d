"""Every family in every layout makes stock's picture, plain and with what can be put onto it."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from conftest import seeded
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from families import BETAS, LAYOUTS, NAMES, SIDE_PX, stock
from safetensors.torch import load_file

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.conversion import convert
from sdcli.checkpoints.folder import ON_CPU
from sdcli.components.control import Control
from sdcli.components.scheduler import Scheduler
from sdcli.errors import SdcliError
from sdcli.pipeline import SdPipeline
from sdcli.registry import find_model
from sdcli.settings import DenoiseSettings

ALMOST_EQUAL = 2 / 255  # per pixel
STEPS = 3
PROMPT, NEGATIVE = "a photo of a red cat", "a dog"
SETTINGS = DenoiseSettings(num_inference_steps=STEPS, guidance_scale=5.0)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Where a family lies in a layout; written when first asked for."""
    known: dict[tuple[str, str], Path] = {}

    def write(name: str, layout: str) -> Path:
        if (name, layout) not in known:
            known[name, layout] = LAYOUTS[layout](name, tmp_path_factory.mktemp("family") / name)
        return known[name, layout]

    return write


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def picture() -> torch.Tensor:
    """A picture to begin from, (1, 3, H, W) in [-1, 1]."""
    return torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(5)) * 2 - 1


def half_mask() -> torch.Tensor:
    """The left half is to be painted anew."""
    mask = torch.zeros(1, 1, SIDE_PX, SIDE_PX)
    mask[..., : SIDE_PX // 2] = 1
    return mask


def ours(
    pipeline: SdPipeline, strength: float = 1.0, canvas: bool = False, mask: bool = False, **more
) -> numpy.ndarray:
    """Our picture, (1, H, W, 3) in [0, 1]."""
    settings = DenoiseSettings(num_inference_steps=STEPS, guidance_scale=5.0, strength=strength)
    told = pipeline.encode_prompt([PROMPT], [NEGATIVE], (SIDE_PX, SIDE_PX))
    drawn = [generator()]
    if canvas or mask:
        noise, begin = pipeline.prepare_canvas(picture(), half_mask() if mask else None, drawn, strength)
    else:
        noise, begin = pipeline.prepare_latents(drawn, SIDE_PX, SIDE_PX), None
    latents = pipeline.denoise(noise, *told, settings, drawn, canvas=begin, **more)
    return (pipeline.decode(latents) / 2 + 0.5).permute(0, 2, 3, 1).numpy()


def of_stock(pipeline, **arguments) -> numpy.ndarray:
    """Stock's picture for the same."""
    pipeline.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np"}
    size = {} if "image" in arguments and "mask_image" not in arguments else {"height": SIDE_PX, "width": SIDE_PX}
    return pipeline(PROMPT, negative_prompt=NEGATIVE, generator=[generator()], **common | size | arguments).images


def unit(pixel_values: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to [0, 1], as stock takes pictures."""
    return pixel_values / 2 + 0.5


def plain(name: str) -> tuple[dict, dict]:
    """Arguments of stock and of ours that make a picture of a family as simply as it can."""
    if name == "sdxl-refiner":
        return {"image": unit(picture()), "strength": 0.7}, {"canvas": True, "strength": 0.7}
    if name.endswith("inpainting"):
        return {"image": unit(picture()), "mask_image": half_mask(), "strength": 1.0}, {"mask": True}
    return {}, {}


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_family_in_every_layout_makes_stocks_picture(name, layout, written):
    pipeline = load_pipeline(find_model(str(written(name, layout))), ON_CPU)
    for_stock, for_ours = plain(name)
    expected = of_stock(stock(name), **for_stock)
    assert expected.std() > 0.1, "a picture without contrast would prove nothing"
    assert numpy.abs(expected - ours(pipeline, **for_ours)).max() <= ALMOST_EQUAL


IMG2IMG = {
    "sd1": StableDiffusionImg2ImgPipeline,
    "sd2": StableDiffusionImg2ImgPipeline,
    "sdxl": StableDiffusionXLImg2ImgPipeline,
}
INPAINT = {
    "sd1": StableDiffusionInpaintPipeline,
    "sd2": StableDiffusionInpaintPipeline,
    "sdxl": StableDiffusionXLInpaintPipeline,
}
SAMPLERS = {
    "pndm": PNDMScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}


def with_parts_of(kind: type, name: str):
    """Another of stock's pipelines from the parts of a family's own."""
    return kind.from_pipe(stock(name))


@pytest.mark.parity
@pytest.mark.parametrize("strength", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("name", IMG2IMG)
def test_a_picture_to_begin_from_is_what_it_is_to_stock(name, strength, written):
    pipeline = load_pipeline(find_model(str(written(name, "folder"))), ON_CPU)
    expected = of_stock(with_parts_of(IMG2IMG[name], name), image=unit(picture()), strength=strength)
    assert numpy.abs(expected - ours(pipeline, strength, canvas=True)).max() <= ALMOST_EQUAL


@pytest.mark.parity
@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("name", [*INPAINT, "sd1-inpainting", "sdxl-inpainting"])
def test_a_mask_is_what_it_is_to_stock(name, strength, written):
    """With UNets that are shown it, and with others by keeping the rest of the picture at every step."""
    pipeline = load_pipeline(find_model(str(written(name, "folder"))), ON_CPU)
    reference = with_parts_of(INPAINT[name], name) if name in INPAINT else stock(name)
    expected = of_stock(reference, image=unit(picture()), mask_image=half_mask(), strength=strength)
    assert numpy.abs(expected - ours(pipeline, strength, mask=True)).max() <= ALMOST_EQUAL


@pytest.mark.parity
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_kind_of_sampler_begins_from_a_picture_as_stocks_does(sampler, written):
    """Whether it counts noise in sigmas or in timesteps, takes one call a step or two, and adds noise or none."""
    pipeline = load_pipeline(find_model(str(written("sd1", "folder"))), ON_CPU)
    for kind, arguments, mask in (
        (StableDiffusionImg2ImgPipeline, {}, False),
        (StableDiffusionInpaintPipeline, {"mask_image": half_mask()}, True),
    ):
        reference = with_parts_of(kind, "sd1")
        clip = {"clip_sample": False} if sampler in ("ddim", "lcm") else {}
        clip |= {"skip_prk_steps": True} if sampler == "pndm" else {}
        reference.scheduler = SAMPLERS[sampler](**BETAS, **clip)
        pipeline.scheduler = Scheduler.from_config(json.loads(reference.scheduler.to_json_string()))
        expected = of_stock(reference, image=unit(picture()), strength=0.7, **arguments)
        made = ours(pipeline, 0.7, canvas=True, mask=mask)
        assert numpy.abs(expected - made).max() <= ALMOST_EQUAL


CONTROLNET = {
    "sd1": StableDiffusionControlNetPipeline,
    "sd2": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
}


@pytest.mark.parity
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", CONTROLNET)
def test_controlnets_say_what_they_say_to_stock(name, count, written):
    """Stock's own network beside our UNet, from the middle of the steps on; two of them are added up."""
    networks = []
    for number in range(count):
        network = ControlNetModel.from_unet(
            stock(name).unet, conditioning_embedding_out_channels=(16, 32), load_weights_from_unet=False
        )
        networks.append(seeded(network, seed=10 + number))
    image = unit(picture())
    kind = CONTROLNET[name]
    reference = kind(
        **{**stock(name).components, "controlnet": networks if count > 1 else networks[0]},
        **({} if name == "sdxl" else {"requires_safety_checker": False}),
    )
    each = [1.0, 0.5][:count]
    arguments = {
        "image": [image] * count if count > 1 else image,
        "controlnet_conditioning_scale": each if count > 1 else each[0],
        "control_guidance_start": 0.3,
    }
    expected = of_stock(reference, **arguments, height=SIDE_PX, width=SIDE_PX)
    pipeline = load_pipeline(find_model(str(written(name, "folder"))), ON_CPU)
    controls = [Control(network, image, scale, begin=0.3) for network, scale in zip(networks, each, strict=True)]
    made = ours(pipeline, controls=controls)
    assert numpy.abs(expected - made).max() <= ALMOST_EQUAL
    assert numpy.abs(made - ours(pipeline)).max() > 0.02


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_single_files_are_what_stocks_own_converter_reads(name, written):
    """Our writer against diffusers' reader: the same tensors under stock's names."""
    path = written(name, "single file")
    tensors = load_file(path)
    pipeline = stock(name)
    converted = convert_ldm_unet_checkpoint(tensors, dict(pipeline.unet.config))
    expected = pipeline.unet.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)
    converted = convert_ldm_vae_checkpoint(dict(tensors), dict(pipeline.vae.config))
    expected = pipeline.vae.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_converted_model_makes_the_same_picture(name, written, tmp_path):
    """Folder to file and back: the same tensors, and half precision where it is asked for."""
    folder = written(name, "folder")
    convert(folder, tmp_path / "it.safetensors")
    convert(tmp_path / "it.safetensors", tmp_path / "back")
    pictures = [ours(load_pipeline(find_model(str(path)), ON_CPU)) for path in (folder, tmp_path / "it.safetensors")]
    assert numpy.array_equal(*pictures)
    for before in folder.rglob("*.safetensors"):
        after = load_file(tmp_path / "back" / before.relative_to(folder))
        after = {key.removeprefix("text_model."): tensor for key, tensor in after.items()}  # of transformers 4
        for key, tensor in load_file(before).items():
            assert torch.equal(after[key.removeprefix("text_model.")], tensor)
    convert(folder, tmp_path / "half.safetensors", "fp16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}


def test_a_model_that_no_single_file_can_tell_of_stays_a_folder(tmp_path):
    """The built-in one has fewer groups in its norms and words of its own."""
    with pytest.raises(SdcliError, match="cannot tell that the unet of .* has norm_num_groups 16") as caught:
        convert(find_model("emoji").path, tmp_path / "it.safetensors")
    assert "folder" in caught.value.hint
    assert not (tmp_path / "it.safetensors").exists()
