"""Training CLIP with two captions of each picture at once."""

import json
from pathlib import Path

import pytest
import torch
from first_batch import part_of
from PIL import Image

from sdcli.checkpoints import load_clip
from sdcli.components.clip import CLIP, contrastive_loss, normalize_for_clip
from sdcli.errors import SdcliError
from sdcli.training.events import Stepped, Validated
from sdcli.training.loop import train
from sdcli.training.settings import TrainSettings

COLOURS = {"red": "rouge", "green": "vert", "blue": "bleu", "white": "blanc"}


@pytest.fixture(scope="module")
def two_languages(tmp_path_factory) -> Path:
    """Four pictures, each with a caption in English and one in French, which have no word in common."""
    folder = tmp_path_factory.mktemp("languages")
    rows = []
    for english, french in COLOURS.items():
        Image.new("RGB", (32, 32), english).save(folder / f"{english}.png")
        captions = [f"the {english} square", f"un carre {french}"]
        rows.append({"file_name": f"{english}.png", "text": captions[0], "captions": captions})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(data: Path, output: Path, architecture: Path, **changes) -> TrainSettings:
    common = {"part": "clip", "config": str(architecture), "batch_size": 4, "device": "cpu", "warmup": 2, "ema": 0.9}
    return TrainSettings(data=str(data), output=str(output), **{**common, **changes})


def test_the_loss_compares_both_captions_with_pictures_and_with_each_other(two_languages, tmp_path, architecture):
    part, data = part_of(settings(two_languages, tmp_path / "run", architecture, caption_weight=0.5))
    batch, network = part.batch(data, 0), part.network
    losses = part.losses(network, batch)
    pixel_values = normalize_for_clip(batch["pixel_values"], network.vision_model.config.image_size)
    pictures, scale = network.embed_images(pixel_values), network.logit_scale.exp()
    one, other = (network.embed_texts(batch[name]) for name in ("input_ids", "other_input_ids"))
    with_pictures = (contrastive_loss(one @ pictures.T * scale) + contrastive_loss(other @ pictures.T * scale)) / 2
    among_captions = contrastive_loss(one @ other.T * scale)
    torch.testing.assert_close(losses["captions"], among_captions.detach())
    torch.testing.assert_close(losses["loss"], with_pictures + 0.5 * among_captions)


def test_both_captions_are_of_the_same_picture(two_languages, tmp_path, architecture):
    """Drawn apart from each other: over some batches a picture has all four combinations."""
    _, data = part_of(settings(two_languages, tmp_path / "run", architecture, caption_weight=0.5))
    seen = set()
    for number in range(20):
        shown = data.batch(number)
        for each, one, other in zip(
            shown, data.captions(shown, number), data.captions(shown, number, True), strict=True
        ):
            captions = data.example(each.index).captions
            assert one in captions and other in captions
            seen.add((captions.index(one), captions.index(other)))
    assert len(seen) == 4


def test_held_out_pictures_are_judged_by_one_caption(two_languages, tmp_path, architecture):
    """So that the loss on them can be compared, whatever the weight was."""
    changes = {"caption_weight": 0.5, "validation_split": 0.5, "batch_size": 2, "steps": 1, "validate_every": 1}
    events = list(train(settings(two_languages, tmp_path / "run", architecture, **changes)))
    assert "captions" in next(event for event in events if isinstance(event, Stepped)).losses
    part, data = part_of(settings(two_languages, tmp_path / "other", architecture, **changes))
    assert "other_input_ids" not in part.batch(data, 0, validating=True)
    assert any(isinstance(event, Validated) for event in events)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_wordings_of_a_picture_come_to_mean_the_same(weight, two_languages, tmp_path, architecture):
    """Pictures are held still at one point of the embedding, so that only the comparison of captions can teach it."""
    run = settings(two_languages, tmp_path / "run", architecture, caption_weight=weight)
    part, data = part_of(run)
    network = part.network
    network.visual_projection.weight.data.zero_()
    learned = [*network.text_model.parameters(), network.text_projection.weight]
    optimizer = torch.optim.AdamW(learned, lr=2e-3)
    for number in range(60):
        part.losses(network, part.batch(data, number))["loss"].backward()
        optimizer.step()
        network.zero_grad()
    english, french = ([data.example(index).captions[which] for index in range(4)] for which in (0, 1))
    tokens = part.tokenizer(english + french, padding="longest", return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = network.embed_texts(tokens)
    found = (embeds[:4] @ embeds[4:].T).argmax(dim=1).tolist()
    assert (found == [0, 1, 2, 3]) is (weight > 0)


def tower(clip: CLIP, name: str) -> dict[str, torch.Tensor]:
    """The weights of the "text" or the "image" tower, with its projection."""
    starts = {"text": ("text_model.", "text_projection."), "image": ("vision_model.", "visual_projection.")}[name]
    return {key: value for key, value in clip.state_dict().items() if key.startswith(starts)}


@pytest.fixture(scope="module")
def half_trained(two_languages, tmp_path_factory, architecture) -> Path:
    """A run that has learned both towers a little."""
    output = tmp_path_factory.mktemp("runs") / "both"
    list(train(settings(two_languages, output, architecture, steps=2)))
    return output


@pytest.mark.parametrize(("locked", "other"), [("text", "image"), ("image", "text")])
def test_a_locked_tower_stays_bit_for_bit_while_the_other_learns(
    locked, other, two_languages, half_trained, tmp_path, architecture
):
    """Also over an interruption; and it is the tower of the model that is gone on from."""
    run = settings(
        two_languages, tmp_path / "run", architecture, model=str(half_trained), config=None, lock=locked, steps=4
    )
    updates = iter((False, True))
    list(train(run, stop=lambda: next(updates)))
    list(train(run, resume=True))
    before, after = load_clip(half_trained / "model"), load_clip(tmp_path / "run" / "model")
    for name, weight in tower(before, locked).items():
        assert torch.equal(weight, after.state_dict()[name]), name
    changed = [
        name for name, weight in tower(before, other).items() if not torch.equal(weight, after.state_dict()[name])
    ]
    assert len(changed) > len(tower(before, other)) / 2
    assert not torch.equal(before.logit_scale, after.logit_scale)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lock": "text"}, "--model"),
        ({"lock": "text", "model": "emoji"}, "no --config"),
        ({"lock": "text", "model": "emoji", "config": None, "caption_weight": 1.0}, "--caption-weight"),
        ({"lock": "text", "model": "emoji", "config": None, "part": "unet"}, "--part clip only"),
        ({"lock": "vision", "model": "emoji", "config": None}, "vision"),
    ],
)
def test_a_lock_that_makes_no_sense_is_refused(changes, says, tmp_path, architecture):
    with pytest.raises(SdcliError) as error:
        settings(tmp_path, tmp_path / "run", architecture, **changes)
    assert says in f"{error.value} {error.value.hint}"
