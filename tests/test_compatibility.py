"""Every family in every layout makes stock's picture, plain and with what can be put onto it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from families import BETAS, LAYOUTS, NAMES, OF_FAMILY, SIDE_PX, WIDTH, stock
from lora_files import as_kohya, matrices
from safetensors.torch import load_file, save_file

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.adapters import put_lora, put_word
from sdcli.checkpoints.conversion import convert
from sdcli.checkpoints.embeddings import read_word
from sdcli.checkpoints.folder import ON_CPU
from sdcli.checkpoints.original import unet_place
from sdcli.components.control import Control
from sdcli.components.scheduler import Scheduler
from sdcli.components.unet import UNet
from sdcli.errors import SdcliError
from sdcli.families import unet_config
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


@contextmanager
def prompted(prompt: str) -> Iterator[None]:
    """Another prompt for a while."""
    global PROMPT
    before, PROMPT = PROMPT, prompt
    try:
        yield
    finally:
        PROMPT = before


def of_stock(pipeline, **arguments) -> numpy.ndarray:
    """Stock's picture for the same."""
    pipeline.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np"}
    size = {} if "image" in arguments and "mask_image" not in arguments else {"height": SIDE_PX, "width": SIDE_PX}
    return pipeline(PROMPT, negative_prompt=NEGATIVE, generator=[generator()], **common | size | arguments).images


def unit(pixel_values: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to [0, 1], as stock takes pictures."""
    return pixel_values / 2 + 0.5


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


CONTROLNET = {
    "sd1": StableDiffusionControlNetPipeline,
    "sd2": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
}
LARGE = (*CONTROLNET, "sd1-inpainting", "sdxl-inpainting")


def fresh(name: str, written):
    """Stock's pipeline with networks of its own, which a feature may put things onto."""
    kind = type(stock(name))
    more = {} if "xl" in name else {"safety_checker": None}
    return kind.from_pretrained(written(name, "folder"), **more)


@dataclass(frozen=True)
class Feature:
    """Something that users do with a model.

    Args:
        title: in the documentation.
        families: that it is for.
        of_stock: stock's picture of a family.
        of_ours: ours of a pipeline.
    """

    title: str
    families: tuple[str, ...]
    of_stock: Callable[..., numpy.ndarray]
    of_ours: Callable[..., numpy.ndarray]


def stock_plain(name: str, written, folder: Path, pipeline=None) -> numpy.ndarray:
    """As simply as the family can."""
    pipeline = pipeline or stock(name)
    if name == "sdxl-refiner":
        return of_stock(pipeline, image=unit(picture()), strength=0.7)
    if name.endswith("inpainting"):
        return of_stock(pipeline, image=unit(picture()), mask_image=half_mask(), strength=1.0)
    return of_stock(pipeline)


def our_plain(pipeline: SdPipeline, name: str, folder: Path) -> numpy.ndarray:
    """The same by our components."""
    if name == "sdxl-refiner":
        return ours(pipeline, 0.7, canvas=True)
    return ours(pipeline, mask=name.endswith("inpainting"))


def stock_img2img(name: str, written, folder: Path) -> numpy.ndarray:
    """From a picture, of which 0.7 is made anew."""
    return of_stock(with_parts_of(IMG2IMG[name], name), image=unit(picture()), strength=0.7)


def stock_inpaint(name: str, written, folder: Path) -> numpy.ndarray:
    """Under a mask; by UNets that are shown it, and by others that keep the rest of the picture at every step."""
    pipeline = with_parts_of(INPAINT[name], name) if name in INPAINT else stock(name)
    return of_stock(pipeline, image=unit(picture()), mask_image=half_mask(), strength=0.7)


def controlnets(name: str) -> list[ControlNetModel]:
    """Two of stock's own networks."""
    small = {"conditioning_embedding_out_channels": (16, 32), "load_weights_from_unet": False}
    return [seeded(ControlNetModel.from_unet(stock(name).unet, **small), seed=10 + number) for number in range(2)]


def stock_control(name: str, written, folder: Path) -> numpy.ndarray:
    """Two ControlNets of different weight, from the middle of the steps on."""
    more = {} if name == "sdxl" else {"requires_safety_checker": False}
    pipeline = CONTROLNET[name](**{**stock(name).components, "controlnet": controlnets(name)}, **more)
    arguments = {"image": [unit(picture())] * 2, "controlnet_conditioning_scale": [1.0, 0.5]}
    return of_stock(pipeline, **arguments, control_guidance_start=0.3, height=SIDE_PX, width=SIDE_PX)


def our_control(pipeline: SdPipeline, name: str, folder: Path) -> numpy.ndarray:
    """The same networks beside our UNet."""
    pairs = zip(controlnets(name), (1.0, 0.5), strict=True)
    return ours(pipeline, controls=[Control(network, unit(picture()), scale, begin=0.3) for network, scale in pairs])


def stock_lora(name: str, written, folder: Path) -> numpy.ndarray:
    """A LoRA in kohya's layout, of every attention of the UNet and the text encoders, at 0.7."""
    pipeline = fresh(name, written)
    file = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in as_kohya(matrices(pipeline), pipeline).items()}, file)
    pipeline.load_lora_weights(file, adapter_name="it")
    pipeline.set_adapters(["it"], [0.7])
    return stock_plain(name, written, folder, pipeline)


def our_lora(pipeline: SdPipeline, name: str, folder: Path) -> numpy.ndarray:
    """The same file."""
    put_lora(pipeline, folder / f"{name}.safetensors", 0.7)
    return our_plain(pipeline, name, folder)


WORD = "cat"  # of the prompt, in whose place the learned one stands


def vectors(name: str) -> dict[str, torch.Tensor]:
    """Two vectors for each text encoder that a family has, by the names in SDXL's files."""
    drawn = torch.randn(2, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    if "xl" not in name:
        return {"<thing>": drawn[0]}
    return (
        {"clip_g": drawn[1].clone()} if "refiner" in name else {"clip_l": drawn[0].clone(), "clip_g": drawn[1].clone()}
    )


def stock_word(name: str, written, folder: Path) -> numpy.ndarray:
    """A learned word of two vectors for each text encoder."""
    pipeline = fresh(name, written)
    for key, tensor in vectors(name).items():
        number = "_2" if key == "clip_g" else ""
        pipeline.load_textual_inversion(
            {"<thing>": tensor},
            token="<thing>",
            text_encoder=getattr(pipeline, f"text_encoder{number}"),
            tokenizer=getattr(pipeline, f"tokenizer{number}"),
        )
    with prompted(PROMPT.replace(WORD, "<thing>")):
        return stock_plain(name, written, folder, pipeline)


def our_word(pipeline: SdPipeline, name: str, folder: Path) -> numpy.ndarray:
    """The same vectors out of a file."""
    save_file(vectors(name), folder / "<thing>.safetensors")
    put_word(pipeline, read_word(folder / "<thing>.safetensors"))
    with prompted(PROMPT.replace(WORD, "<thing>")):
        return our_plain(pipeline, name, folder)


FEATURES = {
    "plain": Feature("text to image", NAMES, stock_plain, our_plain),
    "img2img": Feature(
        "`--init-image`", tuple(IMG2IMG), stock_img2img, lambda pipeline, *_: ours(pipeline, 0.7, canvas=True)
    ),
    "inpaint": Feature("`--mask`", LARGE, stock_inpaint, lambda pipeline, *_: ours(pipeline, 0.7, mask=True)),
    "ControlNet": Feature("`--controlnet`", tuple(CONTROLNET), stock_control, our_control),
    "LoRA": Feature("`--lora`", NAMES, stock_lora, our_lora),
    "inversion": Feature("`--embedding`", NAMES, stock_word, our_word),
}
# Variants and shards are read by the same code as the plain folder, so the whole table is for the slow run.
QUICK_LAYOUTS = ("folder", "single file")
TABLE = [
    pytest.param(name, layout, title, marks=() if title == "plain" or layout in QUICK_LAYOUTS else pytest.mark.slow)
    for title, feature in FEATURES.items()
    for name in feature.families
    for layout in LAYOUTS
]


@pytest.fixture(scope="session")
def expected(written, tmp_path_factory):
    """Stock's picture of a family and a feature, and the folder of its files; made when first asked for."""
    known: dict[tuple[str, str], tuple[numpy.ndarray, Path]] = {}

    def make(name: str, title: str) -> tuple[numpy.ndarray, Path]:
        if (name, title) not in known:
            folder = tmp_path_factory.mktemp("feature")
            known[name, title] = FEATURES[title].of_stock(name, written, folder), folder
        return known[name, title]

    return make


@pytest.mark.parity
@pytest.mark.parametrize(("name", "layout", "title"), TABLE)
def test_every_family_in_every_layout_makes_stocks_picture(name, layout, title, written, expected):
    """docs/compatibility.md is this table; each of its cells is a case here."""
    picture_of_stock, folder = expected(name, title)
    assert picture_of_stock.std() > 0.1, "a picture without contrast would prove nothing"
    pipeline = load_pipeline(find_model(str(written(name, layout))), ON_CPU)
    made = FEATURES[title].of_ours(pipeline, name, folder)
    assert numpy.abs(picture_of_stock - made).max() <= ALMOST_EQUAL
    if title != "plain":
        plain_picture, _ = expected(name, "plain")
        assert numpy.abs(plain_picture - made).max() > 2 * ALMOST_EQUAL, "a feature without effect proves nothing"


def test_the_documentation_is_this_table():
    """`python tests/write_compatibility.py` writes it again."""
    assert (Path(__file__).parent.parent / "docs" / "compatibility.md").read_text() == documentation()


def documentation() -> str:
    """docs/compatibility.md."""
    text = DOCUMENTATION
    titles = [feature.title for feature in FEATURES.values()]
    rows = [["family", *titles], ["---"] * (1 + len(titles))]
    for name in NAMES:
        rows.append([FAMILY_TITLES[name], *("yes" if name in each.families else "–" for each in FEATURES.values())])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    layouts = "\n".join(f"- {LAYOUT_TITLES[layout]}" for layout in LAYOUTS)
    return text.format(table=table, layouts=layouts)


FAMILY_TITLES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "SDXL",
    "sdxl-refiner": "SDXL refiner",
    "sd1-inpainting": "Stable Diffusion 1.x for inpainting",
    "sdxl-inpainting": "SDXL for inpainting",
}
LAYOUT_TITLES = {
    "folder": "a folder in the diffusers layout",
    "fp16 variant": "the same with `fp16` in the names of its weights",
    "shards": "the same in shards with an index",
    "single file": "a single `.safetensors` file in the original layout",
}
DOCUMENTATION = """# What runs, and how it is known

Written by `python tests/write_compatibility.py` from the table in `tests/test_compatibility.py`. Every cell was run
with weights of the true architecture and reduced width, made by the stock libraries, in each of these layouts:

{layouts}

"yes" is: our components make the picture that diffusers' own pipeline makes from the same weights, settings and CPU
generators, to 2/255 in every pixel, in fp32; and it differs from the picture without the feature.

{table}

The refiner begins from a picture by its nature. Turbo, Lightning, LCM, Hyper and TCD models are these families with
other settings: few steps, guidance 1, `--timestep-spacing trailing`, and for some `--sampler lcm` or `tcd`.
`models.toml` has those of the Turbo, Lightning, LCM, Hyper and TCD models that it names, and the LoRAs that make some
of them out of a base; `tests/test_few_steps.py` compares with stock.

LoRAs are read in the layouts of kohya, PEFT, diffusers (old and new) and cloneofsimo, LoCon's convolutions included;
learned words as `.safetensors`. With `--lenient` what fits of a LoRA is put on, and a warning tells how much does not.
With `--allow-pickle` models, VAEs, LoRAs and words may also be `.ckpt`, `.pt` or `.bin`, which are read without running
what is in them; `tests/test_pickles.py` compares with the same weights as safetensors.

Sizes need not be square, nor their latents even: `tests/test_sizes.py` compares with stock as such are typed, with
pictures to begin from, masks, ControlNets, tiles and a second pass. In that pass ControlNets have no say. One picture
is not stock's on purpose, that of `--sampler lms` with `--init-image`: stock's weighs slopes that it has not seen
(`tests/test_scheduler_deviations.py`). The schedulers also end where diffusers' own tests say that they do, and the
networks do what those say of networks (`tests/test_published_behaviours.py`).

Weights may be fp32, fp16, bf16 or fp8 (e4m3 and e5m2, plain or with a scale for each weight or row as ComfyUI keeps
them); `tests/test_precisions.py` compares with stock on what the numbers stand for.

Any other model of diffusers that makes pictures from text (Stable Diffusion 3, Flux, PixArt, Sana, Qwen-Image,
Z-Image …) runs by diffusers' own pipeline behind the same command; `tests/test_foreign.py` does so with Stable
Diffusion 3, Flux and PixArt. A flag that such a family does not take is an error.
"""


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


@pytest.mark.parametrize("name", ["sd1", "sd2", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:])])
def test_a_converted_model_makes_the_same_picture(name, written, tmp_path):
    """Folder to file and back: the same tensors, and half precision where it is asked for."""
    folder = written(name, "folder")
    convert(folder, tmp_path / "it.safetensors")
    convert(tmp_path / "it.safetensors", tmp_path / "back")
    both = [load_pipeline(find_model(str(path)), ON_CPU) for path in (folder, tmp_path / "it.safetensors")]
    pictures = [our_plain(pipeline, name, tmp_path) for pipeline in both]
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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_converted_model_says_what_it_predicts(name, prediction_type, written, tmp_path):
    """In the entry of its metadata that the field has for it; keys and shapes do not tell."""
    folder = tmp_path / "model"
    shutil.copytree(written(name, "folder"), folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": prediction_type}))
    convert(folder, tmp_path / "it.safetensors")
    scheduler = load_pipeline(find_model(str(tmp_path / "it.safetensors")), ON_CPU).scheduler
    assert scheduler.config.prediction_type == prediction_type


def test_a_converted_model_is_used_as_models_toml_says(written, tmp_path):
    """A folder keeps steps, guidance and sampler; both layouts what is predicted."""
    models = tmp_path / "models.toml"
    entry = f"path = {json.dumps(str(written('sd1', 'folder')))}\nsteps = 7\nguidance_scale = 2.5\nsampler = 'ddim'\n"
    models.write_text(f"[models.mine]\n{entry}prediction_type = 'v_prediction'\n")
    spec = find_model("mine", models)
    for target in (tmp_path / "folder", tmp_path / "it.safetensors"):
        convert(spec.path, target, defaults=spec.defaults)
        pipeline = load_pipeline(find_model(str(target)), ON_CPU)
        assert pipeline.scheduler.config.prediction_type == "v_prediction"
    defaults = find_model(str(tmp_path / "folder")).defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale, defaults.sampler) == (7, 2.5, "ddim")


LANDMARKS = {  # keys of the published files
    "sd1": ("output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.weight", "output_blocks.8.2.conv.weight"),
    "sdxl": ("output_blocks.2.2.conv.weight", "output_blocks.5.2.conv.weight", "label_emb.0.2.weight"),
}
FULL = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize(("name", "count"), [("sd1", 686), ("sdxl", 1680)])
def test_a_unet_of_full_size_has_the_keys_of_the_published_files(name, count):
    """As many, all different, the upsamplers in their places; diffusers' converter would read them elsewhere too."""
    with torch.device("meta"):
        unet = UNet(**FULL[name])
    keys = {unet_place(key, unet.config).key for key in unet.state_dict()}
    assert len(keys) == len(unet.state_dict()) == count
    assert {
        "input_blocks.3.0.op.weight",
        "middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        *LANDMARKS[name],
    } <= keys
    shapes = {
        f"model.diffusion_model.{unet_place(key, unet.config).key}": tuple(each.shape)
        for key, each in unet.state_dict().items()
    }
    shapes["conditioner.embedders.1.model.text_projection"] = (1280, 1280)
    told = unet_config(shapes, OF_FAMILY[name])
    for key, value in FULL[name].items():
        given = told[key]
        assert given == (list(value) if isinstance(value, tuple) and isinstance(given, list) else value), key
