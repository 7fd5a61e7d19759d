"""Our CLIP equals transformers' on the same weights: outputs, hidden states, loss and gradients, in fp32 on the CPU."""

import inspect

import pytest
import torch
import transformers

from sdcli.components.clip import CLIP, ImageEncoder, TextEncoder, contrastive_loss
from sdcli.components.towers import known_arguments

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5  # of max|ours - stock| / max|stock|
BOS, EOS, ADDED = 47, 48, 49
TINY_TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "projection_dim": 24,
    "bos_token_id": BOS,
}
TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "projection_dim": 24,
}
FAMILIES = {
    "CLIP-L with the legacy end token": {"hidden_act": "quick_gelu", "eos_token_id": 2, "pad_token_id": 1},
    "CLIP-L with the true end token": {"hidden_act": "quick_gelu", "eos_token_id": EOS, "pad_token_id": EOS},
    "OpenCLIP-H": {"hidden_act": "gelu", "num_hidden_layers": 5, "eos_token_id": 2, "pad_token_id": 0},
    "OpenCLIP-bigG": {"hidden_act": "gelu", "hidden_size": 40, "projection_dim": 40, "eos_token_id": 2},
    "deep and narrow, wide layer norm eps": {"num_hidden_layers": 8, "layer_norm_eps": 1e-3, "eos_token_id": EOS},
}


def relative_error(ours: torch.Tensor, stock: torch.Tensor) -> float:
    assert ours.shape == stock.shape
    return ((ours - stock).abs().max() / stock.abs().max()).item()


def shaken(stock: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Move every weight off its initial value, or biases of 0 and norms of 1 would hide a missing one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return stock.eval()


def texts(length: int, highest_is_end: bool) -> torch.Tensor:
    """Four texts of different lengths, padded; one has an added token, unless that would pass for the end."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, BOS, (4, length), generator=generator)
    input_ids[:, 0] = BOS
    for row, end in enumerate((1, 3, length - 3, length - 1)):
        input_ids[row, end] = EOS
        input_ids[row, end + 1 :] = EOS if row % 2 else 0
    if not highest_is_end:
        input_ids[2, 1] = ADDED
    return input_ids


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(2))


def stock_text(config: dict, with_projection: bool) -> torch.nn.Module:
    stock_class = transformers.CLIPTextModelWithProjection if with_projection else transformers.CLIPTextModel
    stock_config = transformers.CLIPTextConfig(**config, attn_implementation="eager")
    return shaken(stock_class(stock_config))


def carry_both_ways(ours: torch.nn.Module, stock: torch.nn.Module) -> None:
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(ours.state_dict(), strict=True)
    ours.eval()


@pytest.mark.parametrize("length", [12, 7])
@pytest.mark.parametrize("with_projection", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_encoder_equals_the_stock_one(family, with_projection, length):
    """Every hidden state, the pooled text and its projection agree, at the full length and below it."""
    config = TINY_TEXT | FAMILIES[family]
    stock = stock_text(config, with_projection)
    ours = TextEncoder(**known_arguments(TextEncoder, stock.config.to_dict()), with_projection=with_projection)
    carry_both_ways(ours, stock)
    input_ids = texts(length, highest_is_end=config["eos_token_id"] == 2)
    with torch.inference_mode():
        output, expected = ours(input_ids), stock(input_ids, output_hidden_states=True)
        pooled = stock.text_model(input_ids).pooler_output if with_projection else expected.pooler_output
    assert len(output.hidden_states) == len(expected.hidden_states) == config["num_hidden_layers"] + 1
    pairs = list(zip(output.hidden_states, expected.hidden_states, strict=True))
    pairs += [(output.last_hidden_state, expected.last_hidden_state), (output.pooler_output, pooled)]
    if with_projection:
        pairs.append((output.text_embeds, expected.text_embeds))
    assert max(relative_error(a, b) for a, b in pairs) <= TOLERANCE


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
@pytest.mark.parametrize("with_projection", [False, True])
def test_clip_skip_takes_the_layer_that_stock_pipelines_take(clip_skip, with_projection):
    """StableDiffusionPipeline reads hidden_states[-(clip_skip + 1)] and applies the final layer norm to it."""
    stock = stock_text(TINY_TEXT | {"eos_token_id": EOS}, with_projection)
    ours = TextEncoder(**known_arguments(TextEncoder, stock.config.to_dict()), with_projection=with_projection)
    carry_both_ways(ours, stock)
    input_ids = texts(12, highest_is_end=True)
    with torch.inference_mode():
        hidden = stock(input_ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        tower = stock.text_model if with_projection else stock
        expected = tower.final_layer_norm(hidden)
        skipped = ours.skip_layers(ours(input_ids), clip_skip)
    assert relative_error(skipped, expected) <= TOLERANCE


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_image_encoder_equals_the_stock_one(hidden_act):
    """Every hidden state, the last one and the projected class token agree."""
    config = TINY_VISION | {"hidden_act": hidden_act}
    stock_config = transformers.CLIPVisionConfig(**config, attn_implementation="eager")
    stock = shaken(transformers.CLIPVisionModelWithProjection(stock_config))
    ours = ImageEncoder(**known_arguments(ImageEncoder, stock.config.to_dict()))
    carry_both_ways(ours, stock)
    pixel_values = images(3)
    with torch.inference_mode():
        output, expected = ours(pixel_values), stock(pixel_values, output_hidden_states=True)
        pooled = stock.vision_model(pixel_values).pooler_output
    pairs = list(zip(output.hidden_states, expected.hidden_states, strict=True))
    pairs += [(output.last_hidden_state, expected.last_hidden_state), (output.pooler_output, pooled)]
    pairs.append((output.image_embeds, expected.image_embeds))
    assert max(relative_error(a, b) for a, b in pairs) <= TOLERANCE


def stock_and_our_clip() -> tuple[torch.nn.Module, CLIP]:
    text_config = TINY_TEXT | {"eos_token_id": EOS, "hidden_size": 40}
    stock_config = transformers.CLIPConfig(text_config=text_config, vision_config=TINY_VISION, projection_dim=24)
    stock = shaken(transformers.CLIPModel(stock_config))
    ours = CLIP(**known_arguments(CLIP, stock.config.to_dict()))
    carry_both_ways(ours, stock)
    return stock, ours


def test_clip_logits_equal_the_stock_ones():
    """Both similarity tables and both kinds of embeddings agree, also with more texts than images."""
    stock, ours = stock_and_our_clip()
    input_ids, pixel_values = texts(12, highest_is_end=False), images(3)
    with torch.inference_mode():
        output, expected = ours(input_ids, pixel_values), stock(input_ids, pixel_values)
    for name in output._fields:
        assert relative_error(getattr(output, name), getattr(expected, name)) <= TOLERANCE, name


def test_contrastive_loss_and_its_gradients_equal_the_stock_ones():
    """One training step: the loss, and its gradient with respect to every weight, agree."""
    stock, ours = stock_and_our_clip()
    input_ids, pixel_values = texts(12, highest_is_end=False), images(4)
    loss = contrastive_loss(ours(input_ids, pixel_values).logits_per_text)
    expected = stock(input_ids, pixel_values, return_loss=True).loss
    assert relative_error(loss, expected) <= TOLERANCE
    loss.backward()
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in stock.named_parameters():
        if name.endswith("k_proj.bias"):  # softmax does not see it: the gradient is 0 but for rounding
            assert gradients[name].abs().max() <= 1e-6 * largest, name
        else:
            assert relative_error(gradients[name], parameter.grad) <= TOLERANCE, name


@pytest.mark.parametrize(
    ("ours", "stock_config"),
    [
        (TextEncoder, transformers.CLIPTextConfig),
        (ImageEncoder, transformers.CLIPVisionConfig),
        (CLIP, transformers.CLIPConfig),
    ],
)
def test_constructor_arguments_are_stock_keys_with_stock_defaults(ours, stock_config):
    """A stock config.json builds the same network with us, whatever it leaves out."""
    stock = stock_config().to_dict()
    for name, parameter in inspect.signature(ours.__init__).parameters.items():
        if name not in ("self", "with_projection", "text_config", "vision_config"):
            assert name in stock and parameter.default == stock[name], name
