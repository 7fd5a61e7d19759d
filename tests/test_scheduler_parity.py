"""Every sampler follows its diffusers counterpart along whole trajectories: noise schedule, levels, timesteps and steps.

The error is max|a - b| / max|b| of the sample after each call. The model is a smooth nonlinear function of (sample,
timestep), sized like a real one so that trajectories stay of unit variance; the noise comes from equally seeded generators.
"""

import inspect
import itertools
import sys
import types
import warnings

import diffusers
import pytest
import torch

from sdcli.components.samplers import SAMPLERS
from sdcli.components.scheduler import Scheduler

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
SPACINGS = ("leading", "linspace", "trailing")
SCHEDULES = {
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
# Prediction types that the counterpart does not know.
WITHOUT_SAMPLE_PREDICTION = ("pndm", "euler_a", "dpm2", "dpm2_a", "dpmpp_sde")
TWENTY_AND_FIFTY = (20, 50)


class BrownianPath:
    """Stands in for torchsde's Brownian tree: one path, found step by step from the noisy end, with noise from a generator."""

    generator: torch.Generator

    def __init__(self, t0, t1, size, dtype, **_):
        self.size, self.dtype = size, dtype
        self.points: dict[float, torch.Tensor] = {}

    def at(self, sigma: float) -> torch.Tensor:
        if not self.points:
            self.points[sigma] = torch.zeros(self.size, dtype=self.dtype)
        if sigma not in self.points:
            before = min(self.points)
            assert sigma < before, "the scheduler looked back on the path"
            step = torch.randn(self.size, generator=type(self).generator, dtype=self.dtype)
            self.points[sigma] = self.points[before] + (before - sigma) ** 0.5 * step
        return self.points[sigma]

    def __call__(self, low, high):
        # BatchedBrownianTree asks for (low, high) and turns the sign; the later point of the path is the lower sigma.
        noisy, clean = self.at(float(high)), self.at(float(low))
        return noisy - clean


@pytest.fixture
def stock_classes(monkeypatch):
    """Name -> stock class, with a stand-in for torchsde, which DPMSolverSDEScheduler needs and we do not."""
    monkeypatch.setitem(sys.modules, "torchsde", types.SimpleNamespace(BrownianInterval=BrownianPath))
    name = "diffusers.schedulers.scheduling_dpmsolver_sde"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = __import__(name, fromlist=["DPMSolverSDEScheduler"])
    yield lambda stock_class: getattr(module if "SDE" in stock_class else diffusers, stock_class)
    sys.modules.pop(name, None)


def model_output(sample: torch.Tensor, timestep: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """A stand-in for a network."""
    time = float(timestep) / 1000
    angle = torch.tensor(0.05 + 1.45 * time)
    ripple = 0.1 * torch.sin(3 * sample + 5 * time)
    if prediction_type == "epsilon":
        return angle.sin() * sample + ripple
    if prediction_type == "sample":
        return angle.cos() * torch.tanh(sample) + ripple
    return 0.3 * torch.tanh(sample) + ripple


def trajectory(scheduler, steps: int, prediction_type: str, eta: float = 0.0) -> list[torch.Tensor]:
    """The sample after every call."""
    generator = torch.Generator().manual_seed(1)
    BrownianPath.generator = generator
    accepted = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in {"generator": generator, "eta": eta}.items() if key in accepted}
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    sample = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    samples = []
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(sample, timestep)
        output = model_output(shown, timestep, prediction_type)
        sample = scheduler.step(output, timestep, sample, **options, return_dict=False)[0]
        samples.append(sample)
    return samples


def worst_error(stock, ours, steps: int, prediction_type: str, eta: float = 0.0) -> float:
    expected = trajectory(stock, steps, prediction_type, eta)
    actual = trajectory(ours, steps, prediction_type, eta)
    assert len(actual) == len(expected)
    torch.testing.assert_close(ours.timesteps.double(), stock.timesteps.double(), rtol=0, atol=2e-3)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(actual, expected, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("nan")
