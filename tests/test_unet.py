"""Properties of the UNet that need no other implementation."""

import json
import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from sdcli.components.attention import Linear
from sdcli.components.layers import attend
from sdcli.components.unet import UNet
from sdcli.components.unet_blocks import timestep_embedding
from sdcli.components.unet_config import ONLY_VALUES

TINY = {"block_out_channels": (16, 32), "norm_num_groups": 8, "cross_attention_dim": 12, "attention_head_dim": 4}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
NO_TEXT = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# A value that differs from the only one we take, and is of a kind that stock files have.
FOREIGN = {
    "only_cross_attention": [True, True],
    "downsample_padding": 0,
    "mid_block_scale_factor": 1.4142,
    "dropout": 0.1,
    "act_fn": "gelu",
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1]],
    "encoder_hid_dim": 768,
    "encoder_hid_dim_type": "text_proj",
    "num_attention_heads": 8,
    "class_embed_type": "timestep",
    "resnet_time_scale_shift": "scale_shift",
    "resnet_out_scale_factor": 1.4142,
    "time_embedding_dim": 64,
    "time_embedding_act_fn": "gelu",
    "timestep_post_act": "silu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "attention_type": "gated",
    "mid_block_only_cross_attention": False,
    "cross_attention_norm": "group_norm",
    "addition_embed_type_num_heads": 32,
}
WRONG = {
    "mid_block_type": None,
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D",),
    "addition_embed_type": "image",
    "time_embedding_type": "fourier",
    "cross_attention_dim": (12, 12),
    "norm_num_groups": None,
    "transformer_layers_per_block": ((1, 1), 1),
    "attention_head_dim": (4, 4, 4),
    "layers_per_block": (2,),
}


def tiny(**config):
    torch.manual_seed(0)
    return UNet(**{**TINY, **BLOCKS, **config}).eval()


@pytest.fixture
def sample():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text():
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))


def test_a_linear_layer_computed_as_a_convolution_is_the_same_function():
    """Values and gradients are nn.Linear's, whether the tokens lie in memory in order or are a transposed view."""
    torch.manual_seed(0)
    as_convolution, plain = Linear(12, 7), nn.Linear(12, 7)
    plain.load_state_dict(as_convolution.state_dict())
    for tokens in (torch.randn(20, 9, 12), torch.randn(2, 12, 9).transpose(1, 2)):
        outcomes = []
        for layer in (as_convolution, plain):
            layer.zero_grad()
            leaf = tokens.clone().requires_grad_()
            output = layer(leaf)
            output.square().sum().backward()
            outcomes.append([output, leaf.grad, layer.weight.grad, layer.bias.grad])
        torch.testing.assert_close(*outcomes)


@torch.no_grad()
def test_text_projected_once_serves_every_step(sample, text):
    """Keys and values computed beforehand give the same bits as the text itself, at every timestep."""
    unet = tiny(transformer_layers_per_block=(1, 2))
    text_keys_values = unet.project_text(text)
    for timestep in (999, 500, 1):
        expected = unet(sample, timestep, text)
        assert torch.equal(unet(sample, timestep, text_keys_values=text_keys_values), expected)


@torch.no_grad()
def test_each_attention_reads_its_own_keys_and_values(sample, text):
    """Exchanging the projections of two attention modules of the same width changes the output."""
    unet = tiny()
    text_keys_values = unet.project_text(text)
    exchanged = [text_keys_values[1], text_keys_values[0], *text_keys_values[2:]]
    expected = unet(sample, 10, text_keys_values=text_keys_values)
    assert not torch.allclose(unet(sample, 10, text_keys_values=exchanged), expected)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_one_another(sample, text):
    """Each image of a batch, with its own time and text, is what it is alone."""
    unet = tiny()
    together = unet(sample, torch.tensor([10, 700]), text)
    apart = torch.cat([unet(sample[:1], 10, text[:1]), unet(sample[1:], 700, text[1:])])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_order_of_the_text_tokens_does_not_matter(sample, text):
    """Attention sums over the text; positions are the text encoder's concern."""
    unet = tiny()
    torch.testing.assert_close(unet(sample, 10, text.flip(1)), unet(sample, 10, text), atol=1e-5, rtol=0)


@torch.no_grad()
def test_time_text_and_class_all_change_the_output(sample, text):
    """No input that the network takes is lost on the way."""
    unet = tiny(num_class_embeds=3)
    labels = torch.tensor([0, 1])
    reference = unet(sample, 10, text, class_labels=labels)
    for changed in (
        unet(sample, 11, text, class_labels=labels),
        unet(sample, 10, 1.1 * text, class_labels=labels),
        unet(sample, 10, text, class_labels=labels + 1),
        unet(1.1 * sample, 10, text, class_labels=labels),
    ):
        assert (changed - reference).abs().max() > 1e-5


@torch.no_grad()
def test_a_network_that_is_not_told_the_time_gives_the_same_at_every_time(sample, text):
    """Without time conditioning there are no weights for it, and the timestep may be missing."""
    unet = tiny(time_embedding_type="none")
    assert not [name for name in unet.state_dict() if "time_emb" in name]
    assert torch.equal(unet(sample, 1, text), unet(sample, None, text))


@torch.no_grad()
def test_pixels_in_and_out_without_text():
    """A pixel-space network takes pictures of any size, and projects no text."""
    unet = tiny(**NO_TEXT, in_channels=3, out_channels=3)
    assert unet(torch.zeros(1, 3, 13, 10), 5).shape == (1, 3, 13, 10)
    assert all(projections == [] for projections in unet.project_text(None))


def outcome(unet, *inputs):
    """The output, the gradient of every weight, and the number of tensors that the backward pass remembered."""
    remembered = []

    def remember(tensor):
        remembered.append(tensor)
        return tensor

    unet.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        output = unet(*inputs)
    output.square().sum().backward()
    return output, {name: weight.grad.clone() for name, weight in unet.named_parameters()}, len(remembered)


def test_gradient_checkpointing_changes_neither_output_nor_gradients(sample, text):
    """What is run again gives the same, and it is really run again: far fewer tensors are remembered."""
    unet = tiny(transformer_layers_per_block=2)
    output, gradients, remembered = outcome(unet, sample, 10, text)
    unet.enable_gradient_checkpointing()
    same_output, same_gradients, remembered_less = outcome(unet, sample, 10, text)
    assert torch.equal(same_output, output)
    assert remembered_less < remembered / 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, msg=name)


def test_every_weight_gets_a_gradient(sample, text):
    """Nothing in the network is disconnected from its output."""
    unet = tiny(num_class_embeds=3, time_cond_proj_dim=6)
    unet(sample, 10, text, class_labels=torch.tensor([0, 2]), timestep_cond=torch.ones(2, 6)).square().sum().backward()
    assert [name for name, weight in unet.named_parameters() if weight.grad is None] == []


def test_inputs_are_not_changed(sample, text):
    """A sample, a text and residuals can be used again after the call."""
    unet = tiny()
    kept = sample.clone(), text.clone()
    with torch.no_grad():
        unet(sample, 10, text)
    assert torch.equal(sample, kept[0])
    assert torch.equal(text, kept[1])


@torch.no_grad()
def test_half_the_precision_stays_near_the_full_one(sample, text):
    """In bfloat16 every step runs, and the output differs by that format's rounding only."""
    unet = tiny()
    expected = unet(sample, 901, text)
    half = unet.to(torch.bfloat16)(sample.bfloat16(), 901, text.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_saved_and_loaded_again_it_gives_the_same_bits(sample, text, tmp_path):
    """diffusers' own save and load work on it."""
    unet = tiny()
    unet.save_pretrained(tmp_path)
    assert torch.equal(UNet.from_pretrained(tmp_path)(sample, 10, text), unet(sample, 10, text))


def test_timestep_embedding_has_unit_length_pairs_and_the_stated_frequencies():
    """sin^2 + cos^2 = 1 for each frequency; the first turns by 1 a step, with shift 1 the last by 1/10000."""
    timesteps = torch.tensor([0.0, 1.0, 250.5])
    waves = timestep_embedding(timesteps, 8, flip_sin_to_cos=True, freq_shift=1)
    cosines, sines = waves.chunk(2, dim=-1)
    torch.testing.assert_close(cosines.square() + sines.square(), torch.ones(3, 4))
    torch.testing.assert_close(sines[1, 0].item(), math.sin(1))
    torch.testing.assert_close(sines[1, -1].item(), math.sin(1e-4))
    flipped = timestep_embedding(timesteps, 8, flip_sin_to_cos=False, freq_shift=1)
    assert torch.equal(flipped, torch.cat([sines, cosines], dim=-1))


def test_a_config_that_stock_wrote_is_taken_as_it_is(tmp_path):
    """Every key of a stock config.json is an argument of ours with the same default, and the reverse."""
    config = {**TINY, **BLOCKS}
    UNet2DConditionModel(**config).save_config(tmp_path)
    stock = json.loads((tmp_path / "config.json").read_text())
    UNet.from_config(stock).save_config(tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())
    assert ours | {"_class_name": None} == stock | {"_class_name": None}


@pytest.mark.parametrize("name", ONLY_VALUES)
def test_a_setting_without_meaning_to_us_is_refused(name):
    """Where stock would compute something else, ours says so, and names the setting."""
    with pytest.raises(ValueError, match=f"^{name}="):
        tiny(**{name: FOREIGN.get(name, True)})


@pytest.mark.parametrize("name", WRONG)
def test_a_value_outside_what_we_take_is_refused(name):
    """Unknown block types, lists of the wrong length and the like are named."""
    with pytest.raises(ValueError, match=f"^{name}="):
        tiny(**{name: WRONG[name]})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"time_embedding_type": "none", "num_class_embeds": 3}, "num_class_embeds"),
        ({"time_embedding_type": "none", "time_cond_proj_dim": 6}, "time_cond_proj_dim"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({**NO_TEXT, "attention_head_dim": (4, 4)}, "attention_head_dim"),
        ({"attention_head_dim": 5}, "16 channels"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, named):
    """A class embedding has no way in without the time embedding; heads must divide the channels; and so on."""
    with pytest.raises(ValueError, match=f"^{named}"):
        tiny(**config)


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        ({}, {"sample": torch.zeros(1, 9, 8, 8)}, r"sample must be \(B, 4, H, W\), got \(1, 9, 8, 8\)"),
        ({}, {"sample": torch.zeros(4, 8, 8)}, "sample must be"),
        ({}, {"encoder_hidden_states": None}, "needs text"),
        ({}, {"encoder_hidden_states": torch.zeros(2, 5, 11)}, r"must be \(B, S, 12\), got \(2, 5, 11\)"),
        ({}, {"text_keys_values": []}, "give one of them"),
        ({}, {"timestep": None}, "needs timestep"),
        ({}, {"class_labels": torch.tensor([0, 1])}, "takes no class_labels"),
        ({"num_class_embeds": 3}, {}, "needs class_labels"),
        ({}, {"timestep_cond": torch.zeros(2, 6)}, "takes no timestep_cond"),
        ({}, {"added_cond_kwargs": {}}, "takes no added_cond_kwargs"),
        ({}, {"mid_block_additional_residual": torch.zeros(2, 32, 4, 4)}, "needs down_block_additional_residuals"),
        ({}, {"down_block_additional_residuals": [torch.zeros(2, 16, 8, 8)]}, "takes no down_block_additional"),
        (NO_TEXT, {}, "takes no text"),
    ],
)
def test_inputs_that_do_not_fit_the_network_are_refused(config, changed, message, sample, text):
    """Nothing is ignored in silence, and nothing missing is made up."""
    inputs = {"sample": sample, "timestep": 10, "encoder_hidden_states": text, **changed}
    with pytest.raises(ValueError, match=message):
        tiny(**config)(**inputs)


def test_a_controlnet_of_another_shape_is_refused(sample, text):
    """Residuals are never paired with the kept outputs by chance: their number must be the same."""
    residuals = {"down_block_additional_residuals": [torch.zeros(2, 16, 8, 8)] * 3}
    with pytest.raises(ValueError, match="zip"):
        tiny()(sample, 10, text, **residuals, mid_block_additional_residual=torch.zeros(2, 32, 4, 4))


def test_a_linear_layer_is_a_convolution_of_single_pixels(monkeypatch):
    """Whichever of the two is faster here, output and gradients are the same to 1e-5."""
    from sdcli.components import attention

    layer = attention.Linear(24, 40)
    tokens = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = []
    for faster in (True, False):
        monkeypatch.setattr(attention, "convolutions_are_faster", lambda faster=faster: faster)
        output = layer(tokens)
        results.append((output, *torch.autograd.grad(output.square().sum(), [tokens, *layer.parameters()])))
    for convolved, multiplied in zip(*results, strict=True):
        torch.testing.assert_close(convolved, multiplied, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_learns_in_float32_on_a_cpu(causal):
    """In bf16 too, under autocast: values and gradients are float32's, rounded."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 3, 7, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    exact = [tensor.detach().float().requires_grad_() for tensor in given]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(*given, causal=causal)
    expected = nn.functional.scaled_dot_product_attention(*exact, is_causal=causal)
    assert torch.equal(mixed, expected.bfloat16())
    backward = torch.randn(2, 3, 7, 8, generator=generator).bfloat16()
    gradients = torch.autograd.grad(mixed, given, backward)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, exact, backward.float()), strict=True):
        assert torch.equal(ours, theirs.bfloat16())
