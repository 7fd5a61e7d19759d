"""Our UNet equals stock UNet2DConditionModel on the same weights and inputs, in fp32 on the CPU, at reduced width.

The error is max|ours - stock| / max|stock|, and the bound 1e-5 everywhere.
"""

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdcli.components.unet import UNet

pytestmark = pytest.mark.parity

BOUND = 1e-5
SIDE = 8
TINY = {
    "block_out_channels": (16, 32, 32, 32),
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
LINEAR = {"use_linear_projection": True, "upcast_attention": True}
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
PIXELS = {"in_channels": 3, "out_channels": 3}
NO_TEXT = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("UpBlock2D",) * 3,
}

FAMILIES = {
    "SD 1": TINY,
    "SD 1 inpainting": {**TINY, "in_channels": 9},
    "SD 2": {**TINY, **LINEAR, "attention_head_dim": (2, 4, 8, 8)},
    "SDXL base": {
        **TINY,
        **LINEAR,
        **TEXT_TIME,
        "block_out_channels": (16, 32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 2, 3),
        "projection_class_embeddings_input_dim": 10 + 6 * 8,
    },
    "SDXL refiner": {
        **TINY,
        **LINEAR,
        **TEXT_TIME,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 8, 8),
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 10 + 5 * 8,
    },
    "LCM": {**TINY, "time_cond_proj_dim": 6},
    "class-conditional": {**TINY, "num_class_embeds": 10},
    "pixel space": {**TINY, **NO_TEXT, **PIXELS, "num_class_embeds": 10, "flip_sin_to_cos": False, "freq_shift": 1},
    "pixel space with attention": {
        **TINY,
        **NO_TEXT,
        **PIXELS,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "layers by level": {**TINY, "layers_per_block": (1, 2, 1, 3), "transformer_layers_per_block": (2, 1, 1, 1)},
}

SDXL = {**LINEAR, **TEXT_TIME, "addition_time_embed_dim": 256}
FULL_SIZE = {  # what the published models differ in from the defaults
    "SD 1.5": {"cross_attention_dim": 768},
    "SD 1.5 inpainting": {"cross_attention_dim": 768, "in_channels": 9},
    "SD 2.1": {**LINEAR, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]},
    "SDXL base": {
        **SDXL,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
    },
    "SDXL refiner": {
        **SDXL,
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
}


def randomize(network, seed=0):
    """Weights that no part of the network hides: norms scale, biases shift, everything else keeps the variance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.copy_(0.2 * noise + (1 if "norm" in name and name.endswith("weight") else 0))


def pair(config):
    """Stock and ours with the same weights, loaded strictly both ways."""
    stock, ours = UNet2DConditionModel(**config), UNet(**config)
    randomize(ours)
    stock.load_state_dict(ours.state_dict(), strict=True)
    randomize(stock, seed=1)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.eval(), ours.eval()


def inputs_of(config, height=SIDE, width=SIDE, batch=2):
    """Every input that a network of this configuration takes."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(batch, *shape, generator=generator)

    inputs = {"sample": normal(config.get("in_channels", 4), height, width), "timestep": torch.tensor([7, 901])}
    reads_text = "mid_block_type" not in config
    inputs["encoder_hidden_states"] = normal(5, config["cross_attention_dim"]) if reads_text else None
    if "num_class_embeds" in config:
        inputs["class_labels"] = torch.tensor([3, 8])
    if "time_cond_proj_dim" in config:
        inputs["timestep_cond"] = normal(config["time_cond_proj_dim"])
    if "addition_embed_type" in config:
        count = (config["projection_class_embeddings_input_dim"] - 10) // config["addition_time_embed_dim"]
        time_ids = torch.randint(0, 1024, (batch, count), generator=generator)
        inputs["added_cond_kwargs"] = {"text_embeds": normal(10), "time_ids": time_ids}
    return inputs


def error_between(ours, stock):
    return ((ours - stock).abs().max() / stock.abs().max()).item()


@torch.no_grad()
def error_of(config, inputs):
    stock, ours = pair(config)
    return error_between(ours(**inputs), stock(**inputs).sample)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_stock(family):
    """Same output from weights that went from ours to stock, and others that came back, strictly by name."""
    config = FAMILIES[family]
    assert error_of(config, inputs_of(config)) <= BOUND


@pytest.mark.parametrize("model", FULL_SIZE)
def test_at_full_size_weights_and_norms_are_stocks(model):
    """Published configurations give published names and shapes, and norms with the same eps (built without memory)."""
    with torch.device("meta"):
        stock, ours = UNet2DConditionModel(**FULL_SIZE[model]), UNet(**FULL_SIZE[model])
    shapes = [{name: weight.shape for name, weight in network.state_dict().items()} for network in (stock, ours)]
    eps = [{name: part.eps for name, part in net.named_modules() if hasattr(part, "eps")} for net in (stock, ours)]
    assert shapes[0] == shapes[1]
    assert eps[0] == eps[1]


@pytest.mark.parametrize(("height", "width"), [(9, 7), (16, 11), (4, 5)])
@pytest.mark.parametrize("family", ["SD 1", "SDXL base"])
def test_sides_that_do_not_halve_evenly_equal_stock(family, height, width):
    """On the way up, every level gets back the exact size that it had on the way down."""
    config = FAMILIES[family]
    assert error_of(config, inputs_of(config, height, width)) <= BOUND


@pytest.mark.parametrize("timestep", [0, 981, 500.25, torch.tensor(33), torch.tensor([999])])
def test_every_way_to_give_the_time_equals_stock(timestep):
    """Whole, fractional, a number or a tensor: one time for the whole batch."""
    assert error_of(TINY, inputs_of(TINY) | {"timestep": timestep}) <= BOUND


def test_lcm_without_its_condition_equals_stock():
    """A network that can be told the guidance scale need not be."""
    config = FAMILIES["LCM"]
    assert error_of(config, inputs_of(config) | {"timestep_cond": None}) <= BOUND


@pytest.mark.parametrize("family", ["SD 1", "SDXL base"])
def test_controlnet_residuals_equal_stock(family):
    """What a ControlNet adds to the kept outputs and to the lowest stage arrives at the same places."""
    config = FAMILIES[family]
    stock, ours = pair(config)
    inputs = inputs_of(config)
    channels = config["block_out_channels"]
    shapes, side = [(channels[0], SIDE)], SIDE
    for level, width in enumerate(channels):
        shapes += [(width, side)] * 2
        if level < len(channels) - 1:
            side //= 2
            shapes.append((width, side))
    generator = torch.Generator().manual_seed(3)
    residuals = [torch.randn(2, width, side, side, generator=generator) for width, side in [*shapes, shapes[-1]]]
    inputs["down_block_additional_residuals"] = tuple(residuals[:-1])
    inputs["mid_block_additional_residual"] = residuals[-1]
    with torch.no_grad():
        assert error_between(ours(**inputs), stock(**inputs).sample) <= BOUND


def test_a_network_that_is_not_told_the_time_equals_stock_with_silent_time_weights():
    """It is stock's network where the time weighs nothing in any residual block."""
    stock = UNet2DConditionModel(**TINY).eval()
    ours = UNet(**TINY, time_embedding_type="none").eval()
    randomize(stock)
    with torch.no_grad():
        for name, weight in stock.named_parameters():
            if "time_emb_proj" in name:
                weight.zero_()
    untimed = {name: weight for name, weight in stock.state_dict().items() if "time_emb" not in name}
    ours.load_state_dict(untimed, strict=True)
    inputs = inputs_of(TINY)
    with torch.no_grad():
        assert error_between(ours(**inputs | {"timestep": None}), stock(**inputs).sample) <= BOUND


def gradients_of(network, config):
    """Of a squared error, by every weight and by the inputs that are real numbers."""
    inputs = inputs_of(config)
    leaves = {name: inputs[name] for name in ("sample", "encoder_hidden_states") if inputs[name] is not None}
    for leaf in leaves.values():
        leaf.requires_grad_()
    output = network(**inputs)
    output = output if isinstance(output, torch.Tensor) else output.sample
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    (output - target).square().mean().backward()
    return {name: leaf.grad for name, leaf in [*network.named_parameters(), *leaves.items()]}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["SD 1", "SDXL base", "pixel space with attention"])
def test_gradients_equal_stock(family, checkpointing):
    """One step's gradient of every weight, of the sample and of the text, relative to the largest of them all.

    Not each to its own largest: some gradients, such as that of a key's bias, which attention cannot see, are sums
    that cancel, and the rounding of their terms is all that is left.
    """
    config = FAMILIES[family]
    stock, ours = pair(config)
    if checkpointing:
        ours.enable_gradient_checkpointing()
    expected, found = gradients_of(stock, config), gradients_of(ours, config)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= BOUND * largest, name
