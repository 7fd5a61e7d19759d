"""Order and framing: every epoch shows everything, chance follows from seed and batch, nothing is squeezed."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdcli.data.folder import read_contents
from sdcli.data.order import Order, bucket_sizes, nearest_size
from sdcli.data.pictures import Framing, Pictures
from sdcli.data.scan import Picture, scan
from sdcli.data.store import Store


def pictures_of(folder: Path) -> list[Picture]:
    return list(scan(read_contents(folder), Store(None), need_captions=True))


def shown(folder: Path, batch_size: int = 2, seed: int = 0, **framing) -> Pictures:
    return Pictures(pictures_of(folder), Framing(**{"resolution": 16, "multiple": 8, **framing}), batch_size, seed)


def test_an_epoch_shows_every_picture_once():
    """Batches that do not divide the data run over into the next epoch; no picture is left out or shown twice."""
    order = Order(["square"] * 4, [1] * 4, batch_size=3, seed=3)
    seen = [index for number in range(4) for index in order.batch(number)]
    assert sorted(seen[:4]) == sorted(seen[4:8]) == sorted(seen[8:]) == [0, 1, 2, 3]
    assert seen[:4] != seen[4:8] or seen[4:8] != seen[8:]


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    """That is what lets a run go on in the middle of an epoch; another seed is another order."""
    order, fresh = (Order(list("aabbabab"), [1, 2] * 4, batch_size=2, seed=3) for _ in range(2))
    batches = [order.batch(number) for number in range(30)]
    assert fresh.batch(29) == batches[29]
    assert fresh.batch(7) == batches[7]
    assert [Order(list("aabbabab"), [1, 2] * 4, 2, seed=4).batch(number) for number in range(30)] != batches


def test_a_batch_is_of_one_bucket_and_repeats_count():
    """Of 30 examples shown in an epoch by their repeats, what is left over comes with the next ones."""
    buckets, repeats = "aaabbbbbcc", [3] * 10
    order = Order(buckets, repeats, batch_size=4, seed=0)
    seen = Counter()
    for number in range(75):  # ten epochs
        batch = order.batch(number)
        assert len({buckets[index] for index in batch}) == 1
        seen.update(batch)
    assert all(27 <= seen[index] <= 33 for index in range(10))


def test_buckets_hold_about_the_same_number_of_pixels():
    """Never more than the square has, sides divisible, ratios from 1:2 to 2:1."""
    sizes = bucket_sizes(512, 64)
    assert (512, 512) in sizes
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert 0.7 * 512**2 <= width * height <= 512**2
    assert nearest_size((3000, 2000), sizes) == (576, 448) or nearest_size((3000, 2000), sizes) == (640, 384)
    assert nearest_size((10, 1000), sizes)[0] == min(width for width, _ in sizes)


def test_pictures_fill_a_square_and_keep_their_shape(tmp_path):
    """A wide picture is scaled by its height and cut left and right, not squeezed."""
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste("black", (10, 0, 20, 10))
    wide.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a bar")
    data = shown(tmp_path, batch_size=1, resolution=10)
    pixel_values = data.pixel_values(data.batch(0))
    assert pixel_values.shape == (1, 3, 10, 10)
    assert pixel_values.max() == -1


def test_buckets_keep_what_squares_cut_off(tmp_path):
    """The same wide picture comes whole into a wide bucket."""
    Image.new("RGB", (32, 8), "white").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a bar")
    data = shown(tmp_path, batch_size=1, resolution=16, buckets=True)
    assert data.pixel_values(data.batch(0)).shape == (1, 3, 8, 32)
    assert data.crop(data.at_rest(0)) == (0, 0, 32, 8)


@pytest.fixture
def stripes(tmp_path) -> Path:
    """Four pictures with a black left edge, two captions each."""
    rows = []
    for number in range(4):
        image = Image.new("RGB", (16, 16), "white")
        image.paste("black", (0, 0, 4 + number, 16))
        image.save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [f"{number} one", f"{number} two"]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_share_of_the_pictures_is_mirrored(stripes):
    """All of them with 1, none with 0, some with a half; and the mirrored ones are mirrored."""
    counts = {}
    for share in (0.0, 0.5, 1.0):
        data = shown(stripes, random_flip=share)
        counts[share] = sum(each.flipped for number in range(50) for each in data.batch(number))
    assert counts[0.0] == 0 and 25 < counts[0.5] < 75 and counts[1.0] == 100
    data = shown(stripes, random_flip=1.0)
    batch = data.batch(0)
    assert (data.pixel_values(batch)[..., -1] == -1).all() and (data.pixel_values(batch)[..., 0] == 1).all()


def test_a_random_cut_moves_and_stays_inside(tmp_path):
    """Cuts of a wide picture are found everywhere along it."""
    Image.linear_gradient("L").resize((64, 16)).rotate(0).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a ramp")
    data = shown(tmp_path, batch_size=1, random_crop=True)
    lefts = [data.crop(data.batch(number)[0])[0] for number in range(40)]
    assert min(lefts) < 10 and max(lefts) > 38 and all(0 <= left <= 48 for left in lefts)


def test_captions_and_noise_follow_from_seed_and_batch(stripes):
    """Every caption is drawn in time, another batch draws anew, and the same batch always the same."""
    data = shown(stripes, batch_size=4)
    drawn = [tuple(sorted(data.captions(data.batch(number), number))) for number in range(20)]
    assert len(set(drawn)) > 5
    again = shown(stripes, batch_size=4)
    assert tuple(sorted(again.captions(again.batch(7), 7))) == drawn[7]
    noises = [torch.randn(8, generator=data.generator(number)) for number in (1, 2, 1)]
    assert torch.equal(noises[0], noises[2]) and not torch.equal(noises[0], noises[1])
    assert not torch.equal(torch.randn(8, generator=shown(stripes, seed=1).generator(1)), noises[0])
