"""Settings refuse what no model can take, and say what to try."""

import math

import pytest

from sdcli.components.samplers import SAMPLERS
from sdcli.components.samplers.spacing import SIGMA_SCHEDULES
from sdcli.errors import SdcliError
from sdcli.settings import (
    SAMPLER_NAMES,
    SCHEDULE_NAMES,
    GenerateSettings,
    GenerationDefaults,
    did_you_mean,
)

GOOD = {
    "prompt": "a cute kitten",
    "model": "emoji",
    "seed": 1,
    "width": 128,
    "height": 64,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
}


def test_good_settings_are_taken_as_they_are():
    """Nothing is rounded or replaced, and the loop's part is passed on."""
    settings = GenerateSettings(**GOOD, eta=0.5, guidance_rescale=0.7)
    assert (settings.width, settings.height) == (128, 64)
    loop = settings.denoise_settings
    assert (loop.num_inference_steps, loop.guidance_scale, loop.eta, loop.guidance_rescale) == (20, 7.5, 0.5, 0.7)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"width": 515}, "--width must be a positive multiple of 8, got 515", "512 or 520"),
        ({"height": 0}, "--height must be a positive multiple of 8, got 0", "8 or 16"),
        ({"height": -8}, "--height must be a positive multiple of 8, got -8", "8 or 16"),
        ({"num_inference_steps": 0}, "--steps must be from 1 to 1000, got 0", "20 to 50"),
        ({"num_inference_steps": 1001}, "--steps must be from 1 to 1000, got 1001", "20 to 50"),
        ({"seed": -1}, "--seed must be from 0", "one is drawn"),
        ({"seed": 2**64}, "--seed must be from 0", "one is drawn"),
        ({"guidance_scale": 0.5}, "--guidance-scale must be at least 1, got 0.5", "1 switches guidance off"),
        ({"guidance_scale": math.nan}, "--guidance-scale must be at least 1, got nan", "1 switches guidance off"),
        ({"guidance_scale": math.inf}, "--guidance-scale must be at least 1, got inf", "1 switches guidance off"),
        ({"guidance_rescale": 1.5}, "--guidance-rescale must be from 0 to 1, got 1.5", "try"),
        ({"prompt": "\udcff"}, "prompt is not UTF-8", "encoding"),
        ({"negative_prompt": "\udcff"}, "--negative-prompt is not UTF-8", "encoding"),
        ({"eta": -0.1}, "--eta must be from 0 to 1, got -0.1", "try"),
        ({"clip_skip": -1}, "--clip-skip must be from 0 to 11, got -1", "try"),
        ({"sampler": "dpmpp2m"}, "--sampler knows no 'dpmpp2m'", "did you mean dpmpp_2m"),
        ({"schedule": "karas"}, "--schedule knows no 'karas'", "did you mean karras?"),
    ],
)
def test_a_value_that_no_model_can_take_is_refused(change, message, hint):
    """The message names flag and value, the hint what is allowed."""
    with pytest.raises(SdcliError) as raised:
        GenerateSettings(**{**GOOD, **change})
    assert str(raised.value).startswith(message)
    assert hint in raised.value.hint
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    "change", [{"width": 515}, {"num_inference_steps": 0}, {"sampler": "x"}, {"guidance_scale": 0}]
)
def test_defaults_of_a_model_are_checked_alike(change):
    """What a models.toml says is held to the same rules."""
    with pytest.raises(SdcliError):
        GenerationDefaults(**change)


@pytest.mark.parametrize("spelling", ["DPM++ 2M", "DPM++ 2M Karras", "dpm++-2m", "k_dpmpp_2m", "DPMPP_2M"])
def test_spellings_of_other_tools_are_recognised_in_hints(spelling):
    """A1111's and k-diffusion's spellings lead to ours."""
    assert did_you_mean(spelling, SAMPLER_NAMES).startswith("did you mean dpmpp_2m")


def test_a_hint_without_a_near_spelling_lists_all():
    """Nothing is suggested that is not near."""
    assert did_you_mean("zzzzzz", ("ddim", "euler")) == "known: ddim, euler"


def test_names_equal_the_tables():
    """The names that help shows without loading torch are those of the components."""
    assert set(SAMPLER_NAMES) == set(SAMPLERS)
    assert set(SCHEDULE_NAMES) == set(SIGMA_SCHEDULES)
