"""Figures of VAE, CLIP, denoiser and samples: what they are by definition, and what they are of known cases."""

import json
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image
from scipy import linalg, ndimage

from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.folder import ON_CPU
from sdcli.comparer import Comparer
from sdcli.components.clip import CLIP
from sdcli.data.folder import Example
from sdcli.errors import SdcliError
from sdcli.evaluation.denoising import NoiseSettings, bin_edges, measure_losses
from sdcli.evaluation.distance import compare_features, frechet_distance, share_within
from sdcli.evaluation.pictures import batches, class_of, find_pictures, fitting_size
from sdcli.evaluation.reconstruction import MOST_DB, measure_vae, psnr, ssim
from sdcli.evaluation.retrieval import best_ranks, measure_retrieval, rank_figures


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def two_pictures(count: int = 2) -> torch.Tensor:
    smooth = torch.nn.functional.avg_pool2d(torch.rand(2, count, 3, 40, 52).flatten(0, 1) * 4 - 2, 5, 1, 2)
    return smooth.clamp(-1, 1).unflatten(0, (2, count))


# Reconstruction


def ssim_with_scipy(ours: numpy.ndarray, theirs: numpy.ndarray) -> float:
    """Wang et al. 2004 with scipy's Gaussian filter, one colour in [0, 1]; the border that a window crosses is cut."""

    def blurred(values):
        return ndimage.gaussian_filter(values, 1.5, radius=5)

    mean, other = blurred(ours), blurred(theirs)
    variance, other_variance = blurred(ours**2) - mean**2, blurred(theirs**2) - other**2
    covariance = blurred(ours * theirs) - mean * other
    above = (2 * mean * other + 0.01**2) * (2 * covariance + 0.03**2)
    below = (mean**2 + other**2 + 0.01**2) * (variance + other_variance + 0.03**2)
    return (above / below)[5:-5, 5:-5].mean()


def test_ssim_is_that_of_the_paper():
    """Per colour, against a second implementation."""
    ours, theirs = pair = two_pictures()
    colours = [
        [ssim_with_scipy(*(each[place, colour].double().numpy() / 2 + 0.5 for each in pair)) for colour in range(3)]
        for place in range(2)
    ]
    numpy.testing.assert_allclose(ssim(ours, theirs), numpy.mean(colours, axis=1), rtol=1e-5)


def test_equals_are_equal_and_less_alike_is_less():
    """SSIM of a picture with itself is 1, PSNR the greatest; both fall with noise and do not mind the order."""
    pictures = two_pictures()[0]
    assert torch.allclose(ssim(pictures, pictures), torch.ones(2))
    assert (psnr(pictures, pictures) == MOST_DB).all()
    noisy = [pictures + level * torch.randn_like(pictures) for level in (0.02, 0.2)]
    for measure in (ssim, psnr):
        assert (measure(pictures, noisy[0]) > measure(pictures, noisy[1])).all()
        assert torch.allclose(measure(pictures, noisy[1]), measure(noisy[1], pictures))
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(pictures[..., :8], pictures[..., :8])


def test_psnr_of_one_level_off():
    """20 log10(255) dB: as of pixels that are all off by 1 of 255."""
    black = torch.full((1, 3, 8, 8), -1.0)
    assert float(psnr(black, black + 2 / 255)) == pytest.approx(20 * numpy.log10(255), rel=1e-5)


def test_figures_of_a_vae_are_means_over_all_pictures(tiny_pipeline, squares):
    """Whatever the batch size; the worst come first; moments of latents are those of the drawn ones."""
    examples = find_pictures(squares)
    some, all_together = (measure_vae(tiny_pipeline, examples, (32, 32), batch_size=size) for size in (3, 4))
    for name in ("psnr", "ssim", "absolute_error", "kl", "mean", "std"):
        torch.testing.assert_close(getattr(some, name), getattr(all_together, name), rtol=1e-3, atol=1e-5)
    worst = [each.psnr for each in some.worst]
    assert worst == sorted(some.psnr.tolist())
    ((_, pixel_values),) = batches(examples, (32, 32), 4)
    with torch.no_grad():
        posterior = tiny_pipeline.vae.encode(pixel_values)
    assert float(some.kl.mean() * posterior.mean[0].numel()) == pytest.approx(float(posterior.kl().mean()), rel=1e-4)
    drawn = torch.cat([posterior.sample(torch.randn_like(posterior.mean)) for _ in range(200)])
    torch.testing.assert_close(some.std.float(), drawn.std((0, 2, 3)), rtol=0.03, atol=0.01)
    torch.testing.assert_close(some.mean.float(), drawn.mean((0, 2, 3)), rtol=0.05, atol=0.03)


# Retrieval


def test_ranks_count_what_is_wrong_and_as_similar():
    """The best of several right answers counts; one answer for everything comes last."""
    similarities = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.3, 0.3, 0.3]])
    right = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]]).bool()
    assert best_ranks(similarities, right).tolist() == [1, 3, 3]
    right[1, 1] = True
    assert best_ranks(similarities, right).tolist() == [1, 2, 3]
    assert rank_figures(torch.tensor([1, 2, 6, 30])) == {"r@1": 0.25, "r@5": 0.5, "r@10": 0.75, "median_rank": 4.0}


class Eyes(Comparer):
    """A CLIP that has learned everything: one direction for each word, of captions and of file names."""

    WORDS = ("red", "green", "blue", "yellow")

    def check(self, texts):
        return []

    def embed_texts(self, texts, batch_size=64):
        return torch.tensor([[float(word in text) for word in self.WORDS] for text in texts])


def test_a_clip_that_knows_everything_finds_everything(squares, monkeypatch):
    """R@1 of 1 both ways, also where two captions belong to a picture; classes by label."""
    examples = find_pictures(squares, need_captions=True)
    monkeypatch.setattr(
        "sdcli.evaluation.retrieval.embed_files",
        lambda comparer, paths, *_: comparer.embed_texts([path.stem for path in paths]),
    )
    names = [example.path.stem for example in examples]
    found = measure_retrieval(Eyes(None, None), examples, names).figures()
    assert found["captions"] == 8
    for way in ("image_to_text", "text_to_image"):
        assert found[way] == {"r@1": 1.0, "r@5": 1.0, "r@10": 1.0, "median_rank": 1.0}
    assert found["zero_shot"] == {"accuracy": 1.0, "classes": 4}
    shared = [replace(example, captions=("a square",)) for example in examples]
    assert measure_retrieval(Eyes(None, None), shared, [None] * 4).figures()["captions"] == 1


def test_classes_are_labels_or_folders(tmp_path):
    """10_cat/ is the class cat; a picture in the folder itself has none."""
    for name in ("10_cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("both")
    classes = {example.path.parent.name: class_of(example, tmp_path) for example in find_pictures(tmp_path)}
    assert classes == {"10_cat": "cat", "dog": "dog", tmp_path.name: None}
    assert class_of(Example(tmp_path / "b.png", (), label="bird"), tmp_path) == "bird"


def test_too_long_a_caption_is_refused_or_cut_as_asked(tiny_tokenizer):
    """400 words do not fit a text tower of 77 tokens."""
    text = {"vocab_size": len(tiny_tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 77, "eos_token_id": tiny_tokenizer.eos_token_id}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIP(text, vision | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    words = "cat " * 400
    with pytest.raises(SdcliError, match="a caption has 402 tokens, CLIP's text tower takes 77"):
        Comparer(clip, tiny_tokenizer).check(["the cat", words])
    cutting = Comparer(clip, tiny_tokenizer, truncate=True)
    assert cutting.check(["the cat", words]) == [words]
    embeds = cutting.embed_texts([words, "cat " * 75, "cat " * 74])
    assert torch.allclose(embeds[0], embeds[1], atol=1e-6)
    assert not torch.allclose(embeds[0], embeds[2], atol=1e-6)
    assert torch.allclose(embeds.norm(dim=1), torch.ones(3))


# Samples


@pytest.mark.parametrize(("first", "second"), [(200, 300), (6, 5)])
def test_frechet_distance_is_that_of_the_matrix_root(first, second):
    """Against scipy's sqrtm, also of fewer pictures than features."""
    mixing = torch.randn(12, 12)
    features, others = torch.randn(first, 12) @ mixing, 0.7 * torch.randn(second, 12) + 0.4
    covariances = [numpy.cov(each.double().numpy().T) for each in (features, others)]
    root = linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * numpy.eye(12)).real
    means = (features.double().mean(0) - others.double().mean(0)).square().sum()
    expected = float(means) + numpy.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(features, others) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(others, features) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_a_shift_is_its_square():
    """And 0 of a set from itself, in any order."""
    features = torch.randn(50, 8)
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)


def test_precision_and_recall_of_known_sets():
    """Half of the samples beside the data: precision ½. Samples of one mode of two: recall ½."""
    corner = torch.randn(100, 4)
    far = corner + 100
    data, samples = torch.cat([corner, far]), torch.cat([corner, corner - 100])
    found = compare_features(data, samples)
    assert (found.precision, found.recall) == (0.5, 0.5)
    collapsed = compare_features(data, corner[:1].expand(50, -1) + 1e-3 * torch.randn(50, 4))
    assert collapsed.precision == 1 and collapsed.recall < 0.05
    with pytest.raises(ValueError, match="more than 3"):
        share_within(corner, corner[:3])


def test_the_neighbour_is_the_third():
    """On a line with a gap: a sphere of radius 3 around 0 reaches 3, and not 3.1."""
    others = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert share_within(torch.tensor([[-3.0]]), others) == 1
    assert share_within(torch.tensor([[-3.1]]), others) == 0


# Denoiser


def test_ranges_of_timesteps_are_tenths():
    """They cover all, also of fewer than ten."""
    assert bin_edges(1000) == list(range(0, 1001, 100))
    assert bin_edges(25)[0] == 0 and bin_edges(25)[-1] == 25 and len(bin_edges(25)) == 11
    assert bin_edges(4) == [0, 1, 2, 3, 4]


def test_losses_depend_on_nothing_but_picture_and_seed(tiny_model, squares):
    """Not on the batch; and what is trained on noise has the same two losses."""
    examples = find_pictures(squares)
    pipeline = load_pipeline(tiny_model, ON_CPU)
    some, one_by_one = (
        measure_losses(pipeline, examples, (16, 16), settings=NoiseSettings(batch_size=size)) for size in (4, 1)
    )
    torch.testing.assert_close(some.prediction, one_by_one.prediction, rtol=1e-3, atol=1e-5)
    assert torch.equal(some.prediction, some.noise)
    other = measure_losses(pipeline, examples, (16, 16), settings=NoiseSettings(seed=9))
    assert not torch.allclose(some.prediction, other.prediction)
    assert some.figures()["bins"][3]["first"] == 300
    json.dumps(some.figures())


def test_a_model_of_velocities_has_the_loss_of_velocities(tiny_model, squares):
    """A UNet that says 0 loses E v² of velocities, and its noise is the noisy picture times sqrt(1 - alpha-bar)."""
    pipeline = load_pipeline(tiny_model, ON_CPU)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    with torch.no_grad():
        for parameter in pipeline.unet.conv_out.parameters():
            parameter.zero_()
    examples = find_pictures(squares)
    found = measure_losses(pipeline, examples, (16, 16))
    ((_, pixel_values),) = batches(examples, (16, 16), 4)
    variance = float(pipeline.encode(pixel_values, torch.Generator()).square().mean())
    clean, noisy = found.figures()["bins"][0], found.figures()["bins"][-1]
    assert clean["loss"] == pytest.approx(1, abs=0.3)  # nearly all noise
    assert noisy["loss"] == pytest.approx(variance, rel=0.2)  # nearly all picture
    assert noisy["noise_loss"] < 0.05


# Pictures


def test_pictures_are_thinned_out_evenly(squares, tmp_path):
    """From the first to the last; too few are refused with what is needed."""
    assert [each.path.stem for each in find_pictures(squares, limit=2)] == ["red", "blue"]
    with pytest.raises(SdcliError, match="no pictures") as raised:
        find_pictures(tmp_path)
    assert "expected" in raised.value.hint
    with pytest.raises(SdcliError, match="has 4 pictures") as raised:
        find_pictures(squares, least=5)
    assert raised.value.hint == "at least 5 are needed"


def test_sizes_are_never_rounded(tiny_pipeline):
    """What the networks cannot divide is refused with what they can."""
    assert fitting_size(tiny_pipeline, 16) == (16, 16)
    with pytest.raises(SdcliError, match="multiple of 4") as raised:
        fitting_size(tiny_pipeline, 18)
    assert "16 or 20" in raised.value.hint
