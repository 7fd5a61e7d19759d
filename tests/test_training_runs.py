"""Runs as people have them: several processes, kills, NaN, changed data, other optimizers, parts on top of parts."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from ended import train_until
from families import write_single_file
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.folder import ON_CPU
from sdcli.errors import EXIT_NOT_A_NUMBER, SdcliError
from sdcli.evaluation.bound import BoundSettings, measure_likelihood
from sdcli.evaluation.pictures import find_pictures
from sdcli.pipeline import SdPipeline
from sdcli.registry import find_model
from sdcli.settings import DenoiseSettings
from sdcli.training.events import Saved, Started, Stepped, Validated, Warned
from sdcli.training.parts.vae import VaePart
from sdcli.training.run_folder import RunFolder
from sdcli.training.settings import TrainSettings
from sdcli.training.stages import train

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parent.parent


def settings(data: Path, output: Path, **changes) -> TrainSettings:
    common = {"batch_size": 4, "learning_rate": 2e-3, "warmup": 2, "device": "cpu", "ema": 0.9, "steps": 4}
    return TrainSettings(**{"data": str(data), "output": str(output), "cache": "none", **common, **changes})


@pytest.fixture(scope="session")
def model(tmp_path_factory, squares, architecture) -> Path:
    """A whole model: VAE, CLIP and UNet, each barely trained."""
    run = tmp_path_factory.mktemp("runs") / "all"
    list(train(settings(squares, run, part="all", config=str(architecture), steps=2)))
    return run


def of_kind(events: list, kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (run / "model" / part).glob("*.safetensors")
    return load_file(file)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sdcli", "train", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_all_parts_in_turn_make_a_model(model):
    """RUN/model is the last part's, and has every component."""
    assert sorted(path.name for path in model.iterdir() if path.is_dir()) == sorted(
        ["checkpoints", "clip", "model", "samples", "unet", "vae"]
    )
    index = json.loads((model / "model" / "model_index.json").read_text())
    assert all(index[name][0] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "image_encoder"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "more"),
    [("vae", ()), ("clip", ()), ("clip", ("--lock", "text")), ("unet", ()), ("unet", ("--text-encoder-lr", "1e-3"))],
)
def test_two_processes_learn_what_one_does(part, more, tmp_path, squares, model):
    """The same global batch on 1 and on 2 processes over gloo: losses and gradients agree to 1e-4 of their size, which
    is what another order of summing floats makes of them in four updates.
    """
    flags = ["--data", squares, "--model", model, "--part", part, "--steps", 4, "--batch-size", 4, "--warmup", 1]
    flags += ["--device", "cpu", "--learning-rate", "1e-3", "--progress", "none", *more]
    subprocess.run(command(*flags, "-o", tmp_path / "one"), env=environment(), check=True)
    result = torchrun(*flags, "-o", tmp_path / "two")
    assert result.stdout == f"{tmp_path / 'two'}\n"
    for alone, shared in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert shared["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-4)


def torchrun(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    """Two processes over gloo."""
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launched += ["--master_port", str(29500 + os.getpid() % 1000), *command(*arguments)[1:]]
    return subprocess.run(launched, env=environment() | variables, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "asked"),
    [
        ("vae", {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"}),
        ("unet", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
    ],
)
def test_weights_that_are_split_learn_the_same(part, asked, tmp_path, many, model):
    """FSDP, as `accelerate launch --use_fsdp` asks for it: losses and gradients are those of one process to 1e-4,
    resumed in the middle and validated too, and the weights to a tenth of the learning rate, since AdamW makes much of
    gradients near zero; and the checkpoint goes on without FSDP.
    """
    flags = ["--data", many, "--model", model, "--part", part, "--batch-size", 4, "--warmup", 1, "--device", "cpu"]
    flags += ["--learning-rate", "1e-3", "--lr-schedule", "constant", "--validation-split", 0.3, "--validate-every", 2]
    flags += ["--progress", "none"]
    subprocess.run(command(*flags, "--steps", 4, "-o", tmp_path / "one"), env=environment(), check=True)
    split = partial(torchrun, **asked)
    begun = split(*flags, "--steps", 2, "-o", tmp_path / "two")
    assert begun.returncode == 0, begun.stderr
    again = ["--resume", "-o", tmp_path / "two", "--progress", "none"]
    assert split(*again, "--steps", 4).returncode == 0
    assert (tmp_path / "two" / "samples" / "step-000004.png").is_file()
    for alone, shared in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        for name in {"loss", "gradient_norm", "validation_raw", "validation_long"} & {*alone}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-4), name
    expected, actual = weights_of(tmp_path / "one", part), weights_of(tmp_path / "two", part)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-4)
    subprocess.run(command(*again, "--steps", 5), env=environment(), check=True)


@pytest.mark.slow
def test_two_processes_train_all_parts_and_go_on(tmp_path, squares, architecture):
    """One of them makes the folders; both go from part to part together, and again when the run is longer."""
    flags = ["--device", "cpu", "--progress", "none", "-o", tmp_path / "run"]
    begin = ["--data", squares, "--part", "all", "--config", architecture, "--steps", 2, "--batch-size", 4]
    result = torchrun(*begin, *flags)
    assert result.returncode == 0, result.stderr
    assert torchrun(*flags, "--resume", "--steps", 3).returncode == 0
    assert len(rows_of(tmp_path / "run" / "unet")) == 3
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()


def test_held_out_pictures_divide_among_processes(many, tmp_path, model):
    """Every process gets as many; where there are fewer pictures than processes it is said."""
    from sdcli.training.assembly import load_model
    from sdcli.training.material import Material, gather, open_store

    run = settings(many, tmp_path / "run", model=str(model), validation_split=0.25, batch_size=8)
    (material,) = [item for item in gather(run, open_store(run)) if isinstance(item, Material)]
    loaded = load_model(model / "model", whole_clip=False)
    for processes in (2, 4):
        assert material.shown(run, loaded, processes)[1].order.batch_size % processes == 0
    with pytest.raises(SdcliError, match="held out, and there are 64 processes"):
        material.shown(run, loaded, 64)


def test_passes_of_an_update_are_averaged(tmp_path, squares, model, monkeypatch):
    """Two passes of the same batch are one update of it."""
    original = VaePart.batch
    monkeypatch.setattr(VaePart, "batch", lambda self, data, number, validating=False: original(self, data, 0))
    for name, accumulate in (("once", 1), ("twice", 2)):
        list(train(settings(squares, tmp_path / name, part="vae", model=str(model), accumulate=accumulate)))
    expected, actual = weights_of(tmp_path / "once", "vae"), weights_of(tmp_path / "twice", "vae")
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-6)


def test_a_run_away_rate_ends_with_its_own_code_and_keeps_checkpoints(tmp_path, squares, architecture):
    """Twice back to the last checkpoint with half the rate, then exit code 4."""
    run = settings(squares, tmp_path / "run", part="vae", config=str(architecture), learning_rate=1e30, steps=50)
    events = []
    with pytest.raises(SdcliError, match="not a number") as caught:
        for event in train(run):
            events.append(event)
    assert caught.value.exit_code == EXIT_NOT_A_NUMBER
    assert [event.message.split("with ")[1] for event in of_kind(events, Warned)] == [
        "1/2 of the learning rate",
        "1/4 of the learning rate",
    ]
    assert all(tensor.isfinite().all() for tensor in weights_of(tmp_path / "run", "vae").values())


def test_after_one_slip_a_run_goes_on_at_half_the_rate(tmp_path, squares, model, monkeypatch):
    """From the checkpoint before it, with the same batches, and the metrics tell every update once."""
    original, slips = VaePart.losses, iter([False] * 5 + [True])

    def slippery(self, network, batch):
        losses = original(self, network, batch)
        return losses | {"loss": losses["loss"] * float("nan")} if next(slips, False) else losses

    monkeypatch.setattr(VaePart, "losses", slippery)
    changes = {"part": "vae", "model": str(model), "steps": 8, "checkpoint_every": 3, "lr_schedule": "constant"}
    events = list(train(settings(squares, tmp_path / "run", warmup=0, **changes)))
    (warning,) = of_kind(events, Warned)
    assert "back to update 3" in warning.message
    rows = rows_of(tmp_path / "run")
    assert [row["global_step"] for row in rows] == list(range(1, 9))
    assert [row["learning_rate"] for row in rows] == pytest.approx([2e-3] * 3 + [1e-3] * 5)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "prodigy", "schedulefree"])
@pytest.mark.slow
def test_every_optimizer_resumes_to_the_bit(optimizer, tmp_path, squares, model):
    """Six updates are three and three, whatever state the optimizer keeps."""
    pytest.importorskip({"prodigy": "prodigyopt", "schedulefree": "schedulefree"}.get(optimizer, "torch"))
    changes = {"part": "vae", "model": str(model), "optimizer": optimizer, "lr_schedule": "constant"}
    changes |= {"adversarial_weight": 0.1, "perceptual_weight": 0.1, "checkpoint_every": 3, "steps": 6}
    whole, parted = (settings(squares, tmp_path / name, **changes) for name in ("whole", "parted"))
    list(train(whole))
    train_until(3, parted)
    list(train(parted, resume=True))
    expected, actual = weights_of(tmp_path / "whole", "vae"), weights_of(tmp_path / "parted", "vae")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_an_optional_optimizer_that_is_not_there_says_what_to_install(tmp_path, squares, model):
    if shutil.which("nvidia-smi"):
        pytest.skip("bitsandbytes may be there")
    with pytest.raises(SdcliError, match="needs bitsandbytes, which is not installed"):
        list(train(settings(squares, tmp_path / "run", part="vae", model=str(model), optimizer="adamw8bit")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["mse", "l1", "huber", "perceptual"])
def test_every_loss_teaches_the_unet(loss, tmp_path, squares, model):
    """The mean of the last ten of forty updates is below that of the first ten, whatever is minimised."""
    changes = {"model": str(model), "loss": loss, "steps": 40, "noise_offset": 0.05, "random_flip": 0.5}
    losses = [
        event.losses["loss"]
        for event in train(settings(squares, tmp_path / "run", **changes))
        if isinstance(event, Stepped)
    ]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_losses_are_told_apart_by_timestep(tmp_path, squares, model):
    """Ten numbers, of which those with images average to the loss."""
    events = list(train(settings(squares, tmp_path / "run", model=str(model), steps=30)))
    steps = of_kind(events, Stepped)
    seen = [tenth for step in steps for tenth, loss in enumerate(step.by_timestep) if loss is not None]
    assert set(seen) == set(range(10))
    lonely = [step for step in steps if sum(loss is not None for loss in step.by_timestep) == 4]
    assert lonely
    for step in lonely:
        told = [loss for loss in step.by_timestep if loss is not None]
        assert sum(told) / 4 == pytest.approx(step.losses["loss"], rel=1e-4)


@pytest.fixture
def many(tmp_path) -> Path:
    """Forty pictures of two shapes, all different."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        image = Image.new("RGB", (32, 32) if number % 2 else (64, 32), (6 * number, 100, 255 - 6 * number))
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"colour number {number}")
    return folder


def test_validation_is_fixed_and_sees_what_training_does_not(many, tmp_path, model):
    """The same held-out pictures give the same loss, with the weights of the same update, in a run that resumes."""
    changes = {"model": str(model), "validation_split": 0.25, "validate_every": 2, "steps": 4}
    events = list(train(settings(many, tmp_path / "run", **changes)))
    (started,) = of_kind(events, Started)
    assert started.images + started.held_out == 40 and 3 <= started.held_out <= 17
    validated = of_kind(events, Validated)
    assert [event.global_step for event in validated] == [2, 4]
    assert set(validated[0].losses) == {"raw", "long", "short"}
    again = list(train(settings(many, tmp_path / "again", **changes)))
    assert of_kind(again, Validated) == validated


def test_buckets_train_on_pictures_of_their_own_shape(many, tmp_path, model):
    """A model of 32 pixels sees wide pictures as 48x16, which its three halvings divide, and square ones as 32x32."""
    changes = {"model": str(model), "buckets": True, "steps": 6, "resolution": 32}
    list(train(settings(many, tmp_path / "run", **changes)))
    assert len(rows_of(tmp_path / "run")) == 6


def test_changed_data_is_refused_unless_allowed(many, tmp_path, model):
    run = settings(many, tmp_path / "run", part="vae", model=str(model), steps=2)
    list(train(run))
    (many / "00.txt").write_text("another caption")
    more = dataclasses.replace(run, steps=3)
    with pytest.raises(SdcliError, match="not what this run has learned from"):
        list(train(more, resume=True))
    events = list(train(dataclasses.replace(more, allow_data_change=True), resume=True))
    assert [event.message for event in of_kind(events, Warned)] == ["going on with other data than before"]
    assert [event.global_step for event in of_kind(events, Stepped)] == [3]


def test_what_cannot_be_used_stops_a_run_or_is_left_out(many, tmp_path, model):
    (many / "00.png").write_bytes(b"no picture")
    (many / "01.txt").write_text("  \n")
    run = settings(many, tmp_path / "run", model=str(model), steps=1)
    with pytest.raises(SdcliError, match=r"00.png is not a picture \(and 1 more\)"):
        list(train(run))
    assert not (tmp_path / "run").exists()
    events = list(train(dataclasses.replace(run, on_error="skip")))
    assert of_kind(events, Started)[0].images == 38
    assert len(of_kind(events, Warned)) == 2


def test_two_processes_cannot_train_into_one_folder(tmp_path, squares, model):
    run = settings(squares, tmp_path / "run", part="vae", model=str(model), steps=4)
    first = train(run)
    for event in first:
        if isinstance(event, Saved):
            break
    with pytest.raises(SdcliError, match="another process is training"):
        list(train(run, resume=True))
    first.close()
    assert of_kind(list(train(run, resume=True)), Stepped)


def test_latents_are_computed_once_and_never_stale(many, tmp_path, model, monkeypatch):
    """A second run on the same cache encodes nothing; one changed picture is encoded, and so is all for another VAE."""
    from sdcli.components.vae import VAE

    encoded = []
    original = VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, images: encoded.append(len(images)) or original(self, images))
    cache = tmp_path / "cache.sqlite3"

    def run(name: str, **changes) -> int:
        encoded.clear()
        common = {"model": str(model), "steps": 1, "cache": str(cache)}
        list(train(settings(many, tmp_path / name, **common | changes)))
        return sum(encoded)

    assert run("first") == 40
    assert run("second") == 0
    Image.new("RGB", (32, 32), "black").save(many / "01.png")
    assert run("third") == 1
    assert run("mirrored", random_flip=0.5) == 40
    list(train(settings(many, tmp_path / "vae", part="vae", model=str(model), steps=4)))
    shutil.copytree(tmp_path / "vae" / "model" / "vae", tmp_path / "other" / "vae")
    for name in ("text_encoder", "tokenizer", "unet", "scheduler"):
        shutil.copytree(model / "model" / name, tmp_path / "other" / name)
    shutil.copy(model / "model" / "model_index.json", tmp_path / "other")
    index = json.loads((tmp_path / "other" / "model_index.json").read_text())
    index["image_encoder"] = [None, None]
    (tmp_path / "other" / "model_index.json").write_text(json.dumps(index))
    assert run("fourth", model=str(tmp_path / "other")) == 40


def test_a_damaged_cache_is_begun_anew(squares, tmp_path, model):
    cache = tmp_path / "cache.sqlite3"
    cache.write_bytes(b"this is no database" * 1000)
    list(train(settings(squares, tmp_path / "run", model=str(model), steps=1, cache=str(cache))))
    assert cache.read_bytes().startswith(b"SQLite format 3")


def test_a_dry_run_checks_everything_and_leaves_nothing(squares, tmp_path, model):
    events = list(train(settings(squares, tmp_path / "run", model=str(model)), dry_run=True))
    assert [type(event) for event in events] == [Started]
    assert not (tmp_path / "run").exists()


def test_weights_tell_where_they_come_from(squares, tmp_path, model):
    """Settings, data and parents are in the header of every weights file, and nothing of this machine."""
    list(train(settings(squares, tmp_path / "run", model=str(model), steps=1)))
    with safe_open(tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["sdcli.training"])
    assert (about["settings"]["part"], about["settings"]["learning_rate"], about["images"]) == ("unet", 2e-3, 4)
    assert "unet/diffusion_pytorch_model.safetensors" in about["parents"]
    assert str(tmp_path) not in json.dumps(
        {name: value for name, value in about["settings"].items() if name != "model"}
    )


def test_a_picture_tells_how_its_weights_were_made(squares, tmp_path, model):
    """What is in the header of the UNet's file is in the picture's sdcli block too."""
    from sdcli.cli import run

    list(train(settings(squares, tmp_path / "run", model=str(model), steps=1)))
    picture = tmp_path / "a.png"
    arguments = ["--model", tmp_path / "run", "--steps", 2, "--device", "cpu", "-o", picture, "--progress", "none"]
    assert run(["generate", "a red square", *map(str, arguments)]) == 0
    about = json.loads(Image.open(picture).text["sdcli"])["training"]["unet/diffusion_pytorch_model.safetensors"]
    assert about["settings"]["part"] == "unet" and len(about["data_sha256"]) == 64


def test_the_average_may_be_chosen_after_training(squares, tmp_path, model):
    """Another average makes another RUN/model, without another update; "none" is the weights as trained."""
    run = settings(squares, tmp_path / "run", part="vae", model=str(model), steps=6, ema=0.93)
    list(train(run))
    used = {}
    for average in ("long", "short", "none"):
        assert not of_kind(list(train(dataclasses.replace(run, average=average), resume=True)), Stepped)
        used[average] = weights_of(tmp_path / "run", "vae")["encoder.conv_in.weight"]
    newest = RunFolder(tmp_path / "run").newest()
    trained = load_file(newest / "vae" / "diffusion_pytorch_model.safetensors")["encoder.conv_in.weight"]
    torch.testing.assert_close(used["none"], trained, rtol=0, atol=0)
    assert not torch.equal(used["long"], used["short"]) and not torch.equal(used["short"], used["none"])


@pytest.mark.parametrize(
    ("kept", "expected"),
    [({}, (30, 7.5)), ({"num_inference_steps": 3, "guidance_scale": 1.5}, (3, 1.5)), ({"guidance_scale": 5}, (30, 5))],
)
def test_sample_sheets_are_made_as_the_model_is_used(kept, expected, squares, tiny_folder, tmp_path, monkeypatch):
    """With its own steps and guidance, or those of every model that does not say."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_defaults": kept}))
    original, made = SdPipeline.denoise, []
    monkeypatch.setattr(SdPipeline, "denoise", lambda self, *a, **k: made.append(a) or original(self, *a, **k))
    changes = {"model": str(folder), "steps": 1, "sample_every": 1, "resolution": 16}
    list(train(settings(squares, tmp_path / "run", **changes)))
    how = next(each for each in made[0] if isinstance(each, DenoiseSettings))
    assert (how.num_inference_steps, how.guidance_scale) == expected


@pytest.mark.parametrize("channels", [3, 1])
def test_a_unet_of_pixels_without_a_vae_is_a_configuration(squares, tmp_path, architecture, channels):
    """THEORY row 9: the same loop and the same pipeline, without latents; of one channel, all is grey."""
    from sdcli import load_pipeline

    text = architecture.read_text()
    before, after = text.index("[vae]"), text.index("[text_encoder]")
    pixels = (text[:before] + text[after:]).replace("sample_size = 8", "sample_size = 16")
    pixels = pixels.replace("in_channels = 4", f"in_channels = {channels}")
    pixels = pixels.replace("out_channels = 4", f"out_channels = {channels}")
    (tmp_path / "pixels.toml").write_text(pixels)
    run = settings(squares, tmp_path / "run", part="all", config=str(tmp_path / "pixels.toml"), steps=3)
    list(train(run))
    list(train(dataclasses.replace(run, part="unet", model=run.output, output=f"{run.output}-2", loss="perceptual")))
    pipeline = load_pipeline(str(tmp_path / "run"))
    assert pipeline.vae is None
    image = pipeline("a red square", num_inference_steps=2).images[0]
    assert image.size == (16, 16)
    red, green, blue = (band.tobytes() for band in image.split())
    assert (red == green == blue) == (channels == 1)
    size, how = (16, 16), BoundSettings(timesteps=2)
    assert measure_likelihood(pipeline, find_pictures(squares), size, how).shape == (channels, 16, 16)


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path, squares, model):
    """kill -9 at random moments, resumed each time, ends with the weights of the undisturbed run, bit for bit."""
    import random

    flags = ["--data", squares, "--model", model, "--steps", 400, "--batch-size", 4, "--checkpoint-every", 7]
    flags += ["--device", "cpu", "--sample-every", 50, "--progress", "none", "--keep", 3]
    subprocess.run(command(*flags, "-o", tmp_path / "whole"), env=environment(), check=True)
    chance, run = random.Random(0), tmp_path / "killed"
    process = subprocess.Popen(command(*flags, "-o", run), env=environment())
    wait_for(run / "checkpoints" / "latest")
    for _ in range(10):
        time.sleep(chance.uniform(0, 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = subprocess.Popen(command("-o", run, "--resume", "--progress", "none"), env=environment())
    assert process.wait() == 0
    expected, actual = weights_of(tmp_path / "whole", "unet"), weights_of(run, "unet")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert [row["global_step"] for row in rows_of(run)] == list(range(1, 401))
    assert not [path for path in run.rglob("*") if path.name.startswith(".") and path.name != ".lock"]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and not path.exists():
        time.sleep(0.02)


def test_a_single_file_can_be_trained_on(squares, tmp_path):
    """It is a model like any other; its hash is the parent."""
    file = write_single_file("sd1", tmp_path / "single")
    list(train(settings(squares, tmp_path / "run", model=str(file), resolution=32, steps=1)))
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()
    with safe_open(tmp_path / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert list(json.loads(weights.metadata()["sdcli.training"])["parents"]) == ["sd1.safetensors"]


def test_a_model_is_used_like_the_one_that_it_was_made_from(squares, tmp_path, model, monkeypatch):
    """What models.toml says of the parent holds for its children and theirs, interrupted ones too."""
    monkeypatch.chdir(tmp_path)
    entry = {"path": str(model), "steps": 3, "guidance_scale": 2.5, "sampler": "ddim", "prediction_type": "sample"}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    Path("models.toml").write_text(f"[models.parent]\n{lines}")
    run = settings(squares, Path("child"), model="parent", steps=3)
    train_until(2, run)
    list(train(run, resume=True))
    Path("models.toml").unlink()
    list(train(settings(squares, Path("grandchild"), model="child", part="vae", steps=1)))
    for name in ("child", "grandchild"):
        defaults = find_model(name).defaults
        assert (defaults.num_inference_steps, defaults.guidance_scale, defaults.sampler) == (3, 2.5, "ddim")
        assert load_pipeline(find_model(name), ON_CPU).scheduler.config.prediction_type == "sample"
    assert load_pipeline(find_model(str(model)), ON_CPU).scheduler.config.prediction_type != "sample"
    own = find_model(str(model)).defaults
    assert (own.num_inference_steps, own.guidance_scale, own.sampler) == (30, 7.5, None)
