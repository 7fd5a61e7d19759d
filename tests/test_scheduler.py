"""The scheduler's contract with diffusers: state between calls, noise, numbers and dtypes, and what it refuses."""

import inspect
import json

import diffusers
import pytest
import torch

from sdcli.components.samplers import SAMPLERS
from sdcli.components.scheduler import Scheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# dpmpp_sde's stock class needs torchsde to be imported; the parity tests give it a stand-in.
WITH_STOCK = [name for name, each in SAMPLERS.items() if name != "dpmpp_sde" and not each.without_counterpart]
STOCHASTIC = [name for name, sampler in SAMPLERS.items() if sampler.takes_noise is not SAMPLERS["euler"].takes_noise]
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


def noise_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trajectory(scheduler, sample: torch.Tensor, generator=None, steps: int = 6) -> list[torch.Tensor]:
    """The sample after every call, with a stand-in for the model."""
    scheduler.set_timesteps(steps)
    accepted = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    accepted |= {"eta": 0.4} if "eta" in inspect.signature(scheduler.step).parameters else {}
    sample, samples = sample * scheduler.init_noise_sigma, []
    for timestep in scheduler.timesteps:
        output = 0.9 * torch.tanh(scheduler.scale_model_input(sample, timestep))
        sample = scheduler.step(output, timestep, sample, **accepted).prev_sample
        samples.append(sample)
    return samples


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in WITH_STOCK if name != "dpmpp_3m_sde"])
def test_the_stock_class_reads_what_we_saved_and_samples_the_same(name, tmp_path):
    """`save_pretrained`, then stock `from_pretrained`: the same trajectory.

    Not dpmpp_3m_sde: test_scheduler_deviations.py has what differs there, and why.
    """
    ours = Scheduler(sampler=name, timestep_spacing="trailing")
    ours.save_pretrained(tmp_path)
    stock = stock_class(name).from_pretrained(tmp_path)
    start = noise_of(2, 4, 3, 3)
    expected = trajectory(stock, start, torch.Generator().manual_seed(1))
    actual = trajectory(ours, start, torch.Generator().manual_seed(1))
    for ours_sample, stock_sample in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours_sample, stock_sample, rtol=0, atol=1e-5 * float(stock_sample.abs().max()))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_image_i_of_a_batch_is_the_image_of_its_seed_alone(name):
    """With a list of generators every image draws from its own: bit for bit the trajectory of a batch of one."""
    start = noise_of(3, 4, 5, 7)
    scheduler = Scheduler(sampler=name)
    together = trajectory(scheduler, start, [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    assert len({float(image.sum()) for image in together[-1]}) == 3
    for image, seed in enumerate((5, 6, 7)):
        one = slice(image, image + 1)
        alone = trajectory(scheduler, start[one], torch.Generator().manual_seed(seed))
        assert all(torch.equal(batch[one], single) for batch, single in zip(together, alone, strict=True))


def test_a_list_of_generators_must_have_one_per_image():
    """One too few or too many would leave an image without its own seed."""
    scheduler = Scheduler(sampler="euler_a")
    with pytest.raises(ValueError, match="one generator per image is needed: 2 for a batch of 3"):
        trajectory(scheduler, noise_of(3, 4, 3, 3), [torch.Generator(), torch.Generator()])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_second_trajectory_is_like_the_first(name):
    """Nothing is left behind, with `set_timesteps` in between and without."""
    scheduler = Scheduler(sampler=name)
    start = noise_of(1, 4, 3, 3)
    first = trajectory(scheduler, start, torch.Generator().manual_seed(1))[-1]
    assert torch.equal(trajectory(scheduler, start, torch.Generator().manual_seed(1))[-1], first)
    sample, generator = start * scheduler.init_noise_sigma, torch.Generator().manual_seed(1)
    for timestep in scheduler.timesteps:
        output = 0.9 * torch.tanh(scheduler.scale_model_input(sample, timestep))
        sample = scheduler.step(output, timestep, sample, generator=generator, eta=0.4).prev_sample
    assert torch.equal(sample, first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_does_not_look_at_a_timestep_on_the_device(name):
    """Only the first call has to be found; after that a timestep without a value (on the meta device) will do."""
    scheduler = Scheduler(sampler=name)
    start = noise_of(1, 4, 3, 3)
    expected = trajectory(scheduler, start, torch.Generator().manual_seed(1))[-1]
    scheduler.set_timesteps(6)
    sample, generator = start * scheduler.init_noise_sigma, torch.Generator().manual_seed(1)
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps.to("meta"):
        output = 0.9 * torch.tanh(scheduler.scale_model_input(sample, timestep))
        sample = scheduler.step(output, timestep, sample, generator=generator, eta=0.4).prev_sample
    assert torch.equal(sample, expected)


@pytest.mark.parity
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", WITH_STOCK)
def test_the_contracts_numbers_equal_the_counterparts(name, spacing):
    """order, len, init_noise_sigma, the scaled input and noised samples: what pipelines use beside `step`."""
    stock = stock_class(name)(**BETAS, **OWN_SETTINGS.get(name, {}), timestep_spacing=spacing)
    ours = Scheduler.from_config(written_by(stock))
    assert (ours.order, len(ours)) == (stock.order, len(stock))
    sample, noise = noise_of(2, 2, 4, 3, 3)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
    assert float(ours.init_noise_sigma) == pytest.approx(float(stock.init_noise_sigma), rel=1e-6)
    timesteps = stock.timesteps[[2 * ours.order, 4 * ours.order]]
    torch.testing.assert_close(ours.add_noise(sample, noise, timesteps), stock.add_noise(sample, noise, timesteps))
    first = stock.timesteps[0]
    torch.testing.assert_close(ours.scale_model_input(sample, first), stock.scale_model_input(sample, first))


def test_velocity_is_that_of_training_timesteps():
    """As DDPMScheduler has it."""
    stock = diffusers.DDPMScheduler(**BETAS)
    sample, noise = noise_of(2, 2, 4, 3, 3)
    timesteps = torch.tensor([10, 700])
    ours = Scheduler(sampler="euler").get_velocity(sample, noise, timesteps)
    torch.testing.assert_close(ours, stock.get_velocity(sample, noise, timesteps))


@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_samples_are_stepped_in_float32(name):
    """The result has the sample's dtype, and is that of the float32 step, rounded once."""
    scheduler = Scheduler(sampler=name)
    sample, output = noise_of(2, 2, 4, 3, 3).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        scheduler.set_timesteps(6)
        results.append(
            scheduler.step(
                output.to(dtype), scheduler.timesteps[0], sample.to(dtype), generator=torch.Generator().manual_seed(1)
            ).prev_sample
        )
    assert results[0].dtype == torch.bfloat16
    assert torch.equal(results[0], results[1].bfloat16())


def test_the_output_is_a_tuple_on_request():
    """`return_dict=False`, as stock pipelines call it."""
    scheduler = Scheduler()
    scheduler.set_timesteps(5)
    sample = noise_of(1, 4, 3, 3)
    named = scheduler.step(sample, scheduler.timesteps[0], sample)
    scheduler.set_timesteps(5)
    plain = scheduler.step(sample, scheduler.timesteps[0], sample, return_dict=False)
    assert torch.equal(plain[0], named.prev_sample) and torch.equal(plain[1], named.pred_original_sample)


def test_misuse_of_step_is_refused():
    """Before `set_timesteps`, at a timestep that is not planned, with eta beyond 1, and with shapes that do not fit."""
    scheduler = Scheduler()
    sample = noise_of(1, 4, 3, 3)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(sample, 1, sample)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep 17 is not one of this scheduler's 10 timesteps"):
        scheduler.step(sample, 17, sample)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 1.5"):
        scheduler.step(sample, scheduler.timesteps[0], sample, eta=1.5)
    with pytest.raises(ValueError, match=r"model_output must have the shape of sample \(1, 4, 3, 3\)"):
        scheduler.step(sample[:, :3], scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="learned variance_type"):
        scheduler.step(torch.cat([sample, sample], dim=1), scheduler.timesteps[0], sample)


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm2_a", "dpmpp_sde"])
def test_a_trajectory_cannot_begin_in_the_middle_of_a_step(name):
    """The second of a step's two calls needs what the first has seen."""
    scheduler = Scheduler(sampler=name)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(3)
    sample = noise_of(1, 4, 3, 3)
    with pytest.raises(ValueError, match="cannot begin in the middle of a step, at call 3"):
        scheduler.step(sample, scheduler.timesteps[3], sample)


def test_a_learned_variance_is_cut_off_where_the_sampler_has_no_use_for_it():
    """The prediction is the first half of the channels, however many there are (stock takes three)."""
    scheduler = Scheduler(sampler="dpmpp_2m", variance_type="learned_range")
    sample, output, variance = noise_of(3, 1, 4, 3, 3)
    results = []
    for given in (torch.cat([output, variance], dim=1), output):
        scheduler.set_timesteps(5)
        results.append(scheduler.step(given, scheduler.timesteps[0], sample).prev_sample)
    assert torch.equal(*results)
