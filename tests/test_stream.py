"""Shards as training data: every layout, every picture once an epoch, and a run that resumes to the bit."""

import dataclasses
import gc
import io
import json
import tarfile
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from ended import train_until
from PIL import Image
from safetensors.torch import load_file

from sdcli.data import stream
from sdcli.data.pictures import Framing
from sdcli.data.shards import Shards, is_stream, numbered
from sdcli.data.stream import Place, Reader, StreamOrder
from sdcli.errors import SdcliError
from sdcli.training.events import Started, Stepped, Validated, Warned
from sdcli.training.loop import train
from sdcli.training.parts.vae import VaePart
from sdcli.training.settings import TrainSettings

pytestmark = pytest.mark.alone

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("datasets")


def png(number: int) -> bytes:
    """A picture of its own colour; every third one is wide."""
    content = io.BytesIO()
    Image.new("RGB", (64, 32) if number % 3 == 0 else (32, 32), (number * 9 % 256, 100, number)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, rows: list[tuple[str, dict[str, bytes]]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, files in rows:
            for suffix, content in files.items():
                about = tarfile.TarInfo(f"{key}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))


def write_parquet(path: Path, pictures: list[bytes], captions: list) -> None:
    import pyarrow.parquet

    images = [{"bytes": content, "path": None} for content in pictures]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "caption": captions}), path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three tar files with seven pictures each."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        numbers = range(shard * 7, shard * 7 + 7)
        rows = [(f"{number:04d}", {"png": png(number), "txt": f"colour {number}".encode()}) for number in numbers]
        write_tar(folder / f"set-{shard:03d}.tar", rows)
    return folder


def everything(data: object, need_captions: bool = True) -> list[tuple[bytes, tuple[str, ...]]]:
    found = Shards(str(data))
    return [(row.content, row.captions) for shard in range(len(found)) for row in found.rows(shard, 0)]


EXPECTED = [(png(number), (f"colour {number}",)) for number in range(21)]


def test_a_folder_of_tar_files_and_a_numbered_name_are_the_same(shards):
    assert everything(shards) == EXPECTED
    assert everything(f"{shards}/set-{{000..002}}.tar") == EXPECTED
    assert numbered("a-{08..11}-{0..1}.tar")[:3] == ["a-08-0.tar", "a-08-1.tar", "a-09-0.tar"]


def test_parquet_files_hold_pictures_and_lists_of_captions(tmp_path):
    for shard in range(2):
        numbers = range(shard * 2, shard * 2 + 2)
        captions = [[f"colour {number}", f"number {number}"] for number in numbers]
        write_parquet(tmp_path / f"{shard}.parquet", [png(number) for number in numbers], captions)
    assert everything(tmp_path) == [(png(each), (f"colour {each}", f"number {each}")) for each in range(4)]


def test_captions_may_be_in_json(tmp_path):
    write_tar(
        tmp_path / "a.tar", [("1", {"png": png(1), "json": json.dumps({"caption": "one", "width": 32}).encode()})]
    )
    assert everything(tmp_path) == [(png(1), ("one",))]


def test_a_shard_is_read_from_any_row_on(shards):
    assert [row.captions[0] for row in Shards(str(shards)).rows(1, 5)] == ["colour 12", "colour 13"]


def test_a_folder_of_pictures_is_no_stream(squares, shards):
    assert not is_stream(str(squares))
    assert is_stream(str(shards)) and is_stream("hf:somebody/pictures") and is_stream("a-{00..09}.tar")


def order_of(shards: Path, batch_size: int = 4, **framing) -> StreamOrder:
    reader = Reader(Shards(str(shards)), True, lambda picture: picture, seed=5)
    return StreamOrder(reader, Framing(resolution=32, multiple=8, **framing), batch_size, seed=5)


def captions_of(order: StreamOrder, number: int) -> list[str]:
    indices = order.batch(number)
    assert len({order.sizes[index] for index in indices}) == 1
    return [order.pictures[index].example.captions[0] for index in indices]


@pytest.mark.parametrize("buckets", [False, True])
def test_every_epoch_shows_every_picture_once(shards, buckets, monkeypatch):
    """Whatever does not fill a batch comes with the next window; 84 pictures are four epochs."""
    monkeypatch.setattr(stream, "WINDOW", 5)
    order = order_of(shards, buckets=buckets)
    seen = Counter(caption for number in range(21) for caption in captions_of(order, number))
    assert len(seen) == 21
    assert all(3 <= times <= 5 for times in seen.values()) if buckets else set(seen.values()) == {4}


@pytest.mark.parametrize("number", [0, 1, 6, 13, 20])
def test_a_stream_goes_on_from_its_state(shards, number, monkeypatch):
    """With what was left over from earlier windows, in a fresh process, as plain values that a checkpoint can hold."""
    monkeypatch.setattr(stream, "WINDOW", 5)
    whole, parted, fresh = (order_of(shards, buckets=True) for _ in range(3))
    expected = [captions_of(whole, each) for each in range(30)]
    for each in range(number + 3):  # read ahead of what was trained on
        parted.batch(each)
    content = io.BytesIO()
    torch.save(parted.state(number), content)
    fresh.restore(torch.load(io.BytesIO(content.getvalue()), weights_only=True))
    assert [captions_of(fresh, each) for each in range(number, 30)] == expected[number:]


@pytest.mark.slow
def test_only_a_window_is_in_memory(shards, monkeypatch):
    """Of all pictures that were read, no more than a window and a batch still exist anywhere."""
    monkeypatch.setattr(stream, "WINDOW", 5)
    order, read = order_of(shards), weakref.WeakSet()
    order.reader.choose = lambda picture: read.add(picture) or picture
    for number in range(12):
        order.batch(number)
        gc.collect()
        assert len(order.pictures) <= 5 + 4 and len(read) <= 5 + 2 * 4


def test_an_epoch_reads_every_row_once(shards, monkeypatch):
    """A window goes on where the one before it has ended, in a shard that stays open."""
    monkeypatch.setattr(stream, "WINDOW", 5)
    order, opened = order_of(shards), []
    original = Shards.rows
    monkeypatch.setattr(Shards, "rows", lambda self, shard, first: opened.append(first) or original(self, shard, first))
    for number in range(10):
        order.batch(number)
    assert opened[:3] == [0, 0, 0] and set(opened) == {0}


def test_labels_are_read_as_their_names(tmp_path):
    """WebDataset's `cls`, and a column whose names the file knows; they caption what has no other caption."""
    write_tar(tmp_path / "a.tar", [("1", {"png": png(1), "cls": b"7"})])
    (row,) = Shards(str(tmp_path / "a.tar")).rows(0, 0)
    assert (row.label, row.captions) == ("7", ("7",))
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Pictures

    features = Features({"image": Pictures(), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": png(1), "path": None}] * 2, "label": [1, 0]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "b.parquet")
    assert [row.label for row in Shards(str(tmp_path / "b.parquet")).rows(0, 0)] == ["dog", "cat"]


def test_what_cannot_be_used_is_left_out_and_told(tmp_path):
    rows = [(str(number), {"png": png(number), "txt": b"good"}) for number in range(5)]
    rows += [("5", {"png": b"no picture", "txt": b"five"}), ("6", {"png": png(6)}), ("7", {"txt": b"seven"})]
    write_tar(tmp_path / "a.tar", rows)
    reader = Reader(Shards(str(tmp_path)), True, lambda picture: picture, seed=0)
    pictures, place = reader.window(Place())
    assert [picture.example.captions for picture in pictures] == [("good",)] * 5
    assert place == Place(epoch=1, index=5)
    assert [each.message for each in reader.problems] == ["is not a picture", "has no caption", "is empty (0 bytes)"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.tar", "there is no shard nothing.tar"),
        ("cut.tar", "cannot read cut.tar: unexpected end of data"),
        ("words.parquet", "words.parquet has no column of pictures: it has caption"),
        ("broken.parquet", "cannot read broken.parquet"),
        ("useless.tar", "useless.tar holds no picture that can be used"),
        ("a-{009..000}.tar", "--data a-{009..000}.tar names no file"),
        ("hf:", "--data hf: names no data set"),
        ("mixed", "mixed holds .tar and pictures"),
    ],
)
def test_shards_that_cannot_be_read_say_why(name, message, shards, tmp_path, monkeypatch):
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    Path("cut.tar").write_bytes((shards / "set-000.tar").read_bytes()[:4000])
    pyarrow.parquet.write_table(pyarrow.table({"caption": ["one"]}), "words.parquet")
    Path("broken.parquet").write_bytes(b"PAR1, but no more")
    write_tar(Path("useless.tar"), [("1", {"png": b"no picture", "txt": b"one"})])
    Path("mixed").mkdir()
    Path("mixed/a.tar").write_bytes(Path("useless.tar").read_bytes())
    Path("mixed/a.png").write_bytes(png(1))
    with pytest.raises(SdcliError) as caught:
        Reader(Shards(name), True, lambda picture: picture, seed=0).window(Place())
    assert message in str(caught.value)


def settings(data: Path, output: Path, **changes) -> TrainSettings:
    common = {"batch_size": 4, "learning_rate": 2e-3, "warmup": 2, "device": "cpu", "ema": 0.9, "cache": "none"}
    return TrainSettings(**{"data": str(data), "output": str(output), **common, **changes})


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory, shards, architecture) -> Path:
    """A VAE and a CLIP, which have learned from the shards."""
    root = tmp_path_factory.mktemp("runs")
    list(train(settings(shards, root / "vae", config=str(architecture), part="vae", steps=3)))
    changes = {"config": str(architecture), "part": "clip", "model": str(root / "vae"), "steps": 3}
    list(train(settings(shards, root / "clip", **changes)))
    return root / "clip"


def test_a_run_on_a_stream_resumes_to_the_bit(shards, tmp_path, architecture, clip_run, monkeypatch):
    """Twelve updates are six and six, over the end of an epoch, with buckets, held-out pictures and a thread."""
    monkeypatch.setattr(stream, "WINDOW", 6)
    changes = {"config": str(architecture), "model": str(clip_run), "steps": 12, "checkpoint_every": 6}
    changes |= {"buckets": True, "validation_split": 0.3, "validate_every": 6, "num_workers": 2}
    whole, parted = (settings(shards, tmp_path / name, **changes) for name in ("whole", "parted"))
    events = list(train(whole))
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.images is None and started.held_out > 0
    assert [event.global_step for event in events if isinstance(event, Validated)] == [6, 12]
    train_until(8, parted)
    assert len([event for event in train(parted, resume=True) if isinstance(event, Stepped)]) == 4
    expected, actual = (
        load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
        for run in (tmp_path / "whole", tmp_path / "parted")
    )
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_after_a_slip_a_stream_goes_on_from_the_checkpoint(shards, tmp_path, architecture, monkeypatch):
    """With two batches begun ahead, the batches after it are those that come after the checkpoint."""
    monkeypatch.setattr(stream, "WINDOW", 6)
    shown, original, slips = [], VaePart.losses, iter([False] * 5 + [True])

    def slippery(self, network, batch):
        if torch.is_grad_enabled():
            shown.append(batch["pixel_values"].sum().item())
        losses = original(self, network, batch)
        return losses | {"loss": losses["loss"] * float("nan")} if next(slips, False) else losses

    monkeypatch.setattr(VaePart, "losses", slippery)
    changes = {"config": str(architecture), "part": "vae", "steps": 9, "checkpoint_every": 3, "num_workers": 2}
    list(train(settings(shards, tmp_path / "run", **changes)))
    undisturbed, after = shown[:6], shown[6:]
    assert after[:3] == undisturbed[3:] and len(after) == 6


def test_a_stream_whose_beginning_has_nothing_to_train_on_says_what_it_has(tmp_path, architecture, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 2)
    write_parquet(tmp_path / "a.parquet", [png(number) for number in range(4)], [""] * 4)
    run = settings(tmp_path, tmp_path / "run", config=str(architecture), part="clip")
    with pytest.raises(SdcliError, match="no pictures to train on") as caught:
        list(train(run))
    assert "has no caption" in caught.value.hint and "image, caption" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_run_tells_what_it_leaves_out_and_refuses_other_shards(shards, tmp_path, architecture):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_tar(tmp_path / "set-003.tar", [("9", {"png": b"no picture", "txt": b"nine"})])
    run = settings(tmp_path, tmp_path / "run", config=str(architecture), part="vae", steps=8)
    warnings = [event.message for event in train(run) if isinstance(event, Warned)]
    assert warnings and all("is not a picture" in message for message in warnings)
    (tmp_path / "set-003.tar").unlink()
    with pytest.raises(SdcliError, match="not what this run has learned from"):
        list(train(dataclasses.replace(run, steps=9), resume=True))
