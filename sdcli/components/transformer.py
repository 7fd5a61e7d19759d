"""The transformer that both towers of CLIP are made of. Knows neither text nor images.

B batch, L tokens, D width. Every `config` is that of the tower: hidden_size, intermediate_size, num_hidden_layers,
num_attention_heads, hidden_act, layer_norm_eps, attention_dropout, initializer_factor.
"""

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from sdcli.components.layers import attend


def quick_gelu(hidden: Tensor) -> Tensor:
    """The sigmoid form of GELU that OpenAI's CLIP was trained with. Hendrycks and Gimpel 2016 (arXiv:1606.08415)."""
    return hidden * torch.sigmoid(1.702 * hidden)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": nn.functional.gelu}


class SelfAttention(nn.Module):
    """Every token looks at every other one, or (causal) at itself and those before it.

    Reference: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.
    """

    def __init__(self, config: FrozenDict):
        super().__init__()
        width = config.hidden_size
        if width % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {width} is not a multiple of num_attention_heads {config.num_attention_heads}"
            )
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: Tensor, causal: bool) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        query, key, value = (
            project(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L, D / heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, dropout, causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, L, D)


class MLP(nn.Module):
    """Two linear layers with the tower's activation between them."""

    def __init__(self, config: FrozenDict):
        super().__init__()
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {config.hidden_act!r}")
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return self.fc2(self.activation(self.fc1(hidden)))


class TransformerLayer(nn.Module):
    """Attention and MLP, each normalised before and added to what came in."""

    def __init__(self, config: FrozenDict):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden: Tensor, causal: bool) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), causal)
        return hidden + self.mlp(self.layer_norm2(hidden))


class Transformer(nn.Module):
    """The layers that both towers are made of.

    Weights start as in openai/CLIP (clip/model.py, initialize_parameters): what is added to the residual stream is
    scaled down with depth, after Radford et al. 2019 (GPT-2, section 2.3). Transformers differs: it scales query, key
    and value down instead of the attention's output.
    """

    def __init__(self, config: FrozenDict):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))
        into_width = config.initializer_factor * config.hidden_size**-0.5
        onto_stream = into_width * (2 * config.num_hidden_layers) ** -0.5
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                initialize(linear, into_width)
            initialize(attention.out_proj, onto_stream)
            initialize(mlp.fc1, into_width * 2**-0.5)
            initialize(mlp.fc2, onto_stream)

    def forward(self, hidden: Tensor, causal: bool) -> tuple[Tensor, ...]:
        """(B, L, D) to itself and the output of every layer, each (B, L, D)."""
        hidden_states = [hidden]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1], causal))
        return tuple(hidden_states)


def initialize(module: nn.Linear | nn.Embedding | nn.Conv2d, std: float) -> None:
    """Draw the weight from N(0, std²) and set the bias, if any, to 0."""
    nn.init.normal_(module.weight, std=std)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
