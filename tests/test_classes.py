"""Class-conditional models: classes from the data's labels, told by their names in the prompt."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import SQUARES
from diffusers import UNet2DConditionModel

from sdcli import load_pipeline
from sdcli.cli import run
from sdcli.data.folder import read_contents
from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings
from sdcli.training.stages import train

CLASSES_ONLY = """
[unet]
sample_size = 16
in_channels = 3
out_channels = 3
block_out_channels = [16, 32]
layers_per_block = 1
down_block_types = ["DownBlock2D", "DownBlock2D"]
mid_block_type = "UNetMidBlock2D"
up_block_types = ["UpBlock2D", "UpBlock2D"]
norm_num_groups = 8
cross_attention_dim = 8
num_class_embeds = 5
[scheduler]
_class_name = "DDIMScheduler"
beta_schedule = "squaredcos_cap_v2"
prediction_type = "v_prediction"
timestep_spacing = "trailing"
"""


@pytest.fixture(scope="module")
def labelled(squares, tmp_path_factory) -> Path:
    """The squares, each of a class of its own."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = []
    for name in SQUARES:
        (folder / f"{name}.png").write_bytes((squares / f"{name}.png").read_bytes())
        rows.append({"file_name": f"{name}.png", "text": f"a {name} square", "label": name})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(data: Path, output: Path, **changes) -> TrainSettings:
    common = {"batch_size": 16, "learning_rate": 4e-3, "warmup": 10, "device": "cpu", "ema": 0.95, "cache": "none"}
    common |= {"sample_every": 10_000, "checkpoint_every": 10_000}
    return TrainSettings(**{"data": str(data), "output": str(output), **common, **changes})


@pytest.fixture(scope="module")
def model(labelled, tmp_path_factory) -> Path:
    """A UNet of pixels that knows four classes and no text."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "classes.toml").write_text(CLASSES_ONLY)
    list(train(settings(labelled, folder / "run", config=str(folder / "classes.toml"), steps=250)))
    return folder / "run"


def test_a_class_in_the_prompt_decides_what_is_shown(model):
    """THEORY row 11: class first, without any text; the middle of the picture has that class's colour."""
    pipeline = load_pipeline(str(model))
    assert pipeline.text_encoder is None and pipeline.class_names == ("blue", "green", "red", "yellow")
    for name in SQUARES:
        generator = torch.Generator().manual_seed(3)
        settings = {"num_inference_steps": 20, "guidance_scale": 2.0, "output_type": "pt", "generator": generator}
        middle = pipeline(f"something {name}", **settings).images[0][:, 6:10, 6:10].mean(dim=(1, 2)) * 255
        distances = {other: (middle - torch.tensor(SQUARES[other])).abs().sum().item() for other in SQUARES}
        assert min(distances, key=distances.get) == name


def test_the_longest_name_that_is_a_word_of_the_prompt_counts(model):
    pipeline = load_pipeline(str(model))
    pipeline.class_names = ("cat", "cat face", "dog")
    wanted, unwanted = pipeline.encode_prompt(["a Cat face", "two cats", "dog, cat"], ["", "", "a dog"])
    assert wanted.class_labels.tolist() == [2, 0, 1] and unwanted.class_labels.tolist() == [0, 0, 3]
    assert pipeline.encode_prompt(["a cat"], [""], guided=False)[1] is None


def test_names_of_classes_are_kept_and_the_unet_stays_a_stock_one(model, tmp_path):
    """In model_index.json, as stock's class-conditional pipelines have them."""
    pipeline = load_pipeline(str(model))
    pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["id2label"] == {"0": "", "1": "blue", "2": "green", "3": "red", "4": "yellow"}
    assert load_pipeline(str(tmp_path / "saved")).class_names == pipeline.class_names
    assert run(["models", "convert", str(tmp_path / "saved"), "-o", str(tmp_path / "half"), "--precision", "fp16"]) == 0
    assert load_pipeline(str(tmp_path / "half")).class_names == pipeline.class_names
    assert UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "unet").config.num_class_embeds == 5


def test_the_command_takes_the_class_from_the_prompt(model, tmp_path):
    flags = ["--model", model, "--steps", 2, "--seed", 1, "--device", "cpu", "--progress", "none"]
    for name in ("red", "blue", "nothing"):
        assert run(["generate", f"a {name} one", *map(str, flags), "-o", str(tmp_path / f"{name}.png")]) == 0
    assert len({path.read_bytes()[:2000] for path in tmp_path.glob("*.png")}) == 3


def test_a_run_goes_on_with_the_classes_that_it_has(labelled, model, tmp_path):
    run = settings(labelled, tmp_path / "run", model=str(model), steps=1)
    list(train(run))
    list(train(dataclasses.replace(run, steps=2), resume=True))
    assert load_pipeline(str(tmp_path / "run")).class_names == ("blue", "green", "red", "yellow")


def test_all_parts_are_refused_for_labels_before_the_first_is_trained(squares, architecture, tmp_path):
    config = tmp_path / "all.toml"
    config.write_text(architecture.read_text().replace("[unet]", "[unet]\nnum_class_embeds = 3"))
    with pytest.raises(SdcliError, match="no picture has one"):
        list(train(settings(squares, tmp_path / "run", part="all", config=str(config))))
    assert not (tmp_path / "run").exists()


def test_labels_that_do_not_fit_are_refused(labelled, squares, model, tmp_path):
    """Nobody has said what the classes are; there are too many; the model does not know one."""
    config = tmp_path / "classes.toml"
    config.write_text(CLASSES_ONLY)
    with pytest.raises(SdcliError, match="no picture has one"):
        list(train(settings(squares, tmp_path / "run", config=str(config))))
    config.write_text(CLASSES_ONLY.replace("num_class_embeds = 5", "num_class_embeds = 4"))
    with pytest.raises(SdcliError, match="room for 3 classes, and the data has 4"):
        list(train(settings(labelled, tmp_path / "run", config=str(config))))
    lines = (labelled / "metadata.jsonl").read_text().replace('"label": "red"', '"label": 7')
    other = tmp_path / "other"
    other.mkdir()
    for path in labelled.glob("*.png"):
        (other / path.name).write_bytes(path.read_bytes())
    (other / "metadata.jsonl").write_text(lines)
    with pytest.raises(SdcliError, match="the model has no class '7'"):
        list(train(settings(other, tmp_path / "run", model=str(model))))
    (other / "metadata.jsonl").write_text(lines.replace('"label": 7', '"label": [7]'))
    assert [problem.kind for problem in read_contents(other).problems] == ["bad-line"]
    (other / "metadata.jsonl").write_text(
        '{"file_name": "red.png", "label": " "}\n{"file_name": "blue.png", "label": 7}'
    )
    assert [(each.label, each.captions) for each in read_contents(other).examples] == [(None, ()), ("7", ("7",))]
    assert not (tmp_path / "run").exists()
