"""Every sampler follows its diffusers counterpart along whole trajectories: schedule, levels, timesteps and steps.

The error is max|a - b| / max|b| of the sample after each call. The model is a smooth nonlinear function of sample and
timestep, sized like a real one so that samples keep about unit variance; noise comes from equally seeded generators.
"""

import copy
import functools
import inspect
import itertools
import json
import sys
import types
from importlib import import_module

import diffusers
import pytest
import torch

from sdcli.components.samplers import SAMPLERS
from sdcli.components.scheduler import Scheduler

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
SPACINGS = ("leading", "linspace", "trailing")
SIGMA_FLAGS = {
    "normal": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# How the stock class of each sampler has to be configured to be that sampler.
EXTRA = {
    "ddpm": {"clip_sample": False},
    "ddim": {"clip_sample": False},
    "pndm": {"skip_prk_steps": True},
    "dpmpp_2m": {"algorithm_type": "dpmsolver++"},
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpmpp_3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
}
WITH_COUNTERPART = [name for name, sampler in SAMPLERS.items() if not sampler.without_counterpart]
# The counterparts of these raise NotImplementedError, or ValueError (pndm), at prediction_type "sample".
WITHOUT_SAMPLE_PREDICTION = ("pndm", "euler_a", "dpm2", "dpm2_a", "dpmpp_sde")
# Compared in float64, because of the rounding of stock's float32 (for lms, of any): see the last two tests.
IN_FLOAT64 = ("lms", "deis")


class BrownianPath:
    """Stands in for torchsde's tree: one Brownian path, found step by step from its noisy end by a seeded generator."""

    generator = torch.Generator()

    def __init__(self, t0, t1, size, dtype, **_):
        self.size, self.dtype = size, dtype
        self.points = {}

    def at(self, sigma: float) -> torch.Tensor:
        if not self.points:
            self.points[sigma] = torch.zeros(self.size, dtype=self.dtype)
        if sigma not in self.points:
            before = min(self.points)
            assert sigma < before, "the scheduler looked back on the path"
            drawn = torch.randn(self.size, generator=BrownianPath.generator, dtype=self.dtype)
            self.points[sigma] = self.points[before] + (before - sigma) ** 0.5 * drawn
        return self.points[sigma]

    def __call__(self, low, high):
        # diffusers asks for the increment upwards and turns the sign; the path runs downwards.
        noisy, clean = self.at(float(high)), self.at(float(low))
        return noisy - clean


class MendedThirdOrder(diffusers.DPMSolverMultistepScheduler):
    """Stock's third order of sde-dpmsolver++, with +1/2 where it has -1/2 (`curvature_weight` says why)."""

    def multistep_dpm_solver_third_order_update(self, model_output_list, *args, sample=None, noise=None, **kwargs):
        stepped = super().multistep_dpm_solver_third_order_update(
            model_output_list, *args, sample=sample, noise=noise, **kwargs
        )
        levels = [self.sigmas[self.step_index + 1 - back] for back in range(4)]
        lambdas = [-level.log() for level in levels]
        step, *before = [newer - older for newer, older in itertools.pairwise(lambdas)]
        newest, middle, oldest = model_output_list[::-1]
        curvature = (newest - middle) / (before[0] / step) - (middle - oldest) / (before[1] / step)
        return stepped + curvature / (before[0] / step + before[1] / step) / (levels[0] ** 2 + 1) ** 0.5


@pytest.fixture
def stock_class(monkeypatch):
    """From a sampler's name to its stock class; torchsde, which DPMSolverSDEScheduler needs, has a stand-in."""
    monkeypatch.setitem(sys.modules, "torchsde", types.SimpleNamespace(BrownianInterval=BrownianPath))
    monkeypatch.delitem(sys.modules, "diffusers.schedulers.scheduling_dpmsolver_sde", raising=False)
    with_tree = import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    # The stand-in must not stay behind in diffusers for other tests.
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_dpmsolver_sde", with_tree)

    def find(name: str) -> type:
        if name == "dpmpp_sde":
            return with_tree.DPMSolverSDEScheduler
        return MendedThirdOrder if name == "dpmpp_3m_sde" else getattr(diffusers, SAMPLERS[name].stock_class)

    return find


def model_output(shown: torch.Tensor, timestep: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """A stand-in for a network."""
    time = float(timestep) / 1000
    angle = torch.tensor(0.05 + 1.45 * time, dtype=shown.dtype)
    ripple = 0.1 * torch.sin(3 * shown + 5 * time)
    if prediction_type == "epsilon":
        return angle.sin() * shown + ripple
    if prediction_type == "sample":
        return angle.cos() * torch.tanh(shown) + ripple
    return 0.3 * torch.tanh(shown) + ripple


def ours_from(stock, name: str, **overrides) -> Scheduler:
    """Our scheduler from the file that stock would write."""
    config = json.loads(stock.to_json_string()) | {"_class_name": SAMPLERS[name].stock_class}
    ours = Scheduler.from_config(config, **overrides)
    assert ours.sampler == name
    return ours


def trajectory(scheduler, eta: float = 0.0, begin: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The sample after every call; `set_timesteps` was called before."""
    generator = torch.Generator().manual_seed(1)
    BrownianPath.generator = generator
    accepted = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in {"generator": generator, "eta": eta}.items() if key in accepted}
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if dtype == torch.float64 and not isinstance(scheduler, Scheduler):
        scheduler.sigmas = scheduler.sigmas.double()
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    sample = noise * float(scheduler.init_noise_sigma)
    if begin:
        sample = scheduler.add_noise(0.5 * torch.cos(noise), noise, scheduler.timesteps[begin].repeat(2))
    samples = []
    for timestep in scheduler.timesteps[begin:]:
        shown = scheduler.scale_model_input(sample, timestep)
        output = model_output(shown, timestep, scheduler.config.prediction_type)
        sample = scheduler.step(output, timestep, sample, **options, return_dict=False)[0]
        samples.append(sample)
    return samples


def worst_error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Over all calls; infinite where anything is not finite."""
    assert len(actual) == len(expected)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(actual, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def same_plan(ours: Scheduler, stock) -> bool:
    """The model is told the same timesteps; fractional ones to within float32's rounding of log sigma."""
    tolerance = 0 if stock.timesteps.dtype == torch.int64 else 2e-3
    return torch.allclose(ours.timesteps.double(), stock.timesteps.double(), rtol=0, atol=tolerance)


def spacings_of(name: str) -> tuple[str, ...]:
    """lcm and tcd go by the timesteps of their distillation, whatever the spacing."""
    return ("leading",) if name in ("lcm", "tcd") else SPACINGS


@pytest.mark.parametrize("name", WITH_COUNTERPART)
def test_whole_trajectories_equal_the_counterparts(name, stock_class):
    """20 and 50 steps, every spacing, every sigma schedule and every prediction type that the counterpart takes."""
    schedules = SIGMA_FLAGS if SAMPLERS[name].sigma_schedules else ("normal",)
    predictions = ("epsilon", "v_prediction", "sample")[: 2 if name in WITHOUT_SAMPLE_PREDICTION else 3]
    dtype = torch.float64 if name in IN_FLOAT64 else torch.float32
    errors = {}
    for steps, spacing, schedule in itertools.product((20, 50), spacings_of(name), schedules):
        config = {**BETAS, "timestep_spacing": spacing, **EXTRA.get(name, {}), **SIGMA_FLAGS[schedule]}
        planned = stock_class(name)(**config)
        planned.set_timesteps(steps)
        if name == "lms":  # scipy's quadrature takes most of the time of this file
            planned.get_lms_coefficient = functools.cache(planned.get_lms_coefficient)
        for prediction_type in predictions:
            stock = copy.copy(planned) if name == "lms" else copy.deepcopy(planned)
            stock.derivatives = []
            stock.register_to_config(prediction_type=prediction_type)
            ours = ours_from(stock, name)
            ours.set_timesteps(steps)
            assert same_plan(ours, stock)
            error = worst_error(trajectory(ours, dtype=dtype), trajectory(stock, dtype=dtype))
            errors[steps, spacing, schedule, prediction_type] = error
    worst = max(errors, key=errors.get)
    assert errors[worst] <= TOLERANCE, f"{errors[worst]:.1e} at {worst}"


ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
VARIANTS = [
    ("ddpm", {"variance_type": "fixed_small_log"}),
    ("ddpm", {"variance_type": "fixed_large"}),
    ("ddpm", {"clip_sample": True, "clip_sample_range": 0.7}),
    ("ddpm", {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}),
    ("ddpm", {"beta_schedule": "sigmoid", "timestep_spacing": "trailing"}),
    ("ddpm", ZERO_SNR),
    ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("ddim", {"clip_sample": True}),
    ("ddim", {"thresholding": True}),
    ("ddim", {"beta_schedule": "squaredcos_cap_v2"}),
    ("ddim", {"trained_betas": [0.001 + 1e-5 * t for t in range(1000)]}),
    ("ddim", {"num_train_timesteps": 600}),
    ("ddim", ZERO_SNR),
    ("pndm", {"skip_prk_steps": False}),
    ("pndm", {"skip_prk_steps": False, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    ("pndm", {"set_alpha_to_one": True, "steps_offset": 1}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}),
    ("euler", {"use_exponential_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}),
    ("euler", ZERO_SNR),
    ("euler_a", ZERO_SNR),
    ("heun", {"clip_sample": True}),
    ("heun", {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}),
    ("heun", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("dpmpp_2m", {"solver_order": 1}),
    ("dpmpp_2m", {"solver_order": 3}),
    ("dpmpp_2m", {"solver_order": 3, "lower_order_final": False}),
    ("dpmpp_2m", {"solver_type": "heun"}),
    ("dpmpp_2m", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}),
    ("dpmpp_2m", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}),
    ("dpmpp_2m", {"lambda_min_clipped": -2.0, "timestep_spacing": "trailing"}),
    ("dpmpp_2m", {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}),
    ("dpmpp_2m", {"thresholding": True}),
    ("dpmpp_2m", ZERO_SNR),
    ("dpmpp_2m_sde", {"solver_order": 1}),
    ("dpmpp_2m_sde", {"solver_type": "heun"}),
    ("dpmpp_2m_sde", {"final_sigmas_type": "sigma_min"}),
    ("dpmpp_3m_sde", {"lower_order_final": False}),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("unipc", {"disable_corrector": [0, 1, 2]}),
    ("unipc", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("unipc", {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}),
    ("unipc", {"thresholding": True}),
    ("unipc", ZERO_SNR),
    ("deis", {"solver_order": 1}),
    ("deis", {"solver_order": 3}),
    ("deis", {"lower_order_final": False}),
    ("deis", {"thresholding": True}),
    ("lcm", {"clip_sample": True}),
    ("lcm", {"timestep_scaling": 3.0, "original_inference_steps": 40}),
    ("lcm", ZERO_SNR),
    ("tcd", ZERO_SNR),
]


def label(value) -> str:
    """A short name of a variant for pytest."""
    return "-".join(map(str, value)) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=label)
def test_configurations_equal_the_counterparts(name, changes, stock_class):
    """Other values of the stock keys, at 7 steps (where multistep solvers lower their order) and at 20."""
    # Seven karras steps from the cosine schedule's sigma of 20,000 magnify any rounding.
    wild = changes.get("beta_schedule") == "squaredcos_cap_v2" and "use_karras_sigmas" in changes
    dtype = torch.float64 if wild or name in IN_FLOAT64 else torch.float32
    for steps in (7, 20):
        stock = stock_class(name)(**{**BETAS, **EXTRA.get(name, {}), **changes})
        stock.set_timesteps(steps)
        ours = ours_from(stock, name)
        ours.set_timesteps(steps)
        assert same_plan(ours, stock)
        assert worst_error(trajectory(ours, dtype=dtype), trajectory(stock, dtype=dtype)) <= TOLERANCE


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_eta_means_what_it_means_in_the_counterparts(name, eta, stock_class):
    """Share of fresh noise: eta of ddim, gamma of tcd."""
    for spacing in spacings_of(name):
        stock = stock_class(name)(**BETAS, **EXTRA.get(name, {}), timestep_spacing=spacing)
        stock.set_timesteps(20)
        ours = ours_from(stock, name)
        ours.set_timesteps(20)
        assert worst_error(trajectory(ours, eta=eta), trajectory(stock, eta=eta)) <= TOLERANCE


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variance_equals_the_counterpart(variance_type):
    """A model with twice the channels says how much fresh noise to add, itself or between the two fixed variances."""
    stock = diffusers.DDPMScheduler(**BETAS, clip_sample=False, variance_type=variance_type)
    ours = ours_from(stock, "ddpm")
    samples = {}
    for scheduler in (stock, ours):
        scheduler.set_timesteps(20)
        generator = torch.Generator().manual_seed(1)
        sample = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        samples[scheduler] = []
        for timestep in scheduler.timesteps:
            share = torch.sigmoid(sample) if variance_type == "learned" else torch.tanh(sample)
            output = torch.cat([model_output(sample, timestep, "epsilon"), share], dim=1)
            sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
            samples[scheduler].append(sample)
    assert worst_error(samples[ours], samples[stock]) <= TOLERANCE


@pytest.mark.parametrize("name", [name for name in WITH_COUNTERPART if name not in ("ddpm", "ddim", "pndm", "lms")])
def test_image_to_image_equals_the_counterparts(name, stock_class):
    """Begun in the middle with `set_begin_index` and `add_noise`, as pipelines do that start from a picture.

    Not lms: stock's weighs slopes as if there were some from before the beginning; ours begins with the first order.
    Not ddpm, ddim and pndm, whose stock classes have no begin index.
    """
    schedule = {"use_karras_sigmas": True} if SAMPLERS[name].sigma_schedules else {}
    stock = stock_class(name)(**BETAS, **EXTRA.get(name, {}), **schedule)
    stock.set_timesteps(20)
    ours = ours_from(stock, name)
    ours.set_timesteps(20)
    begin = 8 * ours.order
    dtype = torch.float64 if name in IN_FLOAT64 else torch.float32
    assert (
        worst_error(trajectory(ours, begin=begin, dtype=dtype), trajectory(stock, begin=begin, dtype=dtype))
        <= TOLERANCE
    )


def test_deis_in_float32_is_closer_to_the_formula_than_the_counterpart(stock_class):
    """Why deis is compared in float64: stock computes its weights in float32, where they cancel.

    Our weights are Python's floats: in float32 ours is within the tolerance of stock in float64, and stock is not.
    """
    stock = stock_class("deis")(**BETAS, use_beta_sigmas=True)
    ours = ours_from(stock, "deis")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(50)
    rounded, exact = trajectory(copy.deepcopy(stock)), trajectory(stock, dtype=torch.float64)
    assert worst_error(trajectory(ours), exact) <= 2e-6
    assert worst_error(rounded, exact) > TOLERANCE


def test_lms_amplifies_rounding_wherever_it_runs(stock_class):
    """Why lms is compared in float64: its last step reaches from sigma_min to 0, seven spacings away.

    The weights of the fourth order magnify the last bits of a float32 sample there, in stock's as in ours; in float64
    they agree to thirteen digits.
    """
    stock = stock_class("lms")(
        **BETAS, timestep_spacing="trailing", use_exponential_sigmas=True, prediction_type="sample"
    )
    ours = ours_from(stock, "lms")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(50)
    rounded, exact = trajectory(copy.deepcopy(stock)), trajectory(stock, dtype=torch.float64)
    assert worst_error(rounded, exact) > TOLERANCE
    assert worst_error(rounded[:-1], exact[:-1]) <= TOLERANCE
    assert worst_error(trajectory(ours)[:-1], exact[:-1]) <= TOLERANCE
    ours.set_timesteps(50)
    assert worst_error(trajectory(ours, dtype=torch.float64), exact) <= 1e-12
