"""Text encoders that learn together with the UNet, at a rate of their own."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from ended import train_until
from families import write_folder
from first_batch import part_of
from safetensors.torch import load_file

from sdcli.components.unet import UNet
from sdcli.errors import SdcliError
from sdcli.training.events import Interrupted, Warned
from sdcli.training.parts.unet import UnetPart
from sdcli.training.run_folder import RunFolder, load_state
from sdcli.training.settings import TrainSettings, from_table, resumed
from sdcli.training.stages import stages_of, train

LEARNING = ("unet", "text_encoder")
WORDLESS = """
[unet]
sample_size = 16
in_channels = 3
out_channels = 3
block_out_channels = [8, 8]
layers_per_block = 1
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
norm_num_groups = 4
attention_head_dim = 2

[scheduler]
_class_name = "DDIMScheduler"
"""


def settings(data: Path, output: Path, **changes) -> TrainSettings:
    common = {"batch_size": 4, "learning_rate": 2e-3, "text_encoder_lr": 1e-3, "warmup": 0, "device": "cpu", "ema": 0.9}
    common |= {"sample_every": 0, "resolution": 16, "cache": "none", "steps": 4, "checkpoint_every": 2}
    return TrainSettings(**{"data": str(data), "output": str(output), **common, **changes})


def weights_of(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sdxl-refiner"])
def test_the_loss_is_the_same_and_every_weight_gets_a_gradient(name, squares, tmp_path):
    """Reading captions in the pass changes nothing of it; dropped ones included. Weights that nothing is read from,
    those of the last layer of SDXL's first text encoder, are not among them: several processes would wait for them.
    """
    folder = write_folder(name, tmp_path / "model")
    run = settings(squares, tmp_path, model=str(folder), resolution=32, caption_dropout=0.5)
    part, data = part_of(run)
    loss = part.losses(part.network, part.batch(data, 1))["loss"]
    still, _ = part_of(dataclasses.replace(run, text_encoder_lr=None))
    torch.testing.assert_close(loss, still.losses(still.network, still.batch(data, 1))["loss"], rtol=1e-5, atol=0)
    loss.backward()
    assert all(weight.grad is not None for weight in part.parameters())
    of_unet, of_text = part.groups()
    assert of_text["lr"] == 1e-3 and any(weight.grad.abs().max() > 0 for weight in of_text["params"])
    assert len(part.parameters()) == len(of_unet["params"]) + len(of_text["params"])


def test_both_learn_at_their_rates_and_go_on_to_the_bit(squares, tiny_folder, tmp_path):
    """An interrupted run ends with the weights of one that was not, those of text encoders included."""
    runs = [settings(squares, tmp_path / name, model=str(tiny_folder)) for name in ("whole", "parted")]
    list(train(runs[0]))
    train_until(3, runs[1])
    list(train(runs[1], resume=True))
    for part in LEARNING:
        whole, parted = (weights_of(tmp_path / name / "model", part) for name in ("whole", "parted"))
        assert same(whole, parted)
        assert not same(whole, weights_of(tmp_path / "whole" / "checkpoints" / "step-000002", part))
    list(train(settings(squares, tmp_path / "slow", model=str(tiny_folder), text_encoder_lr=1e-7)))
    before = {name.removeprefix("text_model."): each for name, each in weights_of(tiny_folder, "text_encoder").items()}
    furthest = {}
    for run in ("whole", "slow"):
        after = {
            name.removeprefix("text_model."): each
            for name, each in weights_of(tmp_path / run / "model", "text_encoder").items()
        }
        furthest[run] = max((after[name] - before[name]).abs().max() for name in before)
    assert furthest["slow"] < 1e-5 < furthest["whole"]


def test_without_a_rate_text_encoders_stay(squares, tiny_folder, tmp_path):
    list(train(settings(squares, tmp_path / "run", model=str(tiny_folder), text_encoder_lr=None, steps=1)))
    first, last = (tmp_path / "run" / "checkpoints" / f"step-{step:06d}" for step in (0, 1))
    assert same(weights_of(first, "text_encoder"), weights_of(last, "text_encoder"))
    assert not same(weights_of(first, "unet"), weights_of(last, "unet"))


def test_a_slip_takes_text_encoders_back_too(squares, tiny_folder, tmp_path, monkeypatch):
    """A loss that is no number: back to the checkpoint, with all that learns, at half of both rates."""
    original, slips = UnetPart.losses, iter([False, False, True])
    seen = []

    def slippery(self, network, batch):
        losses, slips_now = original(self, network, batch), next(slips, False)
        if not slips_now:
            seen.append(self.pipeline.text_encoder.state_dict()["embeddings.token_embedding.weight"].clone())
        return losses | {"loss": losses["loss"] * float("nan")} if slips_now else losses

    monkeypatch.setattr(UnetPart, "losses", slippery)
    changes = {"checkpoint_every": 1000, "lr_schedule": "constant", "steps": 3}
    run = settings(squares, tmp_path / "run", model=str(tiny_folder), **changes)
    events = list(train(run))
    assert any(isinstance(event, Warned) and "back to update 0" in event.message for event in events)
    torch.testing.assert_close(seen[2], seen[0], rtol=0, atol=0)
    assert not torch.equal(seen[1], seen[0])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3] * 3)
    groups = load_state(tmp_path / "run" / "checkpoints" / "step-000003")["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 5e-4])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"part": "vae"}, "--text-encoder-lr goes with --part unet only"),
        ({"optimizer": "prodigy"}, "prodigy"),
        ({"text_encoder_lr": -1e-5}, "--text-encoder-lr must be a positive number"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, says, tmp_path):
    with pytest.raises(SdcliError, match=says):
        settings(tmp_path, tmp_path, model="emoji", **changes)


def test_gradient_checkpointing_reaches_the_unet_inside(squares, tiny_folder, tmp_path, monkeypatch):
    """Beside text encoders that learn, and under a word that does."""
    original, asked = UNet.enable_gradient_checkpointing, []
    monkeypatch.setattr(UNet, "enable_gradient_checkpointing", lambda self: asked.append(self) or original(self))
    run = settings(squares, tmp_path / "run", model=str(tiny_folder), gradient_checkpointing=True, steps=1)
    list(train(run))
    assert len(asked) == 1
    word = dataclasses.replace(run, output=str(tmp_path / "word"), part="embedding", token="<it>", text_encoder_lr=None)
    list(train(word))
    assert len(asked) == 2


@pytest.mark.parametrize(("part", "says"), [("vae", "vae"), ("clip", "clip"), ("all", "vae")])
def test_gradient_checkpointing_without_a_unet_is_refused_before_a_run_is_begun(
    part, says, squares, architecture, tmp_path
):
    changes = {"part": part, "config": str(architecture), "text_encoder_lr": None, "gradient_checkpointing": True}
    with pytest.raises(SdcliError, match=f"--gradient-checkpointing does not go with --part {says}"):
        list(train(settings(squares, tmp_path / "run", **changes)))
    assert not (tmp_path / "run").exists()


def test_a_model_without_text_encoders_has_none_to_train(squares, tmp_path):
    """Of pixels, told nothing."""
    (tmp_path / "pixels.toml").write_text(WORDLESS)
    with pytest.raises(SdcliError, match="--text-encoder-lr: the model has no text encoder"):
        list(train(settings(squares, tmp_path / "run", config=str(tmp_path / "pixels.toml"))))


def test_of_all_parts_the_image_encoder_learns_once_more(squares, architecture, tmp_path):
    """Where text encoders learn with the UNet, it comes to agree with them, and they stay as the UNet knows them."""
    stages = {"unet": {"text_encoder_lr": 1e-3}, "image_encoder": {"steps": 3}}
    changes = {"part": "all", "config": str(architecture), "stages": stages, "text_encoder_lr": None, "steps": 2}
    run = settings(squares, tmp_path / "run", **changes, caption_weight=1.0, lr_schedule="constant")
    last = tmp_path / "run" / "image_encoder"
    assert isinstance([*train(run, stop=(last / "checkpoints" / "latest").exists)][-1], Interrupted)
    list(train(run, resume=True))
    models = {name: tmp_path / "run" / name / "model" for name in ("clip", "unet", "image_encoder")}
    assert len((last / "metrics.jsonl").read_text().splitlines()) == 3
    for part, stays in {"text_encoder": "unet", "unet": "unet", "image_encoder": "clip"}.items():
        before, after = weights_of(models[stays], part), weights_of(models["image_encoder"], part)
        assert same(before, after) == (part != "image_encoder")
        assert same(after, weights_of(tmp_path / "run" / "model", part))
    assert not same(weights_of(models["clip"], "text_encoder"), weights_of(models["unet"], "text_encoder"))


def test_of_all_parts_one_process_trains_at_a_time(squares, architecture, tmp_path):
    """Another one neither deletes nor changes what is there, its settings included."""
    stages = {"unet": {"text_encoder_lr": 1e-3, "steps": 1}, "image_encoder": {"steps": 2}}
    changes = {"part": "all", "config": str(architecture), "stages": stages, "text_encoder_lr": None, "steps": 1}
    run = settings(squares, tmp_path / "run", **changes)
    first = train(run)
    last = tmp_path / "run" / "image_encoder" / "checkpoints" / "latest"
    while not last.exists():
        next(first)
    with pytest.raises(SdcliError, match="another process is training into"):
        list(train(resumed(run, {"steps": 6}), resume=True))
    assert last.exists() and RunFolder(tmp_path / "run").read_settings() == run
    list(first)
    assert last.resolve().name == "step-000002"


@pytest.mark.parametrize("name", ["lock", "caption_weight", "model", "config"])
def test_what_the_last_stage_is_cannot_be_set(name, squares, architecture, tmp_path):
    with pytest.raises(SdcliError, match=rf"\[train.image_encoder\] .*{name}"):
        settings(squares, tmp_path, config=str(architecture), part="all", stages={"image_encoder": {name: 1.0}})


def test_a_rate_that_is_given_wins_over_the_file(squares, architecture, tmp_path):
    """Of all parts, the UNet's; 0 leaves text encoders as they are, and the image encoder nothing new to learn."""
    table = {"unet": {"text_encoder_lr": 1e-3}, "image_encoder": {"steps": 5}}
    given = {"data": str(squares), "output": str(tmp_path / "run"), "config": str(architecture)}
    for part, asked, rates in (
        ("all", 5e-4, [None, None, 5e-4, None]),
        ("all", 0.0, [None, None, None]),
        ("unet", 0.0, [None]),
        ("unet", 5e-4, [5e-4]),
    ):
        run = TrainSettings(**from_table(table, {**given, "part": part, "text_encoder_lr": asked}))
        assert [stage.text_encoder_lr for stage in (stages_of(run) if part == "all" else [run])] == rates


def test_a_longer_run_of_all_parts_is_the_unets_and_the_image_encoder_follows(squares, architecture, tmp_path):
    """It learns anew, as long as before, even where the run is stopped in between and not told its length again."""
    stages = {"unet": {"text_encoder_lr": 1e-3, "steps": 2}, "image_encoder": {"steps": 1}}
    changes = {"part": "all", "config": str(architecture), "stages": stages, "text_encoder_lr": None, "steps": 1}
    run, before = settings(squares, tmp_path / "run", **changes, checkpoint_every=1), {}
    list(train(run))
    for name in ("clip", "unet", "image_encoder"):
        before[name] = weights_of(tmp_path / "run" / name / "model", "text_encoder")
    longer = resumed(run, {"steps": 6})
    unet = tmp_path / "run" / "unet" / "checkpoints" / "step-000003"
    assert isinstance([*train(longer, resume=True, stop=unet.exists)][-1], Interrupted)
    assert not (tmp_path / "run" / "image_encoder").exists()
    list(train(RunFolder(tmp_path / "run").read_settings(), resume=True))
    lines = {
        name: len((tmp_path / "run" / name / "metrics.jsonl").read_text().splitlines())
        for name in ("vae", "clip", "unet", "image_encoder")
    }
    assert lines == {"vae": 1, "clip": 1, "unet": 6, "image_encoder": 1}
    after = weights_of(tmp_path / "run" / "model", "text_encoder")
    assert same(after, weights_of(tmp_path / "run" / "unet" / "model", "text_encoder"))
    assert not same(after, before["image_encoder"])
