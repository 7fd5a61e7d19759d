"""The pipeline makes stock's picture from the same weights and generators, and what it promises besides."""

import json

import numpy
import pytest
import torch
from conftest import seeded, stock_unet
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from sdcli.components.conditioning import Conditioning
from sdcli.components.guidance import guidance_embedding, guide
from sdcli.components.scheduler import Scheduler
from sdcli.errors import EXIT_NOT_A_NUMBER, SdcliError
from sdcli.images import to_image, to_pixel_values
from sdcli.pipeline import SdPipeline, require_finite, to_grey
from sdcli.settings import DenoiseSettings, GenerationDefaults

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALMOST_EQUAL = 2 / 255  # per pixel
STEPS = 4
# Clipped, as Stable Diffusion is not, a random network's trajectory is chaotic: stock against itself, with noise 1e-7
# larger, then differs by half of the range.
UNCLIPPED = {"clip_sample": False}
SCHEDULERS = {
    PNDMScheduler: {},
    DDIMScheduler: UNCLIPPED,
    DDPMScheduler: UNCLIPPED,
    EulerDiscreteScheduler: {},
    EulerAncestralDiscreteScheduler: {},
    HeunDiscreteScheduler: {},
    DPMSolverMultistepScheduler: {},
    UniPCMultistepScheduler: {},
}


def generators(*seeds: int) -> list[torch.Generator]:
    """One generator on the CPU for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def use_scheduler(scheduler, stock: StableDiffusionPipeline, ours: SdPipeline) -> None:
    """Have both pipelines sample alike, ours told by the file that stock's scheduler would write."""
    stock.scheduler = scheduler
    ours.scheduler = Scheduler.from_config(json.loads(scheduler.to_json_string()))


def largest_difference(stock: StableDiffusionPipeline, ours: SdPipeline, prompt="a red cat", seeds=(1,), **options):
    """Largest difference of any pixel in [0, 1] between both pipelines' pictures."""
    stock.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": 7.5, "output_type": "np"} | options
    expected = stock(prompt, generator=generators(*seeds), **options).images
    pictures = ours(prompt, generator=generators(*seeds), **options).images
    assert expected.shape == pictures.shape
    assert expected.std() > 0.1, "a picture without contrast would prove nothing"
    return numpy.abs(expected - pictures).max()


@pytest.mark.parity
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_every_sampler_makes_stocks_picture(
    tiny_stock, tiny_pipeline, scheduler_class, prediction_type, guidance_scale
):
    """Same folder, same generator, same picture, step noise included."""
    scheduler = scheduler_class(**BETAS, **SCHEDULERS[scheduler_class], prediction_type=prediction_type)
    use_scheduler(scheduler, tiny_stock, tiny_pipeline)
    assert largest_difference(tiny_stock, tiny_pipeline, guidance_scale=guidance_scale) <= ALMOST_EQUAL


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {"eta": 0.7},
        {"negative_prompt": "a dog"},
        {"guidance_rescale": 0.7, "guidance_scale": 30.0},
        {"height": 24, "width": 32},
        {"prompt": ["a red cat", "the dog"], "seeds": (1, 2)},
        {"prompt": ["a red cat", "the dog"], "negative_prompt": ["the", ""], "seeds": (1, 2), "eta": 1.0},
        {"prompt": ["a red cat", "the dog"], "num_images_per_prompt": 2, "seeds": (1, 2, 3, 4)},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_means_what_it_means_to_stock(tiny_stock, tiny_pipeline, options):
    """Options change the picture as they change stock's."""
    use_scheduler(DDIMScheduler(**BETAS, **UNCLIPPED), tiny_stock, tiny_pipeline)
    assert largest_difference(tiny_stock, tiny_pipeline, **options) <= ALMOST_EQUAL


@pytest.mark.parity
def test_clip_skip_means_what_it_means_to_stock(tiny_stock, tiny_pipeline):
    """The prompt's features come from an earlier layer, the negative prompt's do not."""
    tower = tiny_stock.text_encoder
    # Diffusers 0.42 looks for the layer norm where transformers 4 had it.
    tower.__dict__.setdefault("text_model", tower)
    try:
        use_scheduler(DDIMScheduler(**BETAS, **UNCLIPPED), tiny_stock, tiny_pipeline)
        assert largest_difference(tiny_stock, tiny_pipeline, clip_skip=1) <= ALMOST_EQUAL
    finally:
        del tower.__dict__["text_model"]


@pytest.mark.parity
def test_one_generator_for_a_batch_draws_as_stock_does(tiny_stock, tiny_pipeline):
    """Scripts that give one generator to a batch get stock's pictures too: it draws all images' noise at once."""
    tiny_stock.set_progress_bar_config(disable=True)
    use_scheduler(EulerAncestralDiscreteScheduler(**BETAS), tiny_stock, tiny_pipeline)
    options = {"num_inference_steps": STEPS, "num_images_per_prompt": 3, "output_type": "np", "guidance_scale": 3.0}
    expected, pictures = (
        pipeline("a cat", generator=generators(5)[0], **options).images for pipeline in (tiny_stock, tiny_pipeline)
    )
    assert numpy.abs(expected - pictures).max() <= ALMOST_EQUAL


def test_options_change_the_picture(tiny_pipeline):
    """None of the options is read and then forgotten."""
    tiny_pipeline.scheduler = Scheduler.from_config({"_class_name": "DDIMScheduler", **BETAS, **UNCLIPPED})

    def picture(**changes):
        options = {"prompt": "a cat", "num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "pt"}
        return tiny_pipeline(**options | changes, generator=generators(1)).images

    plain = picture()
    for changes in (
        {"prompt": "the dog"},
        {"negative_prompt": "the dog"},
        {"num_inference_steps": STEPS + 1},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 1.0},
        {"eta": 1.0},
        {"clip_skip": 1},
    ):
        assert (picture(**changes) - plain).abs().max() > 2 * ALMOST_EQUAL, changes


def test_grey_is_what_pil_calls_grey():
    """To a level of 256; what is grey already stays as it is, to the bit."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    photo = to_image(noise)
    grey = to_image(to_grey(to_pixel_values(photo)).expand(-1, 3, -1, -1)).getchannel(0)
    assert abs(numpy.int16(grey) - numpy.int16(photo.convert("L"))).max() <= 1
    once = to_pixel_values(photo.convert("L"))
    assert torch.equal(to_grey(once), once[:, :1])


def test_guidance_of_one_is_no_guidance(tiny_pipeline):
    """At guidance_scale 1 the negative prompt does not count, and no second pass is made."""
    rows = []
    tiny_pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    options = {"num_inference_steps": STEPS, "output_type": "pt", "guidance_scale": 1.0}
    plain, other = (
        tiny_pipeline("a cat", negative, generator=generators(1), **options).images for negative in ("", "a red dog")
    )
    assert torch.equal(plain, other)
    assert set(rows) == {1}


def test_guidance_is_linear_and_rescaling_restores_the_deviation():
    """Scale 1 gives the conditional output; a full rescale gives its standard deviation (Lin et al. 2023, eq. 15)."""
    generator = torch.Generator().manual_seed(0)
    unconditional, conditional = torch.randn(2, 3, 4, 8, 8, generator=generator)
    torch.testing.assert_close(guide(unconditional, conditional, 1.0), conditional)
    rescaled = guide(unconditional, conditional, 9.0, guidance_rescale=1.0)
    torch.testing.assert_close(rescaled.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))


@pytest.mark.parity
@pytest.mark.parametrize("guidance_scale", [1.0, 8.0])
def test_a_unet_with_guidance_distilled_into_it_makes_stocks_picture(tiny_stock, tmp_path, guidance_scale):
    """A latent consistency model is told the guidance scale, and one pass is enough (Meng et al. 2022)."""
    unet = seeded(stock_unet(time_cond_proj_dim=16), seed=4)
    stock = StableDiffusionPipeline(
        **{**tiny_stock.components, "unet": unet, "scheduler": LCMScheduler(**BETAS)}, requires_safety_checker=False
    )
    stock.save_pretrained(tmp_path / "lcm")
    ours = SdPipeline.from_pretrained(tmp_path / "lcm")
    assert largest_difference(stock, ours, guidance_scale=guidance_scale) <= ALMOST_EQUAL


@pytest.mark.parity
def test_guidance_embedding_equals_stocks(tiny_stock):
    """What a distilled UNet is told of the guidance scale."""
    expected = tiny_stock.get_guidance_scale_embedding(torch.tensor([6.5]), embedding_dim=256)
    torch.testing.assert_close(guidance_embedding(7.5, 256), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("scheduler_class", ["EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_an_image_does_not_depend_on_the_batch_it_is_in(tiny_pipeline, scheduler_class):
    """With a generator for each, image i of a batch is the image of that seed alone.

    Up to rounding: matrix products of another size are summed in another order, so callers that want the same bits run
    one image at a time.
    """
    tiny_pipeline.scheduler = Scheduler.from_config({"_class_name": scheduler_class, **BETAS})
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "pt"}
    together = tiny_pipeline(["a cat", "a dog", "the"], generator=generators(1, 2, 3), **options).images
    alone = tiny_pipeline("a dog", generator=generators(2), **options).images
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_bits(tiny_pipeline):
    """Nothing is left over from one call to the next."""
    first, _, again = (
        tiny_pipeline(prompt, generator=generators(7), num_inference_steps=STEPS, output_type="pt").images
        for prompt in ("a cat", "a dog", "a cat")
    )
    assert torch.equal(first, again)


def test_text_is_projected_once(tiny_pipeline):
    """The text's keys and values do not depend on the step, so they are computed once for all steps."""
    calls = []
    project = tiny_pipeline.unet.project_text
    tiny_pipeline.unet.project_text = lambda embeds: calls.append(1) or project(embeds)
    tiny_pipeline("a cat", num_inference_steps=STEPS, output_type="latent", generator=generators(1))
    assert len(calls) == 1


def test_every_step_is_reported(tiny_pipeline):
    """Progress bars and --save-steps see each step, the last one with the finished latents."""
    seen = []
    latents = tiny_pipeline(
        "a cat",
        num_inference_steps=STEPS,
        output_type="latent",
        generator=generators(1),
        on_step=lambda *arguments: seen.append(arguments),
    ).images
    total = len(tiny_pipeline.scheduler.timesteps)
    assert [(step, of) for step, of, _, _ in seen] == [(step, total) for step in range(1, total + 1)]
    assert torch.equal(seen[-1][2], latents)
    assert all(predicted.shape == latents.shape for _, _, _, predicted in seen)


def test_defaults_are_the_models_own(tiny_pipeline):
    """Arguments that are left out come from the registry's entry, or from what the UNet was made for."""
    tiny_pipeline.defaults = GenerationDefaults(num_inference_steps=3, guidance_scale=1.0, width=32, height=24)
    image = tiny_pipeline("a cat", generator=generators(1)).images[0]
    assert image.size == (32, 24)
    parts = {name: component for name, component in tiny_pipeline.components.items()}
    bare = SdPipeline(**parts)
    assert (bare.defaults.width, bare.defaults.height) == (16, 16)


def test_encoding_and_decoding_are_scaled_alike(tiny_pipeline):
    """Latents are multiplied by scaling_factor on the way in and divided by it on the way out."""
    pixel_values = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tiny_pipeline.encode(pixel_values)
    posterior = tiny_pipeline.vae.encode(pixel_values)
    torch.testing.assert_close(latents, posterior.mean * tiny_pipeline.vae.config.scaling_factor)
    expected = tiny_pipeline.vae.decode(posterior.mean).clamp(-1, 1)
    torch.testing.assert_close(tiny_pipeline.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_encoding_draws_each_image_from_its_own_generator(tiny_pipeline):
    """A sampled posterior repeats with the generator, whatever else is in the batch."""
    pixel_values = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = tiny_pipeline.encode(pixel_values, generators(1, 2))
    alone = tiny_pipeline.encode(pixel_values[1:], generators(2))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)
    assert (together - tiny_pipeline.encode(pixel_values)).abs().max() > 0.01


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_not_a_number_is_caught_and_its_network_named(tiny_pipeline, part):
    """No black picture is made of values that are no numbers; the exit code is that of its own."""
    broken = {"unet": tiny_pipeline.unet.conv_out, "vae": tiny_pipeline.vae.decoder.conv_out}[part]
    with torch.no_grad():
        broken.bias[0] = float("inf" if part == "vae" else "nan")
    with pytest.raises(SdcliError, match=part.upper() if part == "vae" else "UNet") as caught:
        tiny_pipeline("a cat", num_inference_steps=2, generator=generators(1))
    assert caught.value.exit_code == EXIT_NOT_A_NUMBER


def test_half_precision_is_named_as_a_reason_only_where_there_is_one():
    """The hint of --precision fp32 is not given to who uses it."""
    values = torch.tensor([float("nan")])
    hints = []
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(SdcliError) as caught:
            require_finite(values, "VAE", dtype)
        hints.append(caught.value.hint)
    assert "--precision fp32" in hints[0] and "--precision" not in hints[1]


def test_latents_stay_float32_in_half_precision(tiny_pipeline):
    """Networks in bf16 make nearly the fp32 picture, because the loop adds in float32."""
    options = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "latent"}
    full = tiny_pipeline("a cat", generator=generators(1), **options).images
    tiny_pipeline.to(torch.bfloat16)
    half = tiny_pipeline("a cat", generator=generators(1), **options).images
    assert half.dtype == torch.float32
    assert tiny_pipeline.decode(half).dtype == torch.float32
    assert ((half - full).abs().max() / full.abs().max()) < 0.1


def test_wrong_arguments_are_refused(tiny_pipeline):
    """Counts and sizes that do not fit are errors, and nothing is rounded."""
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny_pipeline("a cat", height=17, generator=generators(1))
    with pytest.raises(ValueError, match="one for each of 2 images"):
        tiny_pipeline(["a cat", "a dog"], generator=generators(1, 2, 3))
    with pytest.raises(ValueError, match="negative prompt"):
        tiny_pipeline(["a cat", "a dog"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="output_type"):
        tiny_pipeline("a cat", output_type="jpeg")
    with pytest.raises(ValueError, match="latents"):
        tiny_pipeline("a cat", latents=torch.zeros(1, 4, 3, 3))
    with pytest.raises(ValueError, match="what to steer away from"):
        settings = DenoiseSettings(num_inference_steps=1, guidance_scale=2.0)
        tiny_pipeline.denoise(torch.zeros(1, 4, 8, 8), Conditioning(torch.zeros(1, 77, 32)), None, settings)
