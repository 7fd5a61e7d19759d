"""What CLIP promises whatever its weights: causality, sharing, the loss, the temperature."""

import math

import pytest
import torch

from sdcli.components.clip import CLIP, ImageEncoder, TextEncoder, contrastive_loss, normalize_for_clip

END, PAD = 39, 0
TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 10,
    "projection_dim": 16,
    "eos_token_id": END,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 16,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def texts(count: int) -> torch.Tensor:
    input_ids = torch.randint(1, END, (count, 10))
    input_ids[:, 6] = END
    input_ids[:, 7:] = PAD
    return input_ids


def tiny_clip() -> tuple[CLIP, TextEncoder, ImageEncoder]:
    text_encoder, image_encoder = TextEncoder(**TEXT), ImageEncoder(**VISION)
    return CLIP.from_towers(text_encoder, image_encoder, torch.randn(16, 32) / 6), text_encoder, image_encoder


def test_a_token_changes_nothing_before_it():
    """Attention is causal: features up to a token do not know what comes after."""
    encoder = TextEncoder(**TEXT)
    input_ids = texts(1)
    changed = input_ids.clone()
    changed[0, 4] = 1 + input_ids[0, 4] % (END - 1)
    before, after = encoder(input_ids).last_hidden_state, encoder(changed).last_hidden_state
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
    assert (before[:, 4:] - after[:, 4:]).abs().amin(dim=1).max() > 1e-4


@pytest.mark.parametrize("eos_token_id", [2, END])
def test_padding_does_not_change_a_text(eos_token_id):
    """What follows the end token, be it padding, the end token again or nothing, leaves the pooled text as it is."""
    encoder = TextEncoder(**TEXT | {"eos_token_id": eos_token_id})
    padded = texts(3)
    repeated = torch.where(torch.arange(10) > 6, END, padded)
    expected = encoder(padded).pooler_output
    torch.testing.assert_close(encoder(repeated).pooler_output, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder(padded[:, :7]).pooler_output, expected, rtol=0, atol=1e-5)


def test_the_end_token_is_found_by_its_id_unless_the_configuration_says_2():
    """A true end token wins over added tokens of a higher id; the legacy rule takes the highest id for the end."""
    input_ids = torch.tensor([[1, 39, 5, 38, 38]])
    assert TextEncoder(**TEXT | {"eos_token_id": 38}).end_positions(input_ids).tolist() == [3]
    assert TextEncoder(**TEXT | {"eos_token_id": 2}).end_positions(input_ids).tolist() == [1]


@pytest.mark.parametrize("with_projection", [False, True])
def test_skipping_layers_equals_a_tower_without_them(with_projection):
    """clip_skip = 2 gives the features of the tower without its last two layers; 0 gives the ordinary ones."""
    encoder = TextEncoder(**TEXT, with_projection=with_projection)
    input_ids = texts(2)
    output = encoder(input_ids)
    torch.testing.assert_close(encoder.skip_layers(output, 0), output.last_hidden_state, rtol=0, atol=0)
    skipped = encoder.skip_layers(output, 2)
    encoder.tower.encoder.layers = encoder.tower.encoder.layers[:-2]
    torch.testing.assert_close(skipped, encoder(input_ids).last_hidden_state, rtol=0, atol=0)
    for clip_skip in (-1, 4):
        with pytest.raises(ValueError, match="clip_skip"):
            encoder.skip_layers(output, clip_skip)


def test_without_places_an_image_is_a_bag_of_patches():
    """Only position embeddings tell patches apart: without them, swapping the halves of an image changes nothing."""
    encoder = ImageEncoder(**VISION)
    pixel_values = torch.randn(2, 3, 16, 16)
    swapped = pixel_values.roll(8, dims=-1)
    assert (encoder(pixel_values).image_embeds - encoder(swapped).image_embeds).abs().max() > 1e-4
    torch.nn.init.zeros_(encoder.vision_model.embeddings.position_embedding.weight)
    torch.testing.assert_close(encoder(pixel_values).image_embeds, encoder(swapped).image_embeds, rtol=0, atol=1e-5)


def test_similarities_are_cosines_times_the_scale():
    """Embeddings have length 1, so no logit exceeds the scale, and both tables are one transposed."""
    clip, _, _ = tiny_clip()
    output = clip(texts(5), torch.randn(3, 3, 16, 16))
    assert output.logits_per_image.shape == (3, 5) and output.logits_per_text.shape == (5, 3)
    for embeds in (output.image_embeds, output.text_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    assert output.logits_per_image.abs().max() <= clip.logit_scale.exp()
    assert math.isclose(clip.logit_scale.exp().item(), 1 / 0.07, rel_tol=1e-4)
    torch.testing.assert_close(output.logits_per_image, output.logits_per_text.T)


def test_contrastive_loss_is_ln_n_for_equal_logits_and_0_for_a_strong_diagonal():
    """Guessing one of N costs ln N nats; knowing costs nothing; texts and images count the same."""
    assert math.isclose(contrastive_loss(torch.zeros(7, 7)).item(), math.log(7), rel_tol=1e-6)
    assert contrastive_loss(100 * torch.eye(7)) < 1e-6
    logits = torch.randn(7, 7)
    torch.testing.assert_close(contrastive_loss(logits), contrastive_loss(logits.T))


def test_contrastive_loss_raises_the_diagonal_and_lowers_the_rest():
    """A step against the gradient makes every pair more similar, and every mismatch less."""
    logits = torch.randn(6, 6, requires_grad=True)
    contrastive_loss(logits).backward()
    own = torch.eye(6, dtype=torch.bool)
    assert (logits.grad[own] < 0).all() and (logits.grad[~own] > 0).all()


def test_contrastive_loss_refuses_unpaired_batches():
    """Without one text for each image there is no diagonal."""
    with pytest.raises(ValueError, match=r"square.*\(3, 5\)"):
        contrastive_loss(torch.zeros(3, 5))


def test_training_clip_learns_pairs_and_trains_the_encoders_it_was_made_of():
    """Twenty steps on four pairs lower the loss, and the text encoder given to it has changed with it."""
    clip, text_encoder, image_encoder = tiny_clip()
    input_ids, pixel_values = texts(4), torch.randn(4, 3, 16, 16)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=2e-3)
    before = text_encoder(input_ids).last_hidden_state.detach()
    losses = []
    for _ in range(20):
        loss = contrastive_loss(clip(input_ids, pixel_values).logits_per_text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip.clamp_logit_scale()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (text_encoder(input_ids).last_hidden_state - before).abs().max() > 1e-2
    embeds = image_encoder(pixel_values).image_embeds
    torch.testing.assert_close(embeds / embeds.norm(dim=-1, keepdim=True), clip.embed_images(pixel_values))


def test_gradients_reach_every_weight():
    """No part of either tower is cut off from the loss, but for the bias of the keys, which softmax does not see."""
    clip, _, _ = tiny_clip()
    contrastive_loss(clip(texts(4), torch.randn(4, 3, 16, 16)).logits_per_text).backward()
    unreached = [name for name, weight in clip.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert [name for name in unreached if not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("with_projection", [False, True])
def test_towers_go_in_and_out_without_a_copy(with_projection):
    """from_towers and towers share storage both ways, and the keys are those of a CLIP made from its configuration."""
    text_encoder, image_encoder = TextEncoder(**TEXT, with_projection=with_projection), ImageEncoder(**VISION)
    head = None if with_projection else torch.nn.Parameter(torch.randn(16, 32))
    logit_scale = torch.nn.Parameter(torch.tensor(1.5))
    clip = CLIP.from_towers(text_encoder, image_encoder, head, logit_scale)
    assert clip.text_projection.weight is (text_encoder.text_projection.weight if with_projection else head)
    assert clip.logit_scale is logit_scale
    text_again, image_again = clip.towers()
    assert text_again is text_encoder.tower
    assert image_again.config["patch_size"] == 4 and image_again.config["projection_dim"] == 16
    for name, weight in image_encoder.named_parameters():
        assert image_again.get_parameter(name) is weight
    assert not any(weight.is_meta for weight in [*clip.parameters(), *image_again.parameters()])
    CLIP.from_config(clip.config).load_state_dict(clip.state_dict(), strict=True)


def test_towers_that_do_not_fit_are_refused():
    """A missing, doubled or wrongly shaped projection is named."""
    image_encoder = ImageEncoder(**VISION)
    with pytest.raises(ValueError, match="text_projection_weight"):
        CLIP.from_towers(TextEncoder(**TEXT), image_encoder)
    with pytest.raises(ValueError, match="text_projection_weight"):
        CLIP.from_towers(TextEncoder(**TEXT, with_projection=True), image_encoder, torch.zeros(16, 32))
    with pytest.raises(ValueError, match=r"\(16, 32\), got \(32, 16\)"):
        CLIP.from_towers(TextEncoder(**TEXT), image_encoder, torch.zeros(32, 16))


def test_the_scale_stays_below_100():
    """Radford et al. never scale the logits by more than 100; lower values are left alone."""
    clip, _, _ = tiny_clip()
    for value, clamped in ((6.0, math.log(100)), (1.0, 1.0)):
        torch.nn.init.constant_(clip.logit_scale, value)
        clip.clamp_logit_scale()
        assert math.isclose(clip.logit_scale.item(), clamped, rel_tol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_deeper_towers_do_not_start_louder(causal):
    """The initial weights are scaled so that what all layers add to the residual stream does not grow with depth."""
    added = {}
    for depth in (2, 32):
        sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": depth}
        if causal:
            first, *_, last = TextEncoder(**TEXT | sizes)(texts(4)).hidden_states
        else:
            first, *_, last = ImageEncoder(**VISION | sizes)(torch.randn(4, 3, 16, 16)).hidden_states
        added[depth] = (last - first).std().item()
    assert 0.5 < added[32] / added[2] < 2


@pytest.mark.parametrize(
    "component",
    [
        lambda: TextEncoder(**TEXT),
        lambda: TextEncoder(**TEXT, with_projection=True),
        lambda: ImageEncoder(**VISION),
        lambda: CLIP(text_config=TEXT, vision_config=VISION, projection_dim=16),
    ],
    ids=["text", "text with projection", "image", "clip"],
)
def test_saved_by_diffusers_and_loaded_again_it_is_the_same(component, tmp_path):
    """Through diffusers' own save and load, the configuration and every bit of the weights come back."""
    saved = component()
    saved.save_pretrained(tmp_path)
    loaded = type(saved).from_pretrained(tmp_path)
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: v for k, v in saved.config.items() if k[0] != "_"
    }
    weights = saved.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())


def test_half_precision_stays_half_precision():
    """In bfloat16 no part falls back to float32."""
    text_encoder, image_encoder = TextEncoder(**TEXT).to(torch.bfloat16), ImageEncoder(**VISION).to(torch.bfloat16)
    assert text_encoder(texts(2)).last_hidden_state.dtype == torch.bfloat16
    assert image_encoder(torch.randn(2, 3, 16, 16).bfloat16()).image_embeds.dtype == torch.bfloat16


def test_normalize_for_clip_centres_the_mean_colour():
    """The mean colour of CLIP's training images becomes 0, one standard deviation more becomes 1."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    for colour, expected in ((mean, 0.0), (mean + std, 1.0)):
        pixel_values = (2 * colour - 1).expand(1, 3, 20, 33)
        normalized = normalize_for_clip(pixel_values, 16)
        torch.testing.assert_close(normalized, torch.full((1, 3, 16, 16), expected), rtol=0, atol=1e-5)


def test_normalize_for_clip_keeps_the_middle_and_the_gradient():
    """The cut-off sides do not count, the middle does, and gradients reach the pixels (CLIP guidance needs them)."""
    pixel_values = torch.zeros(1, 3, 16, 32, requires_grad=True)
    normalize_for_clip(pixel_values, 16).sum().backward()
    assert pixel_values.grad[..., 8:24].all() and not pixel_values.grad[..., :8].any()
    assert not pixel_values.grad[..., 24:].any()
    assert normalize_for_clip(torch.zeros(1, 3, 301, 200), 16).shape == (1, 3, 16, 16)
    assert normalize_for_clip(torch.zeros(1, 3, 8, 9), 16).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TextEncoder(**TEXT)(torch.zeros(1, 11, dtype=torch.int64)), r"L up to 10, got \(1, 11\)"),
        (lambda: TextEncoder(**TEXT)(torch.zeros(5, dtype=torch.int64)), r"\(B, L\).*got \(5,\)"),
        (lambda: ImageEncoder(**VISION)(torch.zeros(1, 3, 16, 20)), r"\(B, 3, 16, 16\), got \(1, 3, 16, 20\)"),
        (lambda: ImageEncoder(**VISION)(torch.zeros(1, 1, 16, 16)), r"got \(1, 1, 16, 16\)"),
        (lambda: TextEncoder(**TEXT | {"hidden_act": "relu"}), "quick_gelu, gelu, got 'relu'"),
        (lambda: TextEncoder(**TEXT | {"num_attention_heads": 5}), "num_attention_heads 5"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    """Wrong shapes and configurations raise ValueError with the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        call()
