"""Guidance by the gradient of CLIP's similarity: the right gradient, for every sampler, and nothing where it is off."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import seeded, stock_unet
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file
from seeing import SEES_PX, give_sight

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.folder import ON_CPU
from sdcli.cli import run
from sdcli.clip_models import find_with_tower, load_comparer
from sdcli.components.clip import normalize_for_clip
from sdcli.components.clip_guidance import CUT_OUTS, ClipGuidance, cut_outs, generators_beside
from sdcli.components.control import Control
from sdcli.components.foreign_scheduler import make_scheduler
from sdcli.components.guidance import follow_gradient
from sdcli.components.samplers import SAMPLERS
from sdcli.components.schedule import PREDICTION_TYPES, to_noise, to_original_sample
from sdcli.components.scheduler import Scheduler
from sdcli.drawing import Easel
from sdcli.keys import Keys
from sdcli.prompt_syntax import plain_text
from sdcli.registry import find_model
from sdcli.settings import GenerateSettings

SETTINGS = GenerateSettings(
    prompt="the red cat", model="tiny", seed=1, width=16, height=16, num_inference_steps=4, guidance_scale=5.0
)
QUICK = ("--steps", "2", "-s", "1", "-g", "3", "--device", "cpu", "--progress", "none")


@pytest.fixture(scope="module")
def sighted(tiny_folder, tmp_path_factory) -> Path:
    return give_sight(tiny_folder, tmp_path_factory.mktemp("sighted") / "model")


@pytest.fixture
def pipeline(sighted):
    return load_pipeline(find_model(str(sighted)), ON_CPU)


@pytest.fixture(scope="module")
def comparer(sighted):
    comparer = load_comparer(find_with_tower(str(sighted)), ON_CPU)
    comparer.clip.requires_grad_(False)
    return comparer


def noise_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(easel: Easel, *changes: dict) -> torch.Tensor:
    return easel.draw([replace(SETTINGS, **change) for change in changes], lambda *_: None)


def similarity(pipeline, comparer, drawn: torch.Tensor, prompt: str = SETTINGS.prompt) -> torch.Tensor:
    """Of whole pictures, (B,)."""
    pixel_values = pipeline.decode(drawn)
    return (comparer.embed_images(normalize_for_clip(pixel_values, SEES_PX)) @ comparer.embed_texts([prompt]).T)[:, 0]


# the equations


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_noise_is_moved_against_the_gradient_whatever_the_model_predicts(prediction_type):
    """pred_noise' = pred_noise - sqrt(1 - alpha-bar) * gradient, and the clean picture moves as that says."""
    alpha_bar = 0.3
    sample, output, gradient = noise_of(3, 2, 4, 5, 5).double()
    moved = follow_gradient(output, gradient, alpha_bar, prediction_type)
    before, after = (to_noise(each, sample, alpha_bar, prediction_type) for each in (output, moved))
    torch.testing.assert_close(after, before - (1 - alpha_bar) ** 0.5 * gradient)
    before, after = (to_original_sample(each, sample, alpha_bar, prediction_type) for each in (output, moved))
    torch.testing.assert_close(after, before + (1 - alpha_bar) / alpha_bar**0.5 * gradient)


def test_following_the_gradient_of_a_likelihood_samples_the_posterior():
    """Of data N(0, 1) and a reading y = x + N(0, s^2), the guided trajectory ends in Bayes' posterior: exact gradient.

    ln p(y given x_t) is known: y is normal around E[x given x_t] with s^2 and what x_t leaves open of x.
    """
    reading, spread = 1.5, 0.5
    scheduler = Scheduler(sampler="ddpm", timestep_spacing="trailing")
    scheduler.set_timesteps(400)
    sample, generator = noise_of(1, 1, 100, 100), torch.Generator().manual_seed(1)
    for timestep in scheduler.timesteps:
        alpha_bar = scheduler.signal_left(timestep)
        variance = spread**2 + 1 - alpha_bar
        gradient = alpha_bar**0.5 * (reading - alpha_bar**0.5 * sample) / variance
        pred_noise = (1 - alpha_bar) ** 0.5 * sample
        moved = follow_gradient(pred_noise, gradient, alpha_bar, "epsilon")
        sample = scheduler.step(moved, timestep, sample, generator=generator).prev_sample
    expected = 1 / (1 + 1 / spread**2)
    assert float(sample.mean()) == pytest.approx(reading * expected / spread**2, abs=0.03)
    assert float(sample.var()) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_signal_that_is_left_is_that_of_the_sample_that_the_model_is_shown(name):
    """For samplers of unit variance and of exploding variance: the same as of a sample that was noised to that call."""
    scheduler = Scheduler(sampler=name, timestep_spacing="trailing")
    clean, noise = noise_of(2, 1, 4, 64, 64)
    for call in (0, 2 * scheduler.order):
        scheduler.set_timesteps(6)
        timestep = scheduler.timesteps[call]
        scheduler.set_begin_index(call)
        noisy = scheduler.add_noise(clean, noise, timestep[None])
        shown = scheduler.scale_model_input(noisy, timestep)
        alpha_bar = scheduler.signal_left(timestep)
        torch.testing.assert_close(shown, alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_a_scheduler_of_diffusers_says_it_too(name):
    """From its own table, between two entries of it as well."""
    config = Scheduler(sampler="ddim", timestep_spacing="linspace").stock_config()
    scheduler = make_scheduler(config, {"sampler": f"diffusers.{name}"})
    scheduler.set_timesteps(7)
    table = Scheduler().alphas_cumprod
    for timestep in scheduler.timesteps:
        low, high = table[int(timestep)], table[min(int(timestep) + 1, 999)]
        assert float(high) * 0.999 <= scheduler.signal_left(timestep) <= float(low) * 1.001


# cut-outs


def test_cut_outs_are_the_picture_and_squares_of_it_by_their_generator_alone():
    """The first is the picture; the others have many sizes, and are the same for the same generator."""
    picture = noise_of(1, 3, 40, 60)
    first = cut_outs(picture, torch.Generator().manual_seed(1))
    again, other = (cut_outs(picture, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert len(first) == CUT_OUTS and torch.equal(first[0], picture)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(one.shape == two.shape for one, two in zip(first[1:], other[1:], strict=True))
    generator, sides = torch.Generator().manual_seed(3), set()
    for _ in range(40):
        for cut in cut_outs(picture, generator)[1:]:
            assert cut.shape[2] == cut.shape[3]
            sides.add(cut.shape[2])
    assert min(sides) < 34 and max(sides) > 44  # of 30 to 50


def test_a_tiny_picture_has_cut_outs():
    """One pixel, and one row."""
    for height, width in ((1, 1), (1, 9)):
        assert all(cut.numel() for cut in cut_outs(noise_of(1, 3, height, width), torch.Generator()))


def test_generators_beside_others_draw_something_else_and_leave_them_alone():
    """Their seeds follow from the seeds, the largest among them, whatever was drawn already."""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 2**64 - 1)]
    torch.randn(3, generator=generators[1])
    states = [each.get_state() for each in generators]
    beside = generators_beside(generators)
    assert all(torch.equal(each.get_state(), state) for each, state in zip(generators, states, strict=True))
    fresh = generators_beside([torch.Generator().manual_seed(seed) for seed in (0, 1, 2**64 - 1)])
    drawn = [[float(torch.rand(1, generator=each)) for each in both] for both in (beside, fresh)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3


def test_the_logit_is_the_scaled_cosine_of_whole_pictures_where_nothing_is_cut(comparer, monkeypatch):
    """The mean over cut-outs of what CLIP itself says."""
    monkeypatch.setattr("sdcli.components.clip_guidance.CUT_OUTS", 1)
    pictures = noise_of(2, 3, SEES_PX, SEES_PX).tanh()
    tokens = comparer.tokenizer(["the cat", "a red dog"], padding="longest", return_tensors="pt").input_ids
    guidance = ClipGuidance(comparer.clip, comparer.embed_texts(["the cat", "a red dog"]), 1.0, [torch.Generator()] * 2)
    expected = comparer.clip(tokens, normalize_for_clip(pictures, SEES_PX)).logits_per_image.diagonal()
    torch.testing.assert_close(guidance.logits(pictures), expected)


# pictures


@pytest.mark.parametrize("sampler", [*SAMPLERS, "diffusers.EulerDiscreteScheduler"])
def test_every_sampler_is_led_to_pictures_that_are_more_like_the_text(sampler, pipeline, comparer):
    """Paired, over four seeds: the similarity of the whole pictures rises in the mean, and each picture is another."""
    pipeline.scheduler = make_scheduler(pipeline.scheduler.config, {"sampler": sampler})
    seeds = [{"seed": seed} for seed in range(4)]
    without = latents(Easel(pipeline), *seeds)
    easel = Easel(pipeline, comparer=comparer)
    guided = latents(easel, *({**seed, "clip_guidance": 2.0} for seed in seeds))
    assert guided.isfinite().all() and all(not torch.equal(one, two) for one, two in zip(without, guided, strict=True))
    gain = similarity(pipeline, comparer, guided) - similarity(pipeline, comparer, without)
    assert float(gain.mean()) > 0.01


@pytest.mark.slow
def test_the_built_in_model_is_led_to_what_its_prompts_say():
    """Six prompts, and further with X = 6 than with 2; tests/bench/clip_guidance.py has the figures of 32.

    Without classifier-free guidance: beside one of 4, X = 6 has little left to gain, 0.006.
    """
    prompts = ("a pickle", "a mouse", "an ice cube", "a whale", "a radio", "a strawberry")
    builtin, eyes = load_pipeline(find_model("emoji"), ON_CPU), load_comparer(find_with_tower("emoji"), ON_CPU)
    eyes.clip.requires_grad_(False)
    size = {"width": 128, "height": 128, "num_inference_steps": 20, "guidance_scale": 1.0}
    gains = {2.0: 0.0, 6.0: 0.0}
    for seed, prompt in enumerate(prompts):
        settings = replace(SETTINGS, prompt=prompt, seed=1000 + seed, **size)
        drawn = [
            Easel(builtin, comparer=eyes if scale else None).draw(
                [replace(settings, clip_guidance=scale)], lambda *_: None
            )
            for scale in (0.0, *gains)
        ]
        images = eyes.embed_images(normalize_for_clip(torch.cat([builtin.decode(each) for each in drawn]), 128))
        before, *after = (images @ eyes.embed_texts([prompt]).T)[:, 0].tolist()
        for scale, similar in zip(gains, after, strict=True):
            gains[scale] += (similar - before) / len(prompts)
    assert 0 < gains[2.0] < gains[6.0]
    assert gains[6.0] > 0.02


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_kind_of_prediction_is_led(prediction_type, pipeline, comparer):
    """Noise, velocity and the picture itself."""
    changes = {"sampler": "ddim", "prediction_type": prediction_type}
    pipeline.scheduler = make_scheduler(pipeline.scheduler.config, changes)
    seeds = [{"seed": seed} for seed in range(4)]
    without = latents(Easel(pipeline), *seeds)
    guided = latents(Easel(pipeline, comparer=comparer), *({**seed, "clip_guidance": 2.0} for seed in seeds))
    gain = similarity(pipeline, comparer, guided) - similarity(pipeline, comparer, without)
    assert float(gain.mean()) > 0.01


def test_each_picture_of_a_batch_follows_its_own_gradient(pipeline, comparer):
    """Together with others, whatever their texts, a picture is the one that it is alone, to rounding."""
    easel = Easel(pipeline, comparer=comparer)
    changes = [
        {"seed": seed, "prompt": prompt, "clip_guidance": 3.0} for seed, prompt in ((1, "cat"), (2, "a red dog"))
    ]
    together = latents(easel, *changes)
    for place, change in enumerate(changes):
        torch.testing.assert_close(together[[place]], latents(easel, change), atol=1e-3, rtol=1e-3)


def test_controlnets_have_their_say_beside_the_gradient(pipeline, comparer):
    """What a ControlNet adds goes into the gradient too: with both, a picture is neither the one nor the other."""
    network = seeded(
        ControlNetModel.from_unet(stock_unet(), conditioning_embedding_out_channels=(16, 32)), seed=5
    ).requires_grad_(False)
    control = Control(network, noise_of(1, 3, 16, 16).sigmoid())
    made = [
        latents(Easel(pipeline, controls=controls, comparer=eyes), {"clip_guidance": 2.0})
        for controls, eyes in (((), comparer), ((control,), None), ((control,), comparer))
    ]
    assert made[2].isfinite().all() and not any(torch.equal(made[2], other) for other in made[:2])


def test_weights_of_a_prompt_are_not_read_to_clip(comparer):
    """(red:1.3) is the word red for one who looks; BREAK is a space."""
    assert plain_text(r"a (red:1.3) [cat] BREAK \(big\)") == "a red cat (big)"


def test_nothing_is_followed_where_nothing_is_left_of_the_picture(pipeline, comparer):
    """The first call of a schedule with zero SNR, where ε is infinitely far from x_0: no infinity comes of it."""
    changes = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for sampler in ("ddim", "euler"):
        pipeline.scheduler = Scheduler.from_config(pipeline.scheduler.config, sampler=sampler, **changes)
        guided = latents(Easel(pipeline, comparer=comparer), {"clip_guidance": 5.0})
        assert guided.isfinite().all() and guided.abs().max() < 100


# the command


def refused(capsys, *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    assert run(["generate", *map(str, arguments), *QUICK]) == 1
    error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    return error, hint


def made(*arguments: object) -> None:
    assert run(["generate", *map(str, arguments), *QUICK]) == 0


def block(path: Path) -> dict:
    return json.loads(Image.open(path).text["sdcli"])


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_no_guidance_is_the_picture_without(sighted):
    """To the bit, and with the key that it had before there was such a setting."""
    made("cat", "-m", sighted, "-o", "without.png")
    made("cat", "-m", sighted, "--clip-guidance", 0, "--clip-model", "emoji", "-o", "zero.png")
    assert Path("without.png").read_bytes() == Path("zero.png").read_bytes()
    settings = GenerateSettings(**{**block("without.png")["settings"]})
    assert (settings.clip_guidance, settings.clip_model) == (0, None)


def test_keys_are_those_of_earlier_versions_where_there_is_no_guidance(sighted, monkeypatch):
    """Pictures that are there need not be made again."""
    told = {}
    monkeypatch.setattr("sdcli.keys.key_of", lambda values: told.update(values) or "")
    keys = Keys(find_model(str(sighted)))
    keys.of(replace(SETTINGS, model=str(sighted)))
    assert not told.keys() & {"clip_guidance", "clip_model"}
    keys.of(replace(SETTINGS, model=str(sighted), clip_guidance=1.0))
    assert told["clip_guidance"] == 1.0 and len(told["weights"]) == 5


def test_a_guided_picture_says_so_and_is_made_again(sighted, tiny_folder, capsys):
    """In both blocks, with the CLIP's weights; and by --from and reproduce, to the bit; also with another's CLIP."""
    shutil.copytree(tiny_folder, "blind")
    for name, flags, files in (
        ("own", ("-m", sighted), {"image_encoder/model.safetensors", "clip_head/model.safetensors"}),
        ("other", ("-m", "blind", "--clip-model", sighted), {"model.safetensors"}),
    ):
        made("cat", *flags, "--clip-guidance", 2, "-o", f"{name}.png")
        assert "CLIP guidance: 2" in Image.open(f"{name}.png").text["parameters"]
        assert block(f"{name}.png")["settings"]["clip_guidance"] == 2
        assert files <= block(f"{name}.png")["weights"].keys()
        assert len(block(f"{name}.png")["weights"]) == (5 if name == "own" else 6)
        assert run(["reproduce", f"{name}.png", "--check", "--progress", "none"]) == 0
        made("--from", f"{name}.png", "-o", f"{name}-again.png")
        assert Path(f"{name}.png").read_bytes() == Path(f"{name}-again.png").read_bytes()


def test_another_clip_that_has_moved_is_found_by_its_weights(sighted, tiny_folder, capsys):
    """And one that has changed is an error."""
    shutil.copytree(tiny_folder, "blind")
    shutil.copytree(sighted, "eyes")
    made("cat", "-m", "blind", "--clip-model", "eyes", "--clip-guidance", 2, "-o", "cat.png")
    shutil.move("eyes", "moved")
    again = ["reproduce", "cat.png", "--search", "moved", "--progress", "none", "-o", "again.png"]
    assert run([*again, "--if-exists", "overwrite"]) == 0
    assert "eyes was found as" in capsys.readouterr().err
    assert Image.open("again.png").tobytes() == Image.open("cat.png").tobytes()
    path = Path("moved/image_encoder/model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in load_file(path).items()}, path)
    assert run([*again, "--if-exists", "overwrite"]) == 1
    assert "eyes is not here" in capsys.readouterr().err


def test_skipping_knows_the_clip(sighted, capsys):
    """Its picture is left; one of other strength, and one of another CLIP, are other pictures."""
    flags = ("cat", "-m", sighted, "-o", "cat.png", "--if-exists", "skip")
    made(*flags, "--clip-guidance", 2)
    before = Path("cat.png").stat().st_mtime_ns
    made(*flags, "--clip-guidance", 2)
    assert Path("cat.png").stat().st_mtime_ns == before and "something else" not in capsys.readouterr().err
    made(*flags, "--clip-guidance", 3)
    assert "something else" in capsys.readouterr().err


def test_jobs_and_sweeps_take_it(sighted, capsys):
    """As any setting."""
    assert run(["sweep", "--set", "clip_guidance=0,2", "cat"]) == 0
    Path("jobs.jsonl").write_text(capsys.readouterr().out)
    made("--jobs", "jobs.jsonl", "-m", sighted, "-o", "out/")
    pictures = sorted(Path("out").glob("*.png"))
    assert [block(path)["settings"]["clip_guidance"] for path in pictures] == [0, 2]


def test_pictures_to_begin_from_masks_and_a_second_pass_are_guided(sighted):
    """Each is another picture than without, and none is an error."""
    Image.new("RGB", (16, 16), "red").save("red.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save("mask.png")
    for name, flags in {
        "begun": ("--init-image", "red.png", "--strength", "1"),
        "masked": ("--init-image", "red.png", "--mask", "mask.png"),
        "hires": ("--hires-scale", 2, "--hires-strength", 1),
    }.items():
        made("cat", "-m", sighted, *flags, "-o", f"{name}.png")
        made("cat", "-m", sighted, *flags, "--clip-guidance", 4, "-o", f"{name}-guided.png")
        assert Image.open(f"{name}.png").tobytes() != Image.open(f"{name}-guided.png").tobytes()


def test_a_second_pass_is_guided_by_the_same_cut_outs_going_on(pipeline, comparer, monkeypatch):
    """One guidance, with its generators where the first pass has left them."""
    given, real = [], type(pipeline).denoise
    monkeypatch.setattr(type(pipeline), "denoise", lambda *told: given.append(told[-1]) or real(*told))
    latents(Easel(pipeline, comparer=comparer), {"clip_guidance": 2.0, "hires_scale": 2.0})
    assert len(given) == 2 and given[0] is given[1] and given[0].scale == 2.0


def test_a_text_that_clip_cannot_read_to_its_end_is_told(sighted, capsys):
    """The picture is made: the UNet reads all of it."""
    made("cat " * 90, "-m", sighted, "--clip-guidance", 1, "-o", "long.png")
    assert "CLIP reads 77 tokens" in capsys.readouterr().err


def test_a_gradient_that_is_no_number_is_no_picture(sighted, capsys):
    """Exit code 4, as where a network's output is none; it is not the UNet's fault, and does not say so."""
    shutil.copytree(sighted, "broken")
    path = Path("broken/image_encoder/model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    assert run(["generate", "cat", "-m", "broken", "--clip-guidance", "1", "-o", "cat.png", *QUICK]) == 4
    assert "the CLIP guidance's output is not a number" in capsys.readouterr().err
    assert not Path("cat.png").exists()


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (("--clip-guidance", "-1"), "--clip-guidance must be at least 0, got -1.0", "0 is off"),
        (("--clip-guidance", "nan"), "--clip-guidance must be at least 0", "0 is off"),
        (("--clip-model", "emoji"), "--clip-model needs --clip-guidance or --best-of", "--clip-guidance 2"),
        (
            ("--clip-guidance", "1"),
            "has no CLIP image tower",
            "names another; models that have one: emoji",
        ),
        (("--clip-guidance", "1", "--clip-model", "BLIND"), "has no CLIP image tower", "--clip-model names another"),
        (("--clip-guidance", "1", "--clip-model", "emjoi"), "no model named 'emjoi'", "emoji"),
        (
            ("--clip-guidance", "1", "--clip-model", "emoji", "--offload", "model"),
            "--offload does not go with",
            "leave",
        ),
    ],
)
def test_mistakes_are_told_before_a_model_loads(flags, message, hint, tiny_folder, capsys, monkeypatch):
    """In one line, and what to do in another."""
    monkeypatch.setattr("sdcli.workbench.load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    flags = [str(tiny_folder) if flag == "BLIND" else flag for flag in flags]
    told = refused(capsys, "cat", "-m", tiny_folder, "-o", "cat.png", *flags)
    assert message in told[0] and hint in told[1]
