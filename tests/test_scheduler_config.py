"""Configurations both ways between our scheduler and the scheduler_config.json of diffusers, and what is refused."""

import inspect
import json

import diffusers
import pytest
import torch

from sdcli.components.samplers import SAMPLERS
from sdcli.components.samplers.stock import IDLE, ONLY_VALUE, STOCK_KEYS, family
from sdcli.components.scheduler import Scheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Scheduler configurations as model folders of these kinds have them.
FOLDERS = {
    "sd-1": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        **BETAS,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sd-2-v": {
        "_class_name": "DDIMScheduler",
        **BETAS,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        **BETAS,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "turbo": {
        "_class_name": "EulerAncestralDiscreteScheduler",
        **BETAS,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    },
}
# dpmpp_sde's stock class needs torchsde to be imported; the parity tests give it a stand-in.
WITH_STOCK = [name for name, each in SAMPLERS.items() if name != "dpmpp_sde" and not each.without_counterpart]
OWN_SETTINGS = {
    "dpmpp_2m": {"algorithm_type": "dpmsolver++"},
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpmpp_3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
}


def stock_class(name: str) -> type:
    return getattr(diffusers, SAMPLERS[name].stock_class)


def written_by(stock) -> dict:
    """The scheduler_config.json that a stock scheduler would write."""
    return json.loads(stock.to_json_string())


@pytest.mark.parametrize("name", WITH_STOCK)
def test_the_tables_know_every_key_of_the_stock_classes(name):
    """Each key is translated, refused unless at its one value, or without effect: none is overlooked."""
    keys = set(inspect.signature(stock_class(name).__init__).parameters) - {"self"}
    assert keys == {*STOCK_KEYS[family(name)], *ONLY_VALUE.get(family(name), {}), *IDLE.get(family(name), {})}


@pytest.mark.parametrize("name", WITH_STOCK)
def test_a_stock_file_with_defaults_comes_back_as_it_was(name):
    """What a stock class writes of itself, read by us, is what we write: every key, and the class."""
    stock = stock_class(name)(**OWN_SETTINGS.get(name, {}))
    ours = Scheduler.from_config(written_by(stock))
    assert ours.sampler == name
    assert ours.stock_config() == written_by(stock)


@pytest.mark.parametrize("name", WITH_STOCK)
def test_keys_that_a_file_leaves_out_are_at_the_stock_classs_default(name):
    """A file with nothing but the class is the stock class made without arguments."""
    ours = Scheduler.from_config({"_class_name": SAMPLERS[name].stock_class, **OWN_SETTINGS.get(name, {})})
    assert ours.stock_config() == written_by(stock_class(name)(**OWN_SETTINGS.get(name, {})))


@pytest.mark.parametrize("name", SAMPLERS)
def test_save_pretrained_writes_the_stock_file_and_reads_it_again(name, tmp_path):
    """The file names the stock class and has its keys; from it comes the same scheduler."""
    settings = {"sigma_schedule": "karras"} if SAMPLERS[name].sigma_schedules else {}
    ours = Scheduler(sampler=name, timestep_spacing="trailing", prediction_type="v_prediction", **settings)
    ours.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text(encoding="utf-8"))
    assert written == ours.stock_config()
    assert written["_class_name"] == SAMPLERS[name].stock_class
    again = Scheduler.from_pretrained(tmp_path)
    assert (again.sampler, again.sigma_schedule) == (ours.sampler, ours.sigma_schedule)
    assert again.stock_config() == written


def test_a_sampler_without_a_counterpart_is_known_again_and_stock_takes_the_nearest_class(tmp_path):
    """Our name stands in the file beside DDPMScheduler, which stock makes of it with the same noise schedule."""
    ours = Scheduler(sampler="langevin", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    ours.save_pretrained(tmp_path)
    stock = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    assert torch.equal(stock.alphas_cumprod, ours.alphas_cumprod)
    assert (stock.config.prediction_type, stock.config.clip_sample) == ("v_prediction", False)
    assert Scheduler.from_pretrained(tmp_path).sampler == "langevin"
    assert Scheduler.from_config(written_by(diffusers.DDPMScheduler())).sampler == "ddpm"
    assert Scheduler.from_config(ours.stock_config(), sampler="euler").sampler == "euler"


@pytest.mark.parity
@pytest.mark.parametrize("name", WITH_STOCK)
@pytest.mark.parametrize("folder", FOLDERS)
def test_changing_the_sampler_keeps_the_noise_schedule_as_in_diffusers(folder, name):
    """`Scheduler.from_config(config, sampler=...)` is `XScheduler.from_config(config)`: the same configuration."""
    settings = OWN_SETTINGS.get(name, {})
    schedule = {"use_karras_sigmas": True} if SAMPLERS[name].sigma_schedules else {}
    stock = stock_class(name).from_config(FOLDERS[folder], **settings, **schedule)
    asked = "karras" if schedule else None
    ours = Scheduler.from_config(FOLDERS[folder], sampler=name, sigma_schedule=asked)
    expected = {key: value for key, value in written_by(stock).items() if key in ours.stock_config()}
    assert ours.stock_config() == expected
    assert torch.equal(ours.alphas_cumprod, stock.alphas_cumprod)


def test_changing_the_sampler_of_a_live_scheduler_is_the_same_as_of_its_file():
    """Both of ours and of stock: what the first class left to its default, the next takes at its own."""
    file = written_by(diffusers.PNDMScheduler.from_config(FOLDERS["sd-1"]))
    live = diffusers.PNDMScheduler.from_config(FOLDERS["sd-1"]).config
    ours = Scheduler.from_config(file)
    for sampler in ("euler", "ddim", "dpmpp_2m"):
        expected = stock_class(sampler).from_config(live)
        assert Scheduler.from_config(live, sampler=sampler).stock_config() == {
            key: value
            for key, value in written_by(expected).items()
            if key in Scheduler(sampler=sampler).stock_config()
        }
        assert Scheduler.from_config(ours.config, sampler=sampler).betas.equal(expected.betas)
        assert Scheduler.from_config(ours.config, sampler=sampler).config.steps_offset == 1


def test_a_scheduler_made_by_hand_is_copied_with_all_its_values():
    """`from_config(scheduler.config)` is the same scheduler, also where it had the constructor's defaults."""
    ours = Scheduler(sampler="dpmpp_2m", solver_order=3, sigma_schedule="beta")
    assert Scheduler.from_config(ours.config).stock_config() == ours.stock_config()
    assert Scheduler.from_config(ours.config, prediction_type="sample").config.prediction_type == "sample"


def test_the_sampler_that_is_asked_for_says_the_order():
    """dpmpp_2m is of second order, and dpmpp_3m_sde of third, whatever the file was for."""
    file = written_by(diffusers.DPMSolverMultistepScheduler(solver_order=3))
    assert Scheduler.from_config(file).config.solver_order == 3
    assert Scheduler.from_config(file, sampler="dpmpp_2m").config.solver_order == 2
    assert Scheduler.from_config(file, sampler="dpmpp_3m_sde").config.solver_order == 3
    assert Scheduler.from_config(file, sampler="dpmpp_2m", solver_order=1).config.solver_order == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler.*known: DDIM"),
        ({"_class_name": "EDMEulerScheduler", "sampler_": 1}, "EDMEulerScheduler"),
        ({"_class_name": "DPMSolverSinglestepScheduler"}, "give a sampler to use its noise schedule"),
        ({}, "no sampler for scheduler class 'None'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "algorithm_type.*'dpmsolver'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas = True"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas = True"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "rk4"},
            "solver_type.*midpoint, heun, got 'rk4'",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order.*got 4"),
        ({"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 7}, "noise_sampler_seed = 7"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0 = False"),
        ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": False}, "unipc cannot reach sigma 0"),
        (
            {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"},
            "interpolation_type = 'log_linear'",
        ),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type = 'continuous'"),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True},
            "only one sigma schedule",
        ),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "beta_schedule.*got 'laplace'"),
        ({"_class_name": "DDPMScheduler", "variance_type": "odd"}, "variance_type.*got 'odd'"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}, "prediction_type.*'flow_prediction'"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "even"}, "timestep_spacing.*got 'even'"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}, "trained_betas must have.*1000 numbers, got 2"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "pndm.*must not be 'sample'"),
    ],
)
def test_what_would_change_the_picture_and_is_not_implemented_is_refused(config, words):
    """Never ignored: the message names the key and its value, or the class."""
    with pytest.raises(ValueError, match=words):
        Scheduler.from_config(config)


def test_a_singlestep_file_can_be_sampled_by_naming_a_sampler():
    """Its noise schedule is like any other's."""
    file = written_by(diffusers.DPMSolverSinglestepScheduler(**BETAS, prediction_type="v_prediction"))
    ours = Scheduler.from_config(file, sampler="dpmpp_2m")
    assert ours.config.prediction_type == "v_prediction" and ours.config.beta_end == 0.012


@pytest.mark.parametrize("config", [FOLDERS["sdxl"] | {"made_up": 1}, FOLDERS["sd-1"] | {"use_karras_sigmas": True}])
def test_keys_without_effect_in_the_stock_class_are_no_reason_to_refuse(config):
    """A key of nobody's, and one of another class: stock ignores them, and the picture is the same."""
    known = {key: value for key, value in config.items() if key not in ("made_up", "use_karras_sigmas")}
    assert Scheduler.from_config(config).stock_config() == Scheduler.from_config(known).stock_config()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "eular"}, "unknown sampler 'eular'; did you mean 'euler'"),
        ({"sampler": "ddim", "sigma_schedule": "karras"}, "ddim has no sigma_schedule 'karras'.*dpmpp_2m"),
        ({"sampler": "euler", "sigma_schedule": "cosine"}, "normal, karras, exponential, beta, got 'cosine'"),
        ({"sampler": "dpmpp_3m_sde", "solver_order": 2}, "solver_order of sampler dpmpp_3m_sde must be one of 3"),
        ({"sampler": "dpmpp_2m", "solver_order": 0}, "solver_order of sampler dpmpp_2m must be one of 2, 1, 3, got 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be positive, got 0"),
        ({"final_sigmas_type": "one"}, "zero, sigma_min, got 'one'"),
    ],
)
def test_constructor_arguments_that_no_sampler_can_follow_are_refused(arguments, words):
    """With what is allowed in the message."""
    with pytest.raises(ValueError, match=words):
        Scheduler(**arguments)
