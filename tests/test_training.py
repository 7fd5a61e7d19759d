"""Training on a handful of drawn squares: it learns, it resumes to the bit, it refuses what it cannot use."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from ended import train_until
from safetensors.torch import load_file

from sdcli.errors import EXIT_NOT_A_NUMBER, SdcliError
from sdcli.registry import find_architecture
from sdcli.training.averages import Averages
from sdcli.training.choices import STAGES
from sdcli.training.events import Interrupted, Preparing, Saved, Stepped, Warned
from sdcli.training.loop import train
from sdcli.training.run_folder import RunFolder
from sdcli.training.settings import TrainSettings, from_table, resumed
from sdcli.training.stages import stages_of
from sdcli.training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def clip_run(tmp_path_factory, squares, architecture) -> Path:
    """A run whose model has a VAE and a CLIP, so that a UNet can be trained on it."""
    root = tmp_path_factory.mktemp("runs")
    list(train(settings(squares, root / "vae", config=str(architecture), part="vae", steps=4)))
    changes = {"config": str(architecture), "part": "clip", "model": str(root / "vae"), "steps": 4}
    list(train(settings(squares, root / "clip", **changes)))
    return root / "clip"


def settings(data: Path, output: Path, **changes) -> TrainSettings:
    common = {"batch_size": 4, "learning_rate": 2e-3, "warmup": 2, "device": "cpu", "ema": 0.9}
    return TrainSettings(**{"data": str(data), "output": str(output), **common, **changes})


def unet_settings(data: Path, output: Path, clip_run: Path, architecture: Path, **changes) -> TrainSettings:
    return settings(data, output, **{"config": str(architecture), "model": str(clip_run), "part": "unet", **changes})


def losses_of(events: list) -> list[float]:
    return [event.losses["loss"] for event in events if isinstance(event, Stepped)]


def weights_of(run: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    name = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
    return load_file(run / "model" / part / name)


@pytest.mark.parametrize("part", ["vae", "clip", "unet"])
def test_every_part_learns(part, tmp_path, squares, architecture, clip_run):
    """The mean loss of the last ten of sixty updates is well below that of the first ten."""
    changes = {"part": part, "steps": 60, "model": str(clip_run) if part == "unet" else None}
    losses = losses_of(list(train(settings(squares, tmp_path / "run", config=str(architecture), **changes))))
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_run_folder_is_a_model_for_stock_diffusers(tmp_path, squares, architecture, clip_run):
    """What `train` leaves in RUN/model makes a picture in stock diffusers, without any of our code."""
    list(train(unet_settings(squares, tmp_path / "run", clip_run, architecture, steps=3, save_precision="fp16")))
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model", safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    assert stock("a red square", num_inference_steps=2, height=32, width=32).images[0].size == (32, 32)


def test_sixty_updates_are_thirty_and_thirty_resumed(tmp_path, squares, architecture, clip_run):
    """An interrupted run that goes on ends with the very weights of one that was not: data order, captions, noise,
    optimizer, schedule and average all go on where they were.
    """
    whole, parted = (
        unet_settings(squares, tmp_path / name, clip_run, architecture, steps=60, checkpoint_every=30)
        for name in ("whole", "parted")
    )
    list(train(whole))
    train_until(40, parted)
    list(train(parted, resume=True))
    expected, actual = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parted")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    rows = [json.loads(line) for line in (tmp_path / "parted" / "metrics.jsonl").read_text().splitlines()]
    assert [row["global_step"] for row in rows] == list(range(1, 61))


def test_a_run_that_is_ended_while_it_encodes_goes_on(tmp_path, squares, architecture, clip_run):
    """It ends there, with a checkpoint of no updates, and not after the minutes that encoding takes."""
    run = unet_settings(squares, tmp_path / "run", clip_run, architecture, steps=2)
    events = []
    for event in train(run, stop=lambda: any(isinstance(each, Preparing) for each in events)):
        events.append(event)
    assert [type(event) for event in events[-2:]] == [Preparing, Interrupted]
    assert RunFolder(tmp_path / "run").newest().name == "step-000000"
    list(train(run, resume=True))
    assert RunFolder(tmp_path / "run").newest().name == "step-000002"


def test_a_run_draws_its_curves_and_samples_unless_told_not_to(tmp_path, squares, architecture):
    for every in (2, 0):
        run = settings(
            squares, tmp_path / str(every), config=str(architecture), part="vae", steps=3, sample_every=every
        )
        list(train(run))
        assert (tmp_path / str(every) / "curves.png").read_bytes().startswith(b"\x89PNG")
        sheets = [path.name for path in (tmp_path / str(every) / "samples").iterdir()]
        assert sorted(sheets) == (["step-000002.png", "step-000003.png"] if every else [])


def test_old_checkpoints_go_only_when_newer_ones_are_there(tmp_path, squares, architecture):
    list(
        train(
            settings(
                squares, tmp_path / "run", config=str(architecture), part="vae", steps=5, checkpoint_every=1, keep=2
            )
        )
    )
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-000004", "step-000005"]
    assert RunFolder(tmp_path / "run").newest().name == "step-000005"


def test_the_millionth_checkpoint_is_newer_than_the_one_before(tmp_path):
    """Rotation goes by the number of updates, not by the letters of the name."""
    run = RunFolder(tmp_path)
    for name in ("step-999999", "step-1000000"):
        (run.checkpoints / name).mkdir(parents=True)
    run.save(lambda folder: None, 1000001, {}, keep=2)
    assert {path.name for path in run.checkpoints.glob("step-*")} == {"step-1000000", "step-1000001"}


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(tmp_path, squares, architecture, monkeypatch):
    """A full disk while the state is written: the run ends with an error, and resumes from the checkpoint before."""
    run = settings(squares, tmp_path / "run", config=str(architecture), part="vae", steps=4, checkpoint_every=2)
    events = train(run)
    for event in events:
        if isinstance(event, Saved) and event.global_step == 2:
            break
    monkeypatch.setattr(
        torch, "save", lambda state, file: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(SdcliError, match="No space left"):
        list(events)
    monkeypatch.undo()
    events.close()
    assert RunFolder(tmp_path / "run").newest().name == "step-000002"
    assert [event.global_step for event in train(run, resume=True) if isinstance(event, Stepped)] == [3, 4]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path, squares, architecture):
    run = settings(squares, tmp_path / "run", config=str(architecture), part="vae", steps=4, checkpoint_every=2)
    events = train(run)
    for event in events:
        if isinstance(event, Saved) and event.global_step == 2:
            break
    events.close()
    state = torch.load(event.path / "training_state.pt", weights_only=True)
    weights = event.path / "vae" / "diffusion_pytorch_model.safetensors"
    broken = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    from safetensors.torch import save_file

    save_file(broken, weights)
    assert state["global_step"] == 2
    with pytest.raises(SdcliError, match="not a number") as caught:
        list(train(run, resume=True))
    assert caught.value.exit_code == EXIT_NOT_A_NUMBER


def test_nothing_is_begun_over_something_and_nothing_resumed_from_nothing(tmp_path, squares, architecture):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(SdcliError, match="exists already"):
        list(train(settings(squares, tmp_path / "taken", config=str(architecture), part="vae")))
    with pytest.raises(SdcliError, match="no checkpoint"):
        list(train(settings(squares, tmp_path / "empty", config=str(architecture), part="vae"), resume=True))
    with pytest.raises(SdcliError, match="no run to resume"):
        RunFolder(tmp_path / "empty").read_settings()


def test_a_part_needs_the_parts_before_it(tmp_path, squares, architecture):
    with pytest.raises(SdcliError, match="needs a vae"):
        list(train(settings(squares, tmp_path / "run", config=str(architecture), part="unet")))
    assert not (tmp_path / "run").exists()


def test_only_a_run_s_length_and_its_reports_may_change_on_resume(tmp_path):
    saved = settings(tmp_path, tmp_path / "run", config="emoji")
    assert resumed(saved, {"steps": 9, "keep": 3}) == dataclasses.replace(saved, steps=9, keep=3)
    assert resumed(saved, {"batch_size": 4}) == saved
    with pytest.raises(SdcliError, match="--batch-size is 4 in the run to resume, got 8"):
        resumed(saved, {"batch_size": 8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "--learning-rate must be a positive number"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a positive number"),
        ({"part": "unit"}, "--part knows no 'unit'"),
        ({"ema": 1.0}, "--ema must be from 0 to 0.999999, got 1.0"),
        ({"config": None}, "nothing to train"),
    ],
)
def test_settings_refuse_what_no_run_can_use(changes, message, tmp_path):
    with pytest.raises(SdcliError, match=message):
        settings(tmp_path, tmp_path, **{"config": "emoji", **changes})


def test_the_average_follows_the_weights_and_gives_them_back():
    """With decay 0.95 the long average moves by a twentieth, the ten times shorter one half-way; while one is applied
    the module has it, then its own again.
    """
    weight = torch.nn.Parameter(torch.zeros(2))
    averages = Averages([weight], decay=0.95)
    with torch.no_grad():
        weight.fill_(1.0)
    averages.update(global_step=1000)
    for name, value in (("long", 0.05), ("short", 0.5), ("none", 1.0)):
        with averages.applied(name):
            torch.testing.assert_close(weight.detach(), torch.full((2,), value))
    torch.testing.assert_close(weight.detach(), torch.ones(2))


def test_a_new_tokenizer_spells_what_it_never_saw():
    """Words of the captions are single tokens; every other text comes back whole from bytes; start and end are last."""
    tokenizer = train_tokenizer(["a cute kitten", "a cute kitten", "a red heart"] * 5, 600, 16)
    assert len(tokenizer("a cute kitten").input_ids) == 5
    assert tokenizer.decode(tokenizer("zürich 北京").input_ids, skip_special_tokens=True) == "zürich 北京"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (598, 599, 600)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, squares, architecture):
    """A run folder that was put together from two: what it would go on with is not what it was told to train."""
    run = settings(squares, tmp_path / "run", config=str(architecture), part="vae", steps=2)
    list(train(run))
    wider = tmp_path / "wider.toml"
    wider.write_text(
        architecture.read_text().replace("block_out_channels = [8, 8, 16]", "block_out_channels = [8, 8, 32]")
    )
    with pytest.raises(SdcliError, match=r"block_out_channels of its vae is \[8, 8, 16\], not \[8, 8, 32\]"):
        list(train(dataclasses.replace(run, config=str(wider), steps=3), resume=True))


def test_captions_that_are_cut_off_are_told(tmp_path, squares, architecture):
    """Before the first update, with their number and the longest of them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, caption in enumerate(("a red square", "a very " * 20 + "red square")):
        (folder / f"{number}.txt").write_text(caption)
        (folder / f"{number}.png").write_bytes((squares / "red.png").read_bytes())
    events = list(
        train(settings(folder, tmp_path / "run", config=str(architecture), part="clip", steps=1, batch_size=2))
    )
    (warning,) = [event for event in events if isinstance(event, Warned)]
    assert warning.message.startswith("1 of 2 captions are longer than 16 tokens, and cut off there; the longest, of ")


def test_flags_win_over_what_a_file_says_for_single_parts(tmp_path):
    """`--part all --steps 20` is a rehearsal of every part, whatever lengths the recipe gives them."""
    table = {"steps": 10, "vae": {"steps": 100, "learning_rate": 1e-3}, "unet": {"steps": 200}}
    chosen = from_table(table, {"data": "d", "output": "o", "part": "all", "config": "emoji", "steps": 20})
    settings = TrainSettings(**chosen)
    assert [settings.stage(part).steps for part in STAGES] == [20, 20, 20, 20]
    assert settings.stage("vae").learning_rate == 1e-3
    settings = TrainSettings(**from_table(table, {"data": "d", "output": "o", "part": "all", "config": "emoji"}))
    assert [settings.stage(part).steps for part in STAGES] == [100, 10, 200, 10]


@pytest.mark.parametrize(("part", "steps"), [("vae", 100), ("clip", 10), ("unet", 200)])
def test_a_part_by_itself_takes_what_a_file_says_of_it(part, steps):
    table = {"steps": 10, "vae": {"steps": 100}, "unet": {"steps": 200}}
    given = {"data": "d", "output": "o", "part": part, "config": "emoji"}
    assert TrainSettings(**from_table(table, given)).steps == steps
    assert TrainSettings(**from_table(table, {**given, "steps": 5})).steps == 5


@pytest.mark.parametrize("name", ["emoji", "digits"])
def test_recipes_of_named_architectures_are_settings(name):
    """Every table of a recipe is accepted, and makes stages of their own lengths."""
    given = {"data": "d", "output": "o", "part": "all", "config": name}
    recipe = find_architecture(name)["train"]
    stages = stages_of(TrainSettings(**from_table(recipe, given)))
    assert [stage.steps for stage in stages] == [recipe[Path(stage.output).name]["steps"] for stage in stages]
