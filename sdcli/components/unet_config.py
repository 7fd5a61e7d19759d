"""Which stock configurations the UNet takes: all of those that released models have; the others are refused by name."""

from collections.abc import Mapping, Sequence

# Arguments of stock UNet2DConditionModel that no supported model sets, and the one value they may have.
ONLY_VALUES = {
    "center_input_sample": False,
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,  # stock refuses it too: the number of heads is in `attention_head_dim`
    "dual_cross_attention": False,
    "class_embed_type": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}

PIXEL_CHANNELS = (1, 3)  # of a UNet that needs no VAE: one of grey pictures, one of red, green and blue

# Types of the stages of each part, and the attention they have.
DOWN_BLOCKS = {"DownBlock2D": None, "AttnDownBlock2D": "self", "CrossAttnDownBlock2D": "text"}
MID_BLOCKS = {"UNetMidBlock2D": None, "UNetMidBlock2DCrossAttn": "text"}
UP_BLOCKS = {"UpBlock2D": None, "AttnUpBlock2D": "self", "CrossAttnUpBlock2D": "text"}

TOLD_WITH_THE_TIME = ("num_class_embeds", "time_cond_proj_dim", "addition_embed_type")
OF_TEXT_TIME = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")


def per_level(value: int | Sequence[int], levels: int) -> list[int]:
    """One value for each level, from one for all or a list."""
    return [value] * levels if isinstance(value, int) else list(value)


def check_config(config: Mapping) -> None:
    """Raise a ValueError, naming the argument, where a configuration asks for what our UNet does not do."""
    for name, only in ONLY_VALUES.items():
        _check(config, name, config[name] == only, f"{only!r}")
    for name, known in (
        ("mid_block_type", [*MID_BLOCKS]),
        ("time_embedding_type", ["positional", "none"]),
        ("addition_embed_type", [None, "text_time"]),
    ):
        _check(config, name, config[name] in known, f"one of {known}")
    for name in ("norm_num_groups", "cross_attention_dim"):
        _check(config, name, isinstance(config[name], int), "one whole number")

    levels = len(config["block_out_channels"])
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        types = config[name]
        _check(config, name, len(types) == levels and known.keys() >= set(types), f"{levels} of {[*known]}")
    for name in ("layers_per_block", "transformer_layers_per_block", "attention_head_dim"):
        values = per_level(config[name], levels)
        whole = len(values) == levels and all(isinstance(value, int) for value in values)
        _check(config, name, whole, f"a whole number, or {levels} of them")

    # In stock, the levels of a list are in the wrong order for these blocks on the way up; no model has one.
    if {"AttnDownBlock2D", "AttnUpBlock2D"} & {*config["down_block_types"], *config["up_block_types"]}:
        single = isinstance(config["attention_head_dim"], int)
        _check(config, "attention_head_dim", single, "one whole number beside AttnDownBlock2D and AttnUpBlock2D")
    if config["time_embedding_type"] == "none":
        for name in TOLD_WITH_THE_TIME:
            _check(config, name, config[name] is None, "None where time_embedding_type is 'none'")
    if config["addition_embed_type"] == "text_time":
        for name in OF_TEXT_TIME:
            _check(
                config, name, isinstance(config[name], int), "a whole number where addition_embed_type is 'text_time'"
            )


def _check(config: Mapping, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={config[name]!r} is not supported: it must be {allowed}")
