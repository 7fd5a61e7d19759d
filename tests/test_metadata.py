"""The text inside a picture: A1111's form to the letter, and complete JSON."""

import json
import re
from dataclasses import replace

import pytest

from sdcli import __version__
from sdcli.errors import SdcliError
from sdcli.metadata import A1111_SAMPLERS, A1111_SCHEDULES, Provenance, read_complete_json, text_blocks
from sdcli.settings import SAMPLER_NAMES, SCHEDULE_NAMES, GenerateSettings

SETTINGS = GenerateSettings(
    prompt="a cute kitten",
    negative_prompt="a dog",
    model="models/emoji",
    seed=1,
    width=128,
    height=64,
    num_inference_steps=20,
    guidance_scale=7.0,
    sampler="dpmpp_2m",
    schedule="karras",
)
WEIGHTS = {"text_encoder/model.safetensors": "a" * 64, "unet/x.safetensors": "0123456789abcdef" * 4}
PROVENANCE = Provenance(model_name="emoji", device="cpu", precision="fp32", weights=WEIGHTS)


def parse_as_a1111_does(text: str) -> dict[str, str]:
    """What stable-diffusion-webui's reader makes of it: pairs in the last line, whose values may be JSON texts."""
    *lines, last = text.split("\n")
    negative = next((place for place, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    values = {"Prompt": "\n".join(lines[:negative]), "Negative prompt": "\n".join(lines[negative:])[17:]}
    for name, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last):
        values[name] = json.loads(value) if value.startswith('"') else value
    return values


def test_parameters_have_the_form_of_a1111():
    """To the letter."""
    assert text_blocks(SETTINGS, PROVENANCE)["parameters"] == (
        "a cute kitten\n"
        "Negative prompt: a dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 128x64, "
        f"Model hash: 0123456789, Model: emoji, Version: sdcli {__version__}"
    )


def test_parameters_are_read_back_by_the_reader_they_are_meant_for():
    """Whatever stands in the prompt or the model's name."""
    settings = replace(SETTINGS, prompt="two\nlines, with: marks", negative_prompt="", clip_skip=1, eta=0.5)
    provenance = replace(PROVENANCE, model_name='cats, "v2": best')
    values = parse_as_a1111_does(text_blocks(settings, provenance)["parameters"])
    assert values["Prompt"] == "two\nlines, with: marks"
    assert values["Negative prompt"] == ""
    assert values["Model"] == 'cats, "v2": best'
    assert values["Eta"] == "0.5"
    assert (values["Seed"], values["Size"], values["Sampler"]) == ("1", "128x64", "DPM++ 2M")
    assert values["Clip skip"] == "2"  # A1111 counts the last layer as 1


def test_every_sampler_and_schedule_has_a_name_there():
    """None is left out when one is added."""
    assert set(A1111_SAMPLERS) == set(SAMPLER_NAMES)
    assert set(A1111_SCHEDULES) == set(SCHEDULE_NAMES)


def test_the_json_is_complete():
    """Settings that make the same picture again, the weights and the versions that made it."""
    content = read_complete_json(text_blocks(SETTINGS, PROVENANCE)["sdcli"])
    assert GenerateSettings(**content["settings"]) == SETTINGS
    assert content["schema"] == "sdcli.image/1"
    assert content["weights"] == WEIGHTS
    assert (content["device"], content["precision"], content["model_name"]) == ("cpu", "fp32", "emoji")
    assert set(content["versions"]) == {"sdcli", "python", "torch", "diffusers", "transformers"}
    assert all(content["versions"].values())


def test_the_json_is_ascii_on_one_line():
    """So that JPEG and WebP can hold it."""
    text = text_blocks(replace(SETTINGS, prompt="小猫\n2"), PROVENANCE)["sdcli"]
    assert text.isascii() and "\n" not in text
    assert read_complete_json(text)["settings"]["prompt"] == "小猫\n2"


def test_numbers_come_back_exactly():
    """The largest seed, and a guidance scale to its last digit."""
    settings = replace(SETTINGS, guidance_scale=7.123456789012345, seed=2**64 - 1)
    assert GenerateSettings(**read_complete_json(text_blocks(settings, PROVENANCE)["sdcli"])["settings"]) == settings


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"settings": {}}', "null"])
def test_a_damaged_block_is_refused(text):
    """No traceback for an altered file."""
    with pytest.raises(SdcliError, match="damaged"):
        read_complete_json(text)
