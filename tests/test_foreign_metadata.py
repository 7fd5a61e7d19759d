"""Pictures of other programs: each format is read from files of its real layout; damage gives no traceback."""

import json
import struct
import time
import zlib
from copy import deepcopy

import pytest
from foreign_pictures import (
    A1111,
    COMFY,
    INVOKEAI,
    INVOKEAI_LEGACY,
    MFLUX,
    SD_CPP,
    SD_CPP_JSON,
    SD_CPP_LINE,
    SD_SCRIPTS,
    WORKFLOW,
    comfy_node,
    comfy_webp,
    png,
    with_exif,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.components.scheduler import Scheduler
from sdcli.errors import SdcliError
from sdcli.exif import decode_comment
from sdcli.foreign_metadata import READERS, read_foreign
from sdcli.foreign_metadata.names import AUTOMATIC, NORMAL_ONLY, SAMPLERS, translate_sampler, translate_schedule
from sdcli.foreign_metadata.translation import ForeignMetadata
from sdcli.images import read_text
from sdcli.metadata import A1111_SAMPLERS, A1111_SCHEDULES, Provenance, text_blocks
from sdcli.settings import SAMPLER_NAMES, SCHEDULE_NAMES, GenerateSettings
from sdcli.untrusted_json import MOST_DEPTH, parse_json

A1111_SETTINGS = {
    "prompt": "a cat, \nin the (snow:1.2)",
    "lora": ("snow:0.7",),
    "negative_prompt": "a dog,\nblurry",
    "width": 512,
    "height": 768,
    "num_inference_steps": 20,
    "guidance_scale": 7.0,
    "seed": 965400086,
    "model": "v1-5-pruned-emaonly",
    "vae": "a, b.safetensors",
    "hires_scale": 2.0,
    "hires_strength": 0.4,
    "sampler": "dpmpp_2m",
    "schedule": "karras",
    "clip_skip": 1,
}
A1111_OTHERS = {
    "Model hash": "6ce0161689",
    "VAE hash": "735e4c3a44",
    "Hires upscaler": "Latent",
    "TI hashes": "bad: c74b4e810b03",
    "Lora hashes": "snow: 3bb1c6ee0d2f",
    "Version": "v1.10.1",
}
COMFY_SETTINGS = {
    "seed": 156680208700286,
    "num_inference_steps": 20,
    "guidance_scale": 8.0,
    "sampler": "dpmpp_2m",
    "schedule": "karras",
    "prompt": r"a cat \[in\] snow",
    "clip_skip": 1,
    "negative_prompt": "a dog",
    "width": 512,
    "height": 768,
    "model": "v1-5-pruned-emaonly.safetensors",
    "lora": ("one.safetensors:1", "two.safetensors:0.8"),
}
COMFY_OTHERS = {"9 SaveImage": {"filename_prefix": "ComfyUI"}, "12 LoraLoader": {"strength_clip": 0.5}}


@pytest.fixture
def read(tmp_path):
    """What a file of some content says."""

    def reader(content: bytes) -> ForeignMetadata | None:
        path = tmp_path / "picture"
        path.write_bytes(content)
        return read_foreign(read_text(path)[0])

    return reader


def a1111(line: str, prompt: str = "a cat") -> ForeignMetadata | None:
    return read_foreign({"parameters": f"{prompt}\nSteps: 20, CFG scale: 7, Seed: 1, {line}"})


def comfy(graph: dict) -> ForeignMetadata | None:
    return read_foreign({"prompt": json.dumps(graph)})


# A1111 and those that write like it


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_a1111_is_read_from_every_kind_of_chunk(read, kind):
    """All that has a counterpart is translated, the rest is kept; the LoRA is no word of the prompt."""
    assert read(png({"parameters": A1111}, kind)) == ForeignMetadata("A1111", A1111_SETTINGS, A1111_OTHERS)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"UNICODE\0" + A1111.encode("utf-16"),
        b"ASCII\0\0\0" + A1111.encode(),
        b"\0" * 8 + A1111.encode() + b"\0\0",
        A1111.encode(),
    ],
    ids=["big end first", "little end first", "byte order mark", "ASCII", "undefined", "bare"],
)
def test_a1111_is_read_from_exif(read, file_format, comment):
    """However the user comment is encoded."""
    assert read(with_exif(file_format, comment)) == ForeignMetadata("A1111", A1111_SETTINGS, A1111_OTHERS)


def test_comments_in_any_script_are_read():
    """And what is no UTF-8 is not lost."""
    assert decode_comment(b"UNICODE\0" + "小猫, a Kätzchen".encode("utf-16-be")) == "小猫, a Kätzchen"
    assert decode_comment("小猫".encode()) == "小猫"
    assert decode_comment(b"K\xe4tzchen") == "Kätzchen"


def test_our_own_parameters_are_read_back():
    """What a gallery left of a picture of ours, for every sampler and schedule."""
    provenance = Provenance(model_name="emoji", device="cpu", precision="fp32", weights={})
    for sampler in SAMPLER_NAMES:
        for schedule in ("normal",) if sampler in NORMAL_ONLY else SCHEDULE_NAMES:
            ours = GenerateSettings(
                prompt="a cat\non, a: mat",
                negative_prompt="a dog",
                model="emoji",
                seed=2**64 - 1,
                width=128,
                height=64,
                num_inference_steps=20,
                guidance_scale=7.5,
                guidance_rescale=0.5,
                clip_skip=1,
                eta=0.5 if sampler in ("ddim", "tcd") else 0.0,
                sampler=sampler,
                schedule=schedule,
            )
            found = read_foreign({"parameters": text_blocks(ours, provenance)["parameters"]})
            assert found.maker == "sdcli"
            assert GenerateSettings(**found.settings) == ours


@pytest.mark.parametrize(
    ("version", "maker"),
    [
        ("Version: f2.0.1v1.10.1-previous-313-g8a042934", "Forge"),
        ("Version: Fooocus v2.1.865", "Fooocus"),
        ("App: SD.Next, Version: a1b2", "SD.Next"),
        ("Version: v1.10.1", "A1111"),
        ("Size: 8x8", "A1111"),
    ],
)
def test_the_program_is_told_by_its_version(version, maker):
    assert a1111(version).maker == maker


@pytest.mark.parametrize(
    ("line", "expected", "kept"),
    [
        ("Sampler: DPM++ 2M Karras", {"sampler": "dpmpp_2m", "schedule": "karras"}, {}),
        ("Sampler: DPM++ 2M SDE Exponential", {"sampler": "dpmpp_2m_sde", "schedule": "exponential"}, {}),
        ("Sampler: Euler a", {"sampler": "euler_a"}, {}),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", {"sampler": "dpmpp_2m", "schedule": "karras"}, {}),
        ("Sampler: Euler, Schedule type: Automatic", {"sampler": "euler"}, {}),
        ("Sampler: Euler, Schedule type: Uniform", {"sampler": "euler", "schedule": "normal"}, {}),
        ("Sampler: Euler, Schedule type: SGM Uniform", {"sampler": "euler"}, {"Schedule type": "SGM Uniform"}),
        ("Sampler: Euler a, Schedule type: Karras", {"sampler": "euler_a"}, {"Schedule type": "Karras"}),
        ("Sampler: Restart, Schedule type: Karras", {}, {"Sampler": "Restart", "Schedule type": "Karras"}),
        ("Sampler: DDIM, Eta: 0.5", {"sampler": "ddim", "eta": 0.5}, {}),
        ("Sampler: Euler a, Eta: 0.5", {"sampler": "euler_a"}, {"Eta": "0.5"}),
        ("Clip skip: 1", {"clip_skip": 0}, {}),
        ("Clip skip: 99", {}, {"Clip skip": "99"}),
        ("Clip skip: two", {}, {"Clip skip": "two"}),
        ("Denoising strength: 0.75", {"strength": 0.75}, {}),
        ("Denoising strength: 0.75, Hires resize: 8x8", {"hires_strength": 0.75}, {"Hires resize": "8x8"}),
        ("Size: 515x512", {}, {"Size": "515x512"}),
        ("Size: 512x515", {}, {"Size": "512x515"}),
        ("Size: large", {}, {"Size": "large"}),
        ("Skip layers: [7, 8, 9], Guidance: 1", {}, {"Skip layers": "[7, 8, 9]", "Guidance": "1"}),
        ('X: "a, \\"b\\": c", Y: "no end', {}, {"X": 'a, "b": c', "Y": '"no end'}),
        ("Seed: 2", {}, {"Seed (again)": "2"}),
    ],
)
def test_values_of_a1111(line, expected, kept):
    """Each becomes ours, or is kept as it was."""
    found = a1111(line.replace("X:", "XX:").replace("Y:", "YY:"))
    plain = {"prompt": "a cat", "negative_prompt": "", "num_inference_steps": 20, "guidance_scale": 7.0, "seed": 1}
    assert found.settings == plain | expected
    assert {name.replace("XX", "X").replace("YY", "Y"): value for name, value in found.others.items()} == kept


def test_what_our_settings_would_refuse_is_kept():
    """Guidance below 1, steps beyond all schedules, prompt editing: generating would not take it."""
    found = read_foreign({"parameters": "a [cat:dog:0.5]\nSteps: 5000, CFG scale: 0.5, Seed: -1, Size: 8x8"})
    assert found.settings == {"negative_prompt": "", "width": 8, "height": 8}
    assert found.others == {"Prompt": "a [cat:dog:0.5]", "Steps": "5000", "CFG scale": "0.5", "Seed": "-1"}


def test_loras_are_taken_out_of_the_prompt():
    """With the weight, which is 1 where none is; a second weight is kept."""
    found = a1111("Size: 8x8", "<lora:one>a cat <lora:two:0.5:0.7>")
    assert found.settings["prompt"] == "a cat"
    assert found.settings["lora"] == ("one:1", "two:0.5")
    assert found.others["<lora:two>"] == "0.5:0.7"


def test_lines_after_the_values_are_kept():
    """Extensions write their template there."""
    found = a1111("Size: 8x8\nTemplate: a {cat|dog}")
    assert found.settings["width"] == 8
    assert found.others == {"further lines": "Template: a {cat|dog}"}


def test_texts_that_are_no_settings_are_nothing():
    """Words alone, and JSON."""
    assert read_foreign({"parameters": "a photo of a cat, 2024"}) is None
    assert read_foreign({"parameters": '{"a": 1}', "Software": "GIMP"}) is None
    assert read_foreign({}) is None


# stable-diffusion.cpp


def test_stable_diffusion_cpp(read):
    """Its own names of samplers, its own clip skip, and no eta where the sampler has none."""
    found = read(png({"parameters": SD_CPP}))
    assert found.maker == "stable-diffusion.cpp"
    assert found.settings == {
        "prompt": "A sunflower field",
        "negative_prompt": "Blue sky",
        "width": 512,
        "height": 512,
        "num_inference_steps": 30,
        "guidance_scale": 5.0,
        "seed": 1375127038,
        "model": "v1-5-pruned-emaonly.safetensors",
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "clip_skip": 1,
    }
    kept = {"Eta": "0.000000", "Guidance": "3.500000", "RNG": "cuda", "Version": "stable-diffusion.cpp"}
    assert found.others == kept


def test_stable_diffusion_cpp_with_json_behind(read):
    """The JSON knows where the prompt ends, and the LoRAs; all of it is kept."""
    prompt = SD_CPP_JSON["prompt"]["positive"]
    text = f"{prompt}\nNegative prompt: Blue sky\n{SD_CPP_LINE}, SDCPP: {json.dumps(SD_CPP_JSON)}"
    for found in (read(png({"parameters": text})), read_foreign({"xmp": in_xmp(text)})):
        assert (found.settings["prompt"], found.settings["negative_prompt"]) == (prompt, "Blue sky")
        assert found.settings["lora"] == ("sun:0.5",)
        assert found.settings["seed"] == 1375127038
        assert found.others["SDCPP"] == SD_CPP_JSON
        assert found.maker == "stable-diffusion.cpp"
    damaged = read(png({"parameters": f"{SD_CPP}, SDCPP: {{"}))
    assert (damaged.settings["seed"], damaged.others["SDCPP"]) == (1375127038, "{")


def in_xmp(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f"<x:xmpmeta><rdf:RDF><sdcpp:parameters>{escaped}</sdcpp:parameters></rdf:RDF></x:xmpmeta>"


def test_other_names_of_its_samplers():
    """ddim_trailing is a sampler and a spacing, dpm++2mv2 has no counterpart."""
    assert translate_sampler("ddim_trailing") == {"sampler": "ddim", "timestep_spacing": "trailing"}
    assert translate_sampler("dpm++2mv2 karras") is None
    assert translate_sampler("euler_a") == {"sampler": "euler_a"}


# ComfyUI


def test_comfyui(read):
    """The sampler is followed to texts, latents, checkpoint and LoRAs, in PNG and in the EXIF of WebP."""
    expected = ForeignMetadata("ComfyUI", COMFY_SETTINGS, COMFY_OTHERS | {"workflow": WORKFLOW})
    assert read(png({"prompt": json.dumps(COMFY), "workflow": json.dumps(WORKFLOW)})) == expected
    assert read(comfy_webp()) == expected


def test_comfyui_without_a_graph(read):
    """The editor's values have no names: none is guessed, all is kept."""
    found = read(png({"workflow": json.dumps(WORKFLOW)}))
    assert (found.maker, found.settings, found.others) == ("ComfyUI", {}, {"workflow": WORKFLOW})


def changed(**nodes: dict) -> dict:
    """The graph with nodes changed or added; names begin with n."""
    graph = deepcopy(COMFY)
    for name, node in nodes.items():
        known = graph.get(name[1:], {"inputs": {}})
        graph[name[1:]] = {**known, **node, "inputs": {**known["inputs"], **node["inputs"]}}
    return graph


def test_comfyui_advanced_sampler():
    """Its seed has another name, and its range of steps no counterpart."""
    graph = changed()
    inputs = graph["3"]["inputs"]
    inputs["noise_seed"] = inputs.pop("seed")
    inputs["start_at_step"] = 5
    graph["3"]["class_type"] = "KSamplerAdvanced"
    found = comfy(graph)
    assert found.settings == COMFY_SETTINGS
    assert found.others["3 KSamplerAdvanced"] == {"start_at_step": 5}


@pytest.mark.parametrize("guided", [False, True])
def test_comfyui_custom_sampler(guided):
    """Sampler, schedule, noise and guidance are nodes of their own."""
    graph = changed()
    old = graph["3"]["inputs"]
    conditioning = {"model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "cfg": 8}
    parts = {"sampler": ["20", 0], "sigmas": ["21", 0], "latent_image": ["5", 0]}
    graph["20"] = comfy_node("KSamplerSelect", sampler_name="dpmpp_2m")
    graph["21"] = comfy_node("BasicScheduler", scheduler="karras", steps=20, denoise=1.0, model=["10", 0])
    if guided:
        graph["22"] = comfy_node("RandomNoise", noise_seed=old["seed"])
        graph["23"] = comfy_node("CFGGuider", **conditioning)
        graph["3"] = comfy_node("SamplerCustomAdvanced", noise=["22", 0], guider=["23", 0], **parts)
    else:
        graph["3"] = comfy_node("SamplerCustom", noise_seed=old["seed"], **conditioning, **parts)
    found = comfy(graph)
    assert (found.settings, found.others) == (COMFY_SETTINGS, COMFY_OTHERS)
    graph["21"] = comfy_node("KarrasScheduler", steps=20, sigma_max=14.6)
    assert comfy(graph).settings["schedule"] == "karras"


def test_comfyui_from_a_picture():
    """denoise is our strength then, and the size is the picture's."""
    graph = changed(
        n3={"inputs": {"latent_image": ["30", 0], "denoise": 0.6}},
        n30={"class_type": "VAEEncode", "inputs": {"pixels": ["31", 0], "vae": ["4", 2]}},
        n31={"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
    )
    found = comfy(graph)
    assert found.settings["strength"] == 0.6 and "width" not in found.settings
    assert found.others["31 LoadImage"] == {"image": "cat.png"}


def test_comfyui_second_pass():
    """The first pass is read, the second is kept."""
    graph = changed(
        n2={
            "class_type": "KSampler",
            "inputs": {**COMFY["3"]["inputs"], "seed": 5, "denoise": 0.5, "latent_image": ["40", 0]},
        },
        n40={"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1024}},
        n8={"inputs": {"samples": ["2", 0]}},
    )
    found = comfy({"2": graph.pop("2"), **graph})
    assert found.settings == COMFY_SETTINGS
    assert found.others["2 KSampler"]["seed"] == 5
    assert found.others["40 LatentUpscale"] == {"width": 1024}


def test_comfyui_sampler_whose_picture_is_saved():
    """Another one in the graph is not what made it."""
    unsaved = comfy_node("KSampler", **{**COMFY["3"]["inputs"], "seed": 5})
    found = comfy({"1": unsaved, **COMFY})
    assert found.settings["seed"] == 156680208700286
    assert found.others["1 KSampler"]["seed"] == 5


def test_comfyui_values_from_other_nodes():
    """A seed and a text that nodes of their own hold."""
    graph = changed(
        n3={"inputs": {"seed": ["50", 0]}},
        n50={"class_type": "PrimitiveInt", "inputs": {"value": 77}},
        n6={"inputs": {"text": ["51", 0]}},
        n51={"class_type": "String Literal", "inputs": {"string": "an owl"}},
    )
    found = comfy(graph)
    assert (found.settings["seed"], found.settings["prompt"]) == (77, "an owl")
    assert found.others == COMFY_OTHERS


def test_comfyui_conditioning():
    """Through ControlNets by role; combined texts are not made one; nothing is an empty text."""
    control = {"class_type": "ControlNetApplyAdvanced", "inputs": {"strength": 0.5}}
    control["inputs"] |= {"positive": ["6", 0], "negative": ["7", 0]}
    found = comfy(changed(n60=control, n3={"inputs": {"positive": ["60", 0], "negative": ["60", 1]}}))
    assert found.settings == COMFY_SETTINGS
    assert found.others["60 ControlNetApplyAdvanced"] == {"strength": 0.5}
    both = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["7", 0]}}
    zero = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}}
    found = comfy(changed(n61=both, n62=zero, n3={"inputs": {"positive": ["61", 0], "negative": ["62", 0]}}))
    assert "prompt" not in found.settings and found.settings["negative_prompt"] == ""
    assert found.others["6 CLIPTextEncode"] == {"text": "a cat [in] snow"}


def test_comfyui_names_without_counterpart_are_kept():
    """With the node that has them."""
    found = comfy(changed(n3={"inputs": {"sampler_name": "res_multistep"}}))
    assert found.others["3 KSampler"] == {"sampler_name": "res_multistep", "scheduler": "karras"}
    found = comfy(changed(n3={"inputs": {"scheduler": "sgm_uniform"}}))
    assert found.settings["sampler"] == "dpmpp_2m" and "schedule" not in found.settings
    assert found.others["3 KSampler"] == {"scheduler": "sgm_uniform"}
    found = comfy(changed(n11={"inputs": {"stop_at_clip_layer": -24}}, n5={"inputs": {"width": 515, "batch_size": 2}}))
    assert found.others["11 CLIPSetLastLayer"] == {"stop_at_clip_layer": -24}
    assert found.others["5 EmptyLatentImage"] == {"width": 515, "batch_size": 2}


def test_comfyui_rescale():
    """RescaleCFG is our guidance rescale."""
    node = {"class_type": "RescaleCFG", "inputs": {"multiplier": 0.7, "model": ["10", 0]}}
    assert comfy(changed(n70=node, n3={"inputs": {"model": ["70", 0]}})).settings["guidance_rescale"] == 0.7


def test_a_graph_in_circles_ends():
    """Every way leads back."""
    graph = {
        "1": comfy_node(
            "KSampler", seed=["1", 0], model=["1", 0], positive=["2", 0], latent_image=["1", 0], steps=["3", 0]
        ),
        "2": comfy_node("CLIPTextEncode", text=["2", 0], clip=["2", 0]),
        "3": comfy_node("Int", value=["4", 0]),
        "4": comfy_node("Int", value=["3", 0]),
        "5": comfy_node("SaveImage", images=["5", 0]),
    }
    graph["1"]["inputs"]["steps"] = ["3", 0]
    assert comfy(graph).settings == {}


def test_a1111_wins_where_the_graph_tells_no_prompt():
    """Nodes that save pictures write both."""
    graph = {"1": comfy_node("AllInOne", everything="here")}
    found = read_foreign({"prompt": json.dumps(graph), "parameters": A1111})
    assert found.maker == "A1111" and found.others["prompt"] == json.dumps(graph)
    found = read_foreign({"prompt": json.dumps(COMFY), "parameters": A1111})
    assert found.maker == "ComfyUI" and found.others["parameters"] == A1111


# InvokeAI, sd-scripts, mflux


def test_invokeai(read):
    """Models and LoRAs have names in objects; clip skip is counted as here."""
    found = read(png({"invokeai_metadata": json.dumps(INVOKEAI), "invokeai_graph": "{}"}))
    assert found.maker == "InvokeAI"
    assert found.settings == {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "seed": 356120443,
        "width": 768,
        "height": 432,
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "guidance_rescale": 0.7,
        "clip_skip": 1,
        "sampler": "dpmpp_2m_sde",
        "schedule": "karras",
        "model": "dreamshaper",
        "lora": ("snow:0.75",),
    }
    kept = {"app_version": "5.6.0", "generation_mode": "txt2img", "rand_device": "cpu", "invokeai_graph": "{}"}
    assert found.others == kept


def test_invokeai_of_version_3():
    """Names were called model_name, and a LoRA lora."""
    old = {
        **INVOKEAI,
        "model": {"model_name": "amixx", "base_model": "sd-1"},
        "loras": [{"lora": {"model_name": "snow"}, "weight": 1}],
        "cfg_scale": [7, 5],
    }
    found = read_foreign({"invokeai_metadata": json.dumps(old)})
    assert (found.settings["model"], found.settings["lora"]) == ("amixx", ("snow:1",))
    assert found.others["cfg_scale"] == [7, 5]
    found = read_foreign({"invokeai_metadata": json.dumps({**INVOKEAI, "loras": ["x"], "model": {}})})
    assert found.others["loras"] == ["x"] and "lora" not in found.settings


def test_invokeai_of_version_2(read):
    """Square brackets were the negative prompt."""
    found = read(png({"sd-metadata": json.dumps(INVOKEAI_LEGACY), "Dream": '"an owl" -s 30'}))
    assert found.settings["prompt"] == "an owl  at night" and found.settings["negative_prompt"] == "a dog"
    assert (found.settings["sampler"], found.settings["model"]) == ("lms", "stable-diffusion-1.5")
    assert found.others["model_hash"] == "cc6cb271" and found.others["Dream"] == '"an owl" -s 30'
    blend = deepcopy(INVOKEAI_LEGACY)
    blend["image"]["prompt"].append({"prompt": "a fox", "weight": 0.5})
    found = read_foreign({"sd-metadata": json.dumps(blend)})
    assert "prompt" not in found.settings and found.others["prompt"] == blend["image"]["prompt"]


def test_sd_scripts(read):
    """Texts, a chunk each."""
    found = read(png(SD_SCRIPTS))
    assert found.settings == {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "seed": 4,
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "sampler": "euler_a",
    }
    assert (found.maker, found.others) == ("sd-scripts", {"negative-scale": "3.0"})
    assert translate_sampler("dpmsolver++") == {"sampler": "dpmpp_2m"}
    assert translate_sampler("dpmsingle") is None


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_mflux(read, file_format):
    """Brackets are letters there, and strength is how much of the picture stays."""
    found = read(with_exif(file_format, b"ASCII\0\0\0" + json.dumps(MFLUX).encode()))
    assert found.maker == "mflux"
    assert found.settings == {
        "prompt": r"a cat \(asleep\)",
        "seed": 2,
        "num_inference_steps": 25,
        "guidance_scale": 4.0,
        "width": 1024,
        "height": 512,
        "model": "dev",
        "lora": ("a.safetensors:0.5", "b.safetensors:1.0"),
        "strength": 0.6,
    }
    assert found.others["image_path"] == "cat.png" and found.others["quantize"] == 8
    assert "controlnet_strength" not in found.others
    found = read_foreign({"UserComment": json.dumps({**MFLUX, "steps": 25.5, "seed": 2.0, "width": True})})
    assert found.settings["seed"] == 2 and not found.settings.keys() & {"num_inference_steps", "width"}
    assert (found.others["steps"], found.others["width"]) == (25.5, True)


# names


def test_the_tables_of_names_agree_with_our_own():
    """Every name leads to a sampler that there is, each of ours has one, and A1111's are understood."""
    assert set(SAMPLERS.values()) == set(SAMPLER_NAMES)
    assert set(AUTOMATIC) <= set(SAMPLER_NAMES)
    for ours, theirs in A1111_SAMPLERS.items():
        assert translate_sampler(theirs) == {"sampler": ours}
    for ours, theirs in A1111_SCHEDULES.items():
        assert translate_schedule(theirs, "euler") == ours


def test_a_schedule_that_a_sampler_does_not_take_is_not_translated():
    """As our scheduler has it."""
    for sampler in SAMPLER_NAMES:
        try:
            Scheduler(sampler=sampler, sigma_schedule="karras")
            takes = True
        except ValueError:
            takes = False
        assert takes == (sampler not in NORMAL_ONLY)
        assert translate_schedule("karras", sampler) == ("karras" if takes else None)


# damage


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG with a chunk behind its header."""
    plain = png({})
    return plain[:33] + chunk(kind, content) + plain[33:]


@pytest.mark.parametrize(
    "content",
    [
        with_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 2**24)),
        with_chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b"a" * 2**24)),
    ],
    ids=["zTXt", "iTXt"],
)
def test_a_text_that_unfolds_is_refused(read, content):
    """A few kilobytes that would become many megabytes."""
    with pytest.raises(SdcliError, match="holds a text that is too large") as raised:
        read(content)
    assert raised.value.hint


def test_a_field_that_is_not_there_is_refused(read):
    """PIL opens this TIFF, and raises KeyError for a field whose numbers are said to be beyond its end."""
    content = bytearray(with_exif("TIFF", b"ASCII\0\0\0abc"))
    content[62], content[87], content[97] = 9, 1, 1
    with pytest.raises(SdcliError, match="damaged"):
        read(bytes(content))


@pytest.mark.parametrize(
    "text",
    [
        '{"1": ' * 5000 + "1" + "}" * 5000,
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": "\\ud800"}',
        '{"a": 1, "a": 2}',
        '{"a": ' + "9" * 5000 + "}",
        "{",
        "",
        "null",
    ],
    ids=["objects", "lists", "half a letter", "twice", "long number", "cut off", "empty", "null"],
)
def test_odd_json_is_not_understood(text):
    """No reader fails over it."""
    for name in ("prompt", "workflow", "invokeai_metadata", "sd-metadata", "UserComment", "parameters"):
        assert read_foreign({name: text}) is None


def test_json_is_read_as_deep_as_it_is_meant():
    """And no deeper."""
    deepest = MOST_DEPTH - 1
    assert parse_json("[" * deepest + "]" * deepest)
    with pytest.raises(ValueError, match="deep"):
        parse_json("[" * MOST_DEPTH * 2 + "]" * MOST_DEPTH * 2)
    assert parse_json('{"is_changed": [NaN]}') == {"is_changed": ["NaN"]}


@pytest.mark.parametrize(
    "text",
    [
        "a\nSteps: 1, a: 1, b: 1, " + "a " * 500_000,
        "a\nSteps: 1, aa: 1, bb: 1, " + 'aa:"\\' * 100_000,
        "a\nSteps: 1, aa: 1, bb: 1, " + "aa:1" * 100_000,
        "[" + "|" * 500_000 + "\nSteps: 1, aa: 1, bb: 1",
        "<lora:" * 100_000 + "\nSteps: 1, aa: 1, bb: 1",
        "\n" * 1_000_000 + "Steps: 1, aa: 1, bb: 1",
    ],
)
def test_long_texts_take_no_long_time(text):
    """No expression goes over a text again for each of its letters."""
    started_at = time.process_time()
    read_foreign({"parameters": text})
    assert time.process_time() - started_at < 3


def test_large_graphs_take_no_long_time():
    """Each node is walked over once."""
    started_at = time.process_time()
    graph = {str(i): comfy_node("SaveImage", images=[str(i + 1), 0], text=[str(i + 1), 0]) for i in range(20_000)}
    graph["0"] = {"class_type": "KSampler", "inputs": {**COMFY["3"]["inputs"], "positive": ["1", 0], "seed": ["1", 0]}}
    found = comfy(graph)
    assert found.settings["guidance_scale"] == 8
    assert time.process_time() - started_at < 5


# Anything at all

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = sorted({name for names, _ in READERS for name in names} | {"xmp"})


def is_sound(found: ForeignMetadata | None) -> bool:
    """Nothing understood, or settings that GenerateSettings takes, and all of it can be shown."""
    if found is None:
        return True
    json.dumps([found.settings, found.others], default=list)
    plain = {"prompt": "", "model": "m", "seed": 0, "width": 512, "height": 512, "init_image": "a.png"}
    GenerateSettings(**{**plain, "num_inference_steps": 1000, "guidance_scale": 1.0, **found.settings})
    return bool(found.maker)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.text() | JSONS.map(json.dumps)))
def test_any_texts_are_read_or_not_understood(texts):
    assert is_sound(read_foreign(texts))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_to_what_programs_write_is_read_or_not_understood(data):
    """A value somewhere in a graph, in settings or in a line becomes something else."""
    which = data.draw(st.sampled_from([COMFY, INVOKEAI, INVOKEAI_LEGACY, MFLUX, SD_CPP_JSON]))
    content = place = deepcopy(which)
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSONS)
    for name in ("prompt", "invokeai_metadata", "sd-metadata", "UserComment"):
        assert is_sound(read_foreign({name: json.dumps(content)}))
    assert is_sound(read_foreign({"parameters": f"{SD_CPP}, SDCPP: {json.dumps(content)}"}))
    cut, more = data.draw(st.integers(0, len(A1111))), data.draw(st.text(max_size=20))
    assert is_sound(read_foreign({"parameters": A1111[:cut] + more + A1111[cut:]}))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_of_a_picture_are_read_or_refused(tmp_path_factory, data):
    """Damage in chunks and in EXIF."""
    originals = [
        comfy_webp(),
        with_exif("JPEG", b"UNICODE\0" + A1111.encode("utf-16-be"), x0131="A"),
        png({"parameters": A1111}, "zTXt"),
        with_exif("PNG", b"ASCII\0\0\0" + json.dumps(MFLUX).encode()),
    ]
    content = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "picture"
    path.write_bytes(bytes(content) if data.draw(st.booleans()) else data.draw(st.binary()))
    try:
        assert is_sound(read_foreign(read_text(path)[0]))
    except SdcliError as error:
        assert error.hint
