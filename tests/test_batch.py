"""Many settings to many files: every picture is its own, whatever else the run makes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli.batch import agreement, finishing, groups
from sdcli.batch import run as batch
from sdcli.batch.events import Loaded, Made, Stepped
from sdcli.checkpoints import fingerprints, load_pipeline, sha256_of
from sdcli.checkpoints.fingerprints import Fingerprints
from sdcli.checkpoints.folder import ON_CPU
from sdcli.device import Placement
from sdcli.drawing import Easel
from sdcli.errors import EXIT_NOT_A_NUMBER, EXIT_OUT_OF_MEMORY, SdcliError
from sdcli.images import load_image, read_text, to_pixel_values
from sdcli.output import Picture
from sdcli.registry import find_model
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings
from sdcli.workbench import Benches

SETTINGS = GenerateSettings(
    prompt="the red cat", model="tiny", seed=1, width=16, height=16, num_inference_steps=3, guidance_scale=5.0
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(folder: Path, *changes: dict, **shared) -> list[Picture]:
    return [
        Picture(settings=replace(SETTINGS, **change), index=index, file=str(folder / f"{index}.png"), **shared)
        for index, change in enumerate(changes)
    ]


def run(todo, model, **options) -> list:
    events = []
    making = batch.Run({"tiny": model}, Benches(ON_CPU), RunSettings(**options), events.append)
    making(making.check(todo))
    return events


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a", "dpmpp_2m_sde"])
def test_a_picture_is_the_same_alone_and_among_others(tmp_path, tiny_model, sampler):
    """Bit for bit, file for file, noisy samplers included."""
    alone, among = tmp_path / "alone", tmp_path / "among"
    seeds = [{"seed": seed, "sampler": sampler} for seed in (7, 8)]
    run(
        pictures(among, {"seed": 3, "prompt": "a dog", "sampler": sampler}, *seeds, {"seed": 9, "width": 24}),
        tiny_model,
    )
    run(pictures(alone, seeds[1]), tiny_model)
    assert (alone / "0.png").read_bytes() == (among / "2.png").read_bytes()
    assert (among / "1.png").read_bytes() != (among / "2.png").read_bytes()


def test_a_picture_is_what_the_pipeline_makes(tmp_path, tiny_model):
    """The command adds nothing to `pipeline(prompt, generator=...)`."""
    run(pictures(tmp_path, {"negative_prompt": "a dog", "clip_skip": 1}), tiny_model)
    pipeline = load_pipeline(tiny_model, ON_CPU)
    expected = pipeline(
        "the red cat",
        "a dog",
        num_inference_steps=3,
        guidance_scale=5.0,
        clip_skip=1,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert load_image(tmp_path / "0.png").tobytes() == expected.tobytes()


def test_events_tell_the_run_in_order(tmp_path, tiny_model):
    """Loaded, the steps of each picture, the picture."""
    events = run(pictures(tmp_path, {}, {"seed": 2}), tiny_model, batch_size=1)
    kinds = [type(event) for event in events]
    assert kinds[0] is Loaded
    steps = [event for event in events if isinstance(event, Stepped)]
    half = len(steps) // 2
    assert [(step.index, step.step, step.steps) for step in steps[:half]] == [(0, n + 1, half) for n in range(half)]
    made, last = [event for event in events if isinstance(event, Made)]
    assert (made.picture.index, last.picture.index) == (0, 1)
    assert events.index(made) > events.index(steps[half - 1]) and events[-1] is last
    assert made.picture.path.exists()
    assert (made.picture.settings.sampler, made.picture.settings.schedule) == ("pndm", "normal")


def test_the_metadata_repeats_the_picture(tmp_path, tiny_model, tiny_folder):
    """Settings from the file, run again, give the same file; the weights are those on disk."""
    run(pictures(tmp_path / "a", {"sampler": "dpmpp_2m"}), tiny_model)
    text, _, _ = read_text(tmp_path / "a" / "0.png")
    content = json.loads(text["sdcli"])
    assert text["parameters"].startswith(
        "the red cat\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Normal, CFG scale: 5"
    )
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert content["weights"][unet] == sha256_of(tiny_folder / unet)
    assert {path.split("/")[0] for path in content["weights"]} == {"unet", "vae", "text_encoder"}
    again = Picture(settings=GenerateSettings(**content["settings"]), index=0, file=str(tmp_path / "b.png"))
    run([again], tiny_model)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a" / "0.png").read_bytes()


def test_steps_become_a_strip_and_an_animation(tmp_path, tiny_model):
    """The last frame is the picture; a strip shows at most so many."""
    todo = [
        Picture(
            settings=replace(SETTINGS, sampler="euler", num_inference_steps=12),
            index=index,
            file=str(tmp_path / f"{index}.png"),
            steps_file=str(tmp_path / f"steps{suffix}"),
        )
        for index, suffix in enumerate((".png", ".gif"))
    ]
    run(todo, tiny_model)
    strip = load_image(tmp_path / "steps.png")
    assert strip.size == (16 * finishing.STRIP_LENGTH, 16)
    last = to_pixel_values(strip.crop((16 * (finishing.STRIP_LENGTH - 1), 0, 16 * finishing.STRIP_LENGTH, 16)))
    picture = to_pixel_values(load_image(tmp_path / "0.png"))
    torch.testing.assert_close(last, picture, atol=2 / 127, rtol=0)
    assert Image.open(tmp_path / "steps.gif").n_frames == 12


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_values_that_are_no_numbers_are_never_written(tmp_path, tiny_folder, component):
    """Damaged weights end with their own exit code and no file."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    weights = broken / component / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    key = "conv_out.bias" if component == "unet" else "decoder.conv_out.bias"
    save_file({**tensors, key: tensors[key] * torch.nan}, weights, metadata={"format": "pt"})
    with pytest.raises(SdcliError, match="not a number") as raised:
        run(pictures(tmp_path / "out", {}), find_model(str(broken)))
    assert raised.value.exit_code == EXIT_NOT_A_NUMBER
    assert not (tmp_path / "out").exists()


def test_memory_that_runs_out_has_its_own_exit_code(tmp_path, tiny_model):
    """Pictures that were made before are kept."""
    with pytest.raises(SdcliError, match="out of memory at 80000x80000") as raised:
        run(pictures(tmp_path, {}, {"width": 80000, "height": 80000}), tiny_model)
    assert raised.value.exit_code == EXIT_OUT_OF_MEMORY
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "ddim", "schedule": "karras"}, "ddim has no sigma_schedule 'karras'"),
        ({"sampler": "euler", "eta": 0.5}, "--eta means nothing to the sampler euler"),
        ({"eta": 0.5}, "--eta means nothing to the sampler pndm"),
    ],
)
def test_a_sampler_refuses_before_weights_are_read(tmp_path, tiny_folder, change, message):
    """The folder has no weights at all, and that is not what the error is about."""
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(SdcliError, match=message):
        run(pictures(tmp_path, change), find_model(str(bare)))


def test_names_that_are_taken_meanwhile_get_a_number(tmp_path, tiny_model):
    """And the event says which."""
    (tmp_path / "0.png").write_bytes(b"theirs")
    events = run(pictures(tmp_path, {}), tiny_model, if_exists="number")
    assert events[-1].picture.path == tmp_path / "0-1.png"
    assert (tmp_path / "0.png").read_bytes() == b"theirs"


def test_a_cpu_takes_a_few_small_ones_and_a_gpu_what_fits(tiny_pipeline):
    """Groups are of equal settings but for text and seed, and keep their order."""
    small = pictures(
        Path(), *({"seed": seed, "prompt": str(seed)} for seed in range(20)), {"width": 512, "height": 512}
    )
    large = pictures(Path(), *({"seed": seed, "width": 512, "height": 512} for seed in range(6)))
    gpu = Placement(torch.device("cuda"), torch.float16, "fp16")

    def parts(todo: list[Picture], placement: Placement) -> list[list[Picture]]:
        easel = Easel(tiny_pipeline)
        return [
            part
            for alike in groups.by_kind(todo)
            for part in groups.portions(alike, easel, groups.group_size(alike[0].settings, placement, None))
        ]

    assert [len(part) for part in parts(small, ON_CPU)] == [16, 4, 1]
    assert [len(part) for part in parts(large, ON_CPU)] == [1] * 6
    assert groups.group_size(replace(SETTINGS, init_image="a.png"), ON_CPU, 3) == 1
    assert [len(part) for part in parts(small, gpu)] == [16, 4, 1]
    assert [len(part) for part in parts(large, gpu)] == [4, 2]
    assert [picture for part in parts(small, gpu) for picture in part] == small
    assert groups.group_size(SETTINGS, gpu, 3) == 3 and groups.group_size(SETTINGS, ON_CPU, 3) == 3


def test_pictures_of_a_kind_are_made_together_wherever_they_stand():
    """In the order in which the first of each kind is asked for."""
    todo = pictures(Path(), {"seed": 1}, {"width": 24}, {"seed": 2, "prompt": "b"}, {"width": 24, "seed": 3})
    assert [[picture.index for picture in kind] for kind in groups.by_kind(todo)] == [[0, 2], [1, 3]]


def test_a_group_is_the_single_pictures_to_a_pixel_value(tmp_path, tiny_model, monkeypatch):
    """As a GPU computes it: together, each from its own generator."""
    todo = [{"seed": seed, "prompt": prompt} for seed, prompt in ((1, "the cat"), (2, "a dog"), (1, "a dog"))]
    run(pictures(tmp_path / "single", *todo), tiny_model)
    monkeypatch.setattr(batch, "group_size", lambda settings, placement, batch_size: 3)
    run(pictures(tmp_path / "group", *todo), tiny_model)
    for index in range(3):
        single, group = (to_pixel_values(load_image(tmp_path / each / f"{index}.png")) for each in ("single", "group"))
        torch.testing.assert_close(group, single, atol=2 / 127, rtol=0)


@pytest.mark.parametrize("agree", [True, False])
def test_on_a_cpu_pictures_are_made_together_where_that_changes_nothing(agree, tmp_path, tiny_model, monkeypatch):
    """Which is tried once for each size of a group, with the pictures themselves; files are equal either way."""
    tried, drawn = [], []
    monkeypatch.setattr(agreement, "agree", lambda group, easel: tried.append(len(group)) or agree)
    draw = Easel.draw
    monkeypatch.setattr(Easel, "draw", lambda self, group, on: drawn.append(len(group)) or draw(self, group, on))
    todo = [{"seed": seed, "prompt": f"cat {seed}"} for seed in range(8)]
    run(pictures(tmp_path / "together", *todo), tiny_model, batch_size=3)
    assert tried == [3, 2] and drawn == ([3, 3, 2] if agree else [1] * 8)


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m"])
def test_what_is_tried_is_whether_bits_are_equal(sampler, tiny_model, monkeypatch):
    """A group that is off by the least bit in one picture does not agree; nor does one that fails."""
    bench = Benches(ON_CPU).of(tiny_model, RunSettings())
    group = [replace(SETTINGS, seed=seed, sampler=sampler) for seed in (1, 2)]
    easel = bench.easel(group[0])
    take = agreement.first_step
    alone = torch.cat([take([each], easel) for each in group])
    torch.testing.assert_close(take(group, easel), alone, atol=1e-4, rtol=0)

    def off(latents):
        latents[1, 0, 0, 0] = torch.nextafter(latents[1, 0, 0, 0], torch.tensor(9e9))
        return latents

    def failing(latents):
        raise SdcliError("no number")

    for change, expected in ((lambda latents: latents, True), (off, False), (failing, False)):

        def seen(settings, at, change=change):
            return change(alone.clone()) if len(settings) > 1 else take(settings, at)

        monkeypatch.setattr(agreement, "first_step", seen)
        assert agreement.agree(group, easel) is expected


def test_large_files_are_hashed_once(tmp_path, tiny_folder, monkeypatch):
    """Until they change; the memory may be damaged or lost."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    monkeypatch.setattr(fingerprints, "REMEMBERED_BYTES", 0)
    first = Fingerprints(folder, ("unet",)).get()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert first == {"unet/diffusion_pytorch_model.safetensors": sha256_of(weights)}
    hashed = []
    monkeypatch.setattr(fingerprints, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    assert Fingerprints(folder, ("unet",)).get() == first and hashed == []
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert Fingerprints(folder, ("unet",)).get() != first and hashed == [weights]
    fingerprints.memory_file().write_text("{")
    assert Fingerprints(folder, ("unet",)).get() != first and len(hashed) == 2
