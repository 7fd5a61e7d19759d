"""What diffusers' own tests state of its schedulers and models, held by ours.

The figures of LOOPS are those that stand in diffusers' tests/schedulers, which made them with the samples and the model
below; the properties of networks are those of its tests/models/testing_utils/common.py.
"""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch

from sdcli.components.clip import TextEncoder
from sdcli.components.samplers import SAMPLERS
from sdcli.components.scheduler import Scheduler
from sdcli.components.unet import UNet
from sdcli.components.vae import VAE

COUNT = 4 * 3 * 8 * 8
CLEAN = (torch.arange(COUNT).reshape(3, 8, 8, 4) / COUNT).permute(3, 0, 1, 2)
NOISE = (torch.arange(COUNT).flip(-1).reshape(3, 8, 8, 4) / COUNT).permute(3, 0, 1, 2)

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
LONGER = {**LINEAR, "num_train_timesteps": 1100}
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SOLVER = {**LINEAR, "lower_order_final": False, "final_sigmas_type": "sigma_min", "sample_max_value": 1.0}
UNIPC = {**LINEAR, "final_sigmas_type": "sigma_min"}
VELOCITY = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
SMALL_BETA = {"beta_start": 0.01}
LOOPS = [  # sampler, configuration, steps, steps left out at the beginning, mean magnitude at the end
    ("ddpm", LINEAR, 1000, 0, 0.3372),
    ("ddpm", {**LINEAR, **VELOCITY}, 1000, 0, 0.2631),
    ("ddpm", LINEAR, 1000, 998, 0.5051),
    ("ddim", LINEAR, 10, 0, 0.223967),
    ("ddim", {**LINEAR, **VELOCITY}, 10, 0, 0.0684),
    ("ddim", {**LINEAR, **SMALL_BETA, "set_alpha_to_one": True}, 10, 0, 0.1951),
    ("ddim", {**LINEAR, **SMALL_BETA, "set_alpha_to_one": False}, 10, 0, 0.1941),
    ("ddim", LINEAR, 10, 8, 0.4616),
    ("pndm", LINEAR, 10, 0, 0.2580),
    ("pndm", {**LINEAR, **VELOCITY}, 10, 0, 0.0878),
    ("pndm", {**LINEAR, **SMALL_BETA, "set_alpha_to_one": True}, 10, 0, 0.2995),
    ("pndm", {**LINEAR, **SMALL_BETA, "set_alpha_to_one": False}, 10, 0, 0.2434),
    ("euler", LONGER, 10, 0, 0.0131),
    ("euler", {**LONGER, **VELOCITY}, 10, 0, 2.2676e-06),
    ("euler", {**LONGER, **KARRAS}, 10, 0, 0.162139),
    ("euler_a", LONGER, 10, 0, 0.1983),
    ("euler_a", {**LONGER, **VELOCITY}, 10, 0, 0.1412),
    ("euler_a", LONGER, 10, 8, 73.1290),
    ("lms", LONGER, 10, 0, 1.31),
    ("lms", {**LONGER, **VELOCITY}, 10, 0, 2.2676e-06),
    ("lms", {**LONGER, **KARRAS}, 10, 0, 4.9648),
    ("heun", LONGER, 10, 0, 0.0002),
    ("heun", {**LONGER, **VELOCITY}, 10, 0, 6.1112e-10),
    ("heun", {**LONGER, **KARRAS}, 10, 0, 1.9870e-07),
    ("dpm2", LONGER, 10, 0, 0.0266),
    ("dpm2", {**LONGER, **VELOCITY}, 10, 0, 6.1112e-10),
    ("dpm2", LONGER, 10, 8, 91.6776),
    ("dpm2_a", LONGER, 10, 0, 18.2030),
    ("dpm2_a", {**LONGER, **VELOCITY}, 10, 0, 0.4320),
    ("dpm2_a", LONGER, 10, 8, 121.2074),
    ("dpmpp_2m", SOLVER, 10, 0, 0.3301),
    ("dpmpp_2m", {**SOLVER, **VELOCITY}, 10, 0, 0.2251),
    (
        "dpmpp_2m",
        {**SOLVER, "thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5},
        10,
        0,
        1.1364,
    ),
    ("unipc", UNIPC, 10, 0, 0.2464),
    ("unipc", {**UNIPC, **KARRAS}, 10, 0, 0.2925),
    ("unipc", {**UNIPC, **VELOCITY}, 10, 0, 0.1014),
    ("unipc", {**UNIPC, **VELOCITY, **KARRAS}, 10, 0, 0.1966),
    ("unipc", UNIPC, 10, 8, 0.4109),
    ("deis", LINEAR, 10, 0, 0.23916),
    ("deis", {**LINEAR, **VELOCITY}, 10, 0, 0.091),
    ("deis", LINEAR, 10, 8, 0.41054),
    ("lcm", SCALED, 1, 0, 0.0244),
    ("lcm", SCALED, 10, 0, 0.2575),
    ("tcd", SCALED, 1, 0, 0.0389),
    ("tcd", SCALED, 10, 0, 0.2359),
]
MULTISTEP = ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc", "deis")


def scheduler_of(name: str, config: dict) -> Scheduler:
    """Ours, from what a scheduler_config.json of stock's class says."""
    return Scheduler.from_config({"_class_name": SAMPLERS[name].stock_class, **config}, sampler=name)


def loop(scheduler: Scheduler, steps: int, left_out: int = 0) -> torch.Tensor:
    """The last sample, with a model that says the sample, but for the cleanest times."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[left_out * scheduler.order :]
    sample = CLEAN * scheduler.init_noise_sigma
    if left_out:
        sample = scheduler.add_noise(sample, NOISE, timesteps[:1])
    for timestep in timesteps:
        shown = scheduler.scale_model_input(sample, timestep)
        output = shown * timestep / (timestep + 1)
        # Stock's loops go on from what the model was shown, which only dummies do.
        sample = scheduler.step(output, timestep, shown, generator=generator).prev_sample
    return sample


def label(value) -> str:
    """A short name of a configuration for pytest."""
    known = {**SCALED, **LONGER, **SOLVER}
    return "-".join(key for key in value if value[key] != known.get(key)) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("name", "config", "steps", "left_out", "mean"), LOOPS, ids=label)
def test_whole_loops_end_where_diffusers_tests_say(name, config, steps, left_out, mean):
    """To the digits that are given there; from pure noise, and from noise on a sample."""
    ended = loop(scheduler_of(name, config), steps, left_out)
    assert ended.abs().mean().item() == pytest.approx(mean, rel=3e-3, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("ddim", 5, [801, 601, 401, 201, 1]),
        ("pndm", 10, [901, *(t for t in range(851, 600, -50) for _ in range(2)), 501, 401, 301, 201, 101, 1]),
    ],
)
def test_timesteps_with_an_offset(name, steps, expected):
    scheduler = scheduler_of(name, {**LINEAR, "steps_offset": 1})
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == expected


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_scheduler_that_was_others_meanwhile_is_the_same(name):
    """From configuration to configuration through every multistep sampler, and back."""
    first = scheduler_of(name, LINEAR)
    config = first.config
    for other in (*MULTISTEP, name):
        config = Scheduler.from_config(dict(config), sampler=other).config
    assert torch.equal(loop(Scheduler.from_config(dict(config)), 10), loop(first, 10))


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_gives_numbers(name):
    """In each prediction type, with little noise and much, and with a cosine's, of which nothing is left."""
    kinds = ("epsilon", "v_prediction")
    for steps, prediction_type in itertools.product((1, 2, 3, 5, 10, 25), kinds):
        for schedule in (LINEAR, {**SCALED, "beta_end": 0.05}, {"beta_schedule": "squaredcos_cap_v2"}):
            scheduler = scheduler_of(name, {**schedule, "prediction_type": prediction_type, "skip_prk_steps": True})
            assert loop(scheduler, steps).isfinite().all(), (steps, prediction_type, schedule)


def test_numbers_of_steps_that_cannot_be_are_refused():
    """None at all, and for pndm with Runge-Kutta steps less than those take."""
    for name in SAMPLERS:
        with pytest.raises(ValueError, match="0"):
            scheduler_of(name, LINEAR).set_timesteps(0)
    for steps in (1, 2, 3):
        with pytest.raises(ValueError, match="4"):
            scheduler_of("pndm", {**LINEAR, "skip_prk_steps": False}).set_timesteps(steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_trained_betas_are_saved_and_loaded(name, tmp_path):
    """As plain numbers."""
    config = {"trained_betas": [0.1, 0.3], "num_train_timesteps": 2}
    scheduler = scheduler_of(name, config)
    scheduler.save_pretrained(tmp_path)
    loaded = Scheduler.from_pretrained(tmp_path)
    assert torch.equal(scheduler.betas, loaded.betas)
    assert scheduler.betas.tolist() == pytest.approx(config["trained_betas"])


TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 10,
    "eos_token_id": 39,
}
LEVELS = {"block_out_channels": (32, 64), "norm_num_groups": 8}
UNET = {
    **LEVELS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": (8, 16),
    "use_linear_projection": True,
    "sample_size": 32,
}
VAE_OF_TWO = {
    **LEVELS,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 16,
}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def out_of_unet(unet: UNet) -> torch.Tensor:
    return unet(drawn(2, 4, 32, 32).to(unet.dtype), torch.tensor([10]), drawn(2, 4, 32).to(unet.dtype))


def out_of_vae(vae: VAE) -> torch.Tensor:
    return vae(drawn(2, 3, 32, 32).to(vae.dtype))[0]


def out_of_text_encoder(encoder: TextEncoder) -> torch.Tensor:
    return encoder(torch.tensor([[5, 7, 9, 39, 0, 0, 0, 0, 0, 0]])).last_hidden_state


NETWORKS: dict[str, tuple[type, dict, Callable, tuple[int, ...]]] = {
    "unet": (UNet, UNET, out_of_unet, (2, 4, 32, 32)),
    "vae": (VAE, VAE_OF_TWO, out_of_vae, (2, 3, 32, 32)),
    "text encoder": (TextEncoder, TEXT, out_of_text_encoder, (1, 10, 32)),
}


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kind, config, _, _ = NETWORKS[name]
    return kind(**config).eval()


def out_of(model: torch.nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return NETWORKS[name][2](model)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_one_answer_of_its_shape(name):
    """Today and tomorrow, without a generator."""
    model = network(name)
    assert out_of(model, name).shape == NETWORKS[name][3]
    assert torch.equal(out_of(model, name), out_of(model, name))


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "20KB"}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_saved_and_loaded(name, options, tmp_path):
    """By diffusers' own methods: plain, as a variant, which only that name finds, and in shards."""
    model = network(name)
    model.save_pretrained(tmp_path, **options)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or "max_shard_size" not in options
    kind, variant = type(model), {key: options[key] for key in options if key == "variant"}
    assert torch.equal(out_of(kind.from_pretrained(tmp_path, **variant), name), out_of(model, name))
    if variant:
        with pytest.raises(OSError, match="no file named"):
            kind.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_half_the_precision_stays_so(name, dtype, tmp_path):
    """Through a file, whether it is loaded lazily or not."""
    network(name).to(dtype).save_pretrained(tmp_path)
    for lazily in (True, False):
        loaded = type(network(name)).from_pretrained(tmp_path, torch_dtype=dtype, low_cpu_mem_usage=lazily)
        assert loaded.dtype == dtype and {each.dtype for each in loaded.parameters()} == {dtype}


@pytest.mark.parametrize("name", ["unet", "vae"])  # stock's text encoders have no such method
def test_layers_may_be_kept_in_fewer_bits(name):
    """`enable_layerwise_casting`: weights wait in fp8, and are cast when their layer is called."""
    model = network(name)
    expected = out_of(model, name)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.float8_e4m3fn in {each.dtype for each in model.parameters()}
    difference = out_of(model, name) - expected
    assert 0 < difference.norm() < 0.5 * expected.norm()


def test_tiling_may_be_switched_off_again():
    """Then a VAE is as it was."""
    vae = network("vae")
    expected = out_of(vae, "vae")
    vae.enable_tiling()
    assert not torch.equal(out_of(vae, "vae"), expected)
    vae.disable_tiling()
    assert torch.equal(out_of(vae, "vae"), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_is_the_same_network(name):
    """With hooks or without, as averages of weights are made."""
    model = network(name)
    assert torch.equal(out_of(copy.deepcopy(model), name), out_of(model, name))
