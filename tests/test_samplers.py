"""What samplers must do, whatever those of others do: end where the model says, converge, keep the data's spread."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sdcli.cli.generate_options import TWICE
from sdcli.components.samplers import SAMPLERS
from sdcli.components.samplers.consistency import boundary_weights, tcd_step
from sdcli.components.samplers.deis import log_rho_weights
from sdcli.components.samplers.dpm_solver import curvature_weight, dpmpp_step
from sdcli.components.samplers.euler import ancestral_split, multistep_weights
from sdcli.components.samplers.langevin import langevin_step
from sdcli.components.samplers.markov import ddim_deviation, ddim_step, ddpm_step, reverse_variance
from sdcli.components.samplers.pndm import transfer
from sdcli.components.samplers.second_order import brownian_increment
from sdcli.components.samplers.spacing import (
    beta_quantiles,
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    spaced_timesteps,
    timesteps_of,
)
from sdcli.components.schedule import posterior_mean, posterior_variances
from sdcli.components.scheduler import Scheduler

# These end at a little noise, as their counterparts in diffusers do: deis at the smallest sigma, tcd at timestep 0.
END_NOISY = ("deis", "tcd")
STOCHASTIC = ("ddpm", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "dpmpp_3m_sde")


def noise_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoise(scheduler: Scheduler, steps: int, clean_of, noise: torch.Tensor, eta: float = 0.0) -> list[torch.Tensor]:
    """The samples of a trajectory from pure noise, with a model that predicts clean_of(shown, alpha_bar)."""
    scheduler.set_timesteps(steps)
    sample = noise * scheduler.init_noise_sigma
    generator, samples = torch.Generator().manual_seed(1), []
    for call, timestep in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(sample, timestep)
        alpha_bar = 1 / (1 + float(scheduler.sigmas[call]) ** 2)
        original = clean_of(shown, alpha_bar)
        output = original
        if scheduler.config.prediction_type == "epsilon":
            output = (shown - alpha_bar**0.5 * original) / (1 - alpha_bar) ** 0.5
        sample = scheduler.step(output, timestep, sample, generator=generator, eta=eta).prev_sample
        samples.append(sample)
    return samples


def gaussian(deviation: float, mean: float = 0.0):
    """The best model of data that is normal with this deviation and mean: E[x_0 given x_t]."""

    def clean_of(shown, alpha_bar):
        gain = alpha_bar**0.5 * deviation**2 / (alpha_bar * deviation**2 + 1 - alpha_bar)
        return mean + gain * (shown - alpha_bar**0.5 * mean)

    return clean_of


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_knows_the_picture_is_led_to_it(sampler):
    """Given the true noise at every call, every sampler ends at the clean sample, with noise of its own or without."""
    clean = 0.5 * torch.tanh(noise_of(2, 4, 3, 3, seed=7))
    scheduler = Scheduler(sampler=sampler, timestep_spacing="trailing", set_alpha_to_one=True)
    for eta in (0.0, 0.7):
        ended = denoise(scheduler, 10, lambda shown, alpha_bar: clean, noise_of(2, 4, 3, 3), eta=eta)[-1]
        left = float(scheduler.sigmas[-1]) if sampler in END_NOISY else 0.0
        assert float((ended - clean).abs().max()) <= 1e-4 + 4 * left


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_argument_is_changed_in_place(sampler):
    """Samples, model outputs and timesteps are what they were, and the result shares no memory with them."""
    scheduler = Scheduler(sampler=sampler)
    scheduler.set_timesteps(6)
    sample = noise_of(1, 4, 3, 3).float()
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(sample, timestep)
        output = torch.tanh(shown)
        kept = sample.clone(), output.clone(), timestep.clone()
        stepped = scheduler.step(output, timestep, sample, generator=torch.Generator(), eta=0.5).prev_sample
        for argument, copied in zip((sample, output, timestep), kept, strict=True):
            assert torch.equal(argument, copied)
        assert stepped.data_ptr() not in (sample.data_ptr(), output.data_ptr())
        sample = stepped


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradients_reach_the_sample_and_the_models_output(sampler):
    """One step is differentiable, for guidance by a gradient."""
    scheduler = Scheduler(sampler=sampler)
    scheduler.set_timesteps(6)
    sample = noise_of(1, 4, 3, 3).float().requires_grad_()
    output = torch.tanh(noise_of(1, 4, 3, 3, seed=1)).float().requires_grad_()
    scheduler.step(output, scheduler.timesteps[0], sample, generator=torch.Generator()).prev_sample.sum().backward()
    assert sample.grad.abs().min() > 0 and output.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("sampler", "order"),
    [("euler", 1), ("heun", 2), ("dpm2", 2), ("lms", 2), ("dpmpp_2m", 2), ("unipc", 2), ("deis", 2)],
)
def test_halving_the_steps_length_divides_the_error_as_the_order_says(sampler, order):
    """On Gaussian data the trajectory has a closed form: the sample keeps its place in a normal distribution.

    Doubling the steps divides the error by 2^order (by three quarters of that at least, away from the limit). Seen one
    call before the end, because the last step, from the smallest sigma to 0, is of first order in all of them.
    """
    deviation, noise = 0.5, noise_of(1, 1, 1, 64)
    exploding = SAMPLERS[sampler].exploding
    errors = []
    for steps in (40, 80):
        scheduler = Scheduler(
            sampler=sampler, timestep_spacing="trailing", sigma_schedule="karras", prediction_type="sample"
        )
        ended = denoise(scheduler, steps, gaussian(deviation), noise)[-2]
        first, last = float(scheduler.sigmas[0]), float(scheduler.sigmas[-2])
        # In y = x / alpha the exact flow only scales by the deviation of the noised data.
        flow = math.sqrt((deviation**2 + last**2) / (deviation**2 + first**2))
        exact = noise * flow * (first if exploding else math.hypot(1, first) / math.hypot(1, last))
        errors.append(float((ended - exact).abs().max()))
    assert errors[1] < errors[0] / (0.75 * 2**order)
    assert errors[1] < 0.05


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_fresh_noise_keeps_the_spread_of_the_data(sampler):
    """With the best model of normal data, trajectories end at the data's deviation: not wider and not narrower.

    100 steps are enough for all but those of first order, whose bias only falls with the number of steps.
    """
    settings = {"sigma_schedule": "karras"} if SAMPLERS[sampler].sigma_schedules else {}
    scheduler = Scheduler(sampler=sampler, timestep_spacing="trailing", **settings)
    steps = 500 if sampler in ("ddpm", "euler_a") else 100
    ended = denoise(scheduler, steps, gaussian(0.5), noise_of(1, 1, 100, 100))[-1]
    assert float(ended.std()) == pytest.approx(0.5, rel=0.04)


@pytest.mark.parametrize("settings", [{}, {"rescale_betas_zero_snr": True, "prediction_type": "sample"}])
def test_annealed_langevin_dynamics_draw_from_the_data_as_steps_become_many(settings):
    """On N(1, 0.5^2) with the exact score: mean and deviation come the closer the more levels there are."""
    scheduler = Scheduler(sampler="langevin", timestep_spacing="trailing", **settings)
    errors = []
    for steps in (50, 250, 1000):
        ended = denoise(scheduler, steps, gaussian(0.5, 1.0), noise_of(1, 1, 100, 100))[-1]
        errors.append((abs(float(ended.mean()) - 1), abs(float(ended.std()) - 0.5)))
    assert errors[-1][0] < 0.03 and errors[-1][1] < 0.03
    for few, many in itertools.pairwise(errors):
        assert many[0] < few[0] and many[1] < few[1]


def test_langevin_steps_at_one_level_draw_from_its_distribution():
    """Of points far from it: many steps along the exact score at one level of N(1, 0.5^2) are draws of p(x_t)."""
    alpha_bar = 0.5
    mean, variance = alpha_bar**0.5, alpha_bar * 0.5**2 + 1 - alpha_bar
    generator = torch.Generator().manual_seed(0)
    sample = torch.full((20_000,), -4.0, dtype=torch.float64)
    for _ in range(60):
        noise = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
        sample = langevin_step(sample, (mean - sample) / variance, alpha_bar, noise)
    assert float(sample.mean()) == pytest.approx(mean, abs=0.03)
    # A step of finite length widens a normal distribution by a known factor: 1 / (1 - step / (4 variance)).
    widened = variance / (1 - (1 - alpha_bar) / (4 * variance))
    assert float(sample.var()) == pytest.approx(widened, rel=0.04)


def test_the_help_of_steps_names_the_samplers_of_two_evaluations():
    """All others evaluate the network once in a step."""
    named = TWICE.replace(" and ", ", ").split(", ")
    assert named == [name for name, sampler in SAMPLERS.items() if sampler.order == 2]


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_langevin_evaluates_the_model_once_for_each_step(steps):
    """`--steps` counts evaluations, as it does for samplers of first order; each at a level of its own."""
    scheduler = Scheduler(sampler="langevin", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert scheduler.order == 1 and len(set(scheduler.timesteps.tolist())) == steps


def test_ddim_with_all_its_noise_is_ddpm():
    """eta = 1 has the mean and the variance of the DDPM posterior (Song et al. 2020, section 4.1)."""
    original, pred_noise = noise_of(2, 1, 4, 3, 3)
    alpha_bar, alpha_bar_next = 0.3, 0.45
    sample = alpha_bar**0.5 * original + (1 - alpha_bar) ** 0.5 * pred_noise
    deviation = ddim_deviation(1.0, alpha_bar, alpha_bar_next)
    mean = ddim_step(original, pred_noise, alpha_bar_next, deviation)
    torch.testing.assert_close(mean, posterior_mean(sample, original, alpha_bar, alpha_bar_next))
    assert deviation**2 == pytest.approx(posterior_variances(alpha_bar, alpha_bar_next)[1])


def test_pndms_transfer_is_a_step_of_ddim():
    """Eq. 11 of Liu et al. 2022 and eq. 12 of Song et al. 2020 say the same."""
    sample, pred_noise = noise_of(2, 1, 4, 3, 3)
    original = (sample - (1 - 0.3) ** 0.5 * pred_noise) / 0.3**0.5
    torch.testing.assert_close(transfer(sample, pred_noise, 0.3, 0.45), ddim_step(original, pred_noise, 0.45))


def test_tcd_without_noise_is_a_step_of_ddim():
    """gamma = 0 goes straight to the next level."""
    original, pred_noise = noise_of(2, 1, 4, 3, 3)
    torch.testing.assert_close(tcd_step(original, pred_noise, 0.45, 0.45, None), ddim_step(original, pred_noise, 0.45))


def test_first_order_dpm_solver_is_a_step_of_ddim():
    """DPM-Solver++(1) of the ODE (Lu et al. 2022, section 4.1)."""
    original, pred_noise = noise_of(2, 1, 4, 3, 3)
    alpha_bar, alpha_bar_next = 0.3, 0.45
    sample = alpha_bar**0.5 * original + (1 - alpha_bar) ** 0.5 * pred_noise
    sigma, sigma_next = ((1 / level - 1) ** 0.5 for level in (alpha_bar, alpha_bar_next))
    stepped = dpmpp_step(sample, [original], [sigma], sigma_next)
    torch.testing.assert_close(stepped, ddim_step(original, pred_noise, alpha_bar_next))


def test_first_order_dpm_solver_of_the_sde_is_a_step_of_ddpm():
    """With noise: the posterior's mean and variance (Lu et al. 2022, appendix B)."""
    original, sample, noise = noise_of(3, 1, 4, 3, 3)
    alpha_bar, alpha_bar_next = 0.3, 0.45
    sigma, sigma_next = ((1 / level - 1) ** 0.5 for level in (alpha_bar, alpha_bar_next))
    stepped = dpmpp_step(sample, [original], [sigma], sigma_next, noise)
    variance = posterior_variances(alpha_bar, alpha_bar_next)[1]
    expected = ddpm_step(sample, original, alpha_bar, alpha_bar_next, variance, noise)
    torch.testing.assert_close(stepped, expected)


def test_curvature_counts_for_nothing_in_a_vanishing_step():
    """The third order's weight of the second difference falls linearly with the step, to 0."""
    for decay in (1e-1, 1e-2, 1e-3):
        assert curvature_weight(decay) == pytest.approx(decay / 6, rel=0.05)


def test_an_ancestral_step_goes_down_and_up_to_the_next_level():
    """sigma_down^2 + sigma_up^2 = sigma_next^2, and neither part is left out but at the end."""
    down, up = ancestral_split(5.0, 3.0)
    assert math.hypot(down, up) == pytest.approx(3.0) and 0 < down < 3 and 0 < up < 3
    assert ancestral_split(5.0, 0.0) == (0.0, 0.0)


def test_the_noise_of_a_step_holds_the_noise_of_its_first_half():
    """Increments of one Brownian path: of unit variance, and as correlated as their spans overlap."""
    first, second = noise_of(2, 200_000)
    whole = brownian_increment(first, second, (5.0, 3.0, 2.0))
    assert float(whole.var()) == pytest.approx(1.0, abs=0.02)
    assert float((whole * first).mean()) == pytest.approx(math.sqrt(2 / 3), abs=0.02)


def test_linear_multistep_weights_integrate_cubics_exactly():
    """Four slopes determine a cubic; one slope is Euler's step."""
    sigmas, sigma_next = [2.0, 2.7, 3.9, 5.0], 1.2
    slope = np.poly1d([0.3, -1.0, 2.0, 0.5])
    area = slope.integ()(sigma_next) - slope.integ()(sigmas[0])
    weights = multistep_weights(sigmas, sigma_next)
    assert sum(weight * slope(sigma) for weight, sigma in zip(weights, sigmas, strict=True)) == pytest.approx(area)
    assert multistep_weights([2.0], 1.2) == pytest.approx([-0.8])


def test_deis_weights_are_the_integrals_of_polynomials_in_log_rho():
    """Against numerical quadrature of the same Lagrange polynomials."""
    rhos, rho_next = [2.0, 2.7, 3.9], 1.2
    for index, weight in enumerate(log_rho_weights(rhos, rho_next)):
        others = [rho for position, rho in enumerate(rhos) if position != index]

        def basis(rho, chosen=rhos[index], others=others):
            return math.prod(math.log(rho / other) / math.log(chosen / other) for other in others)

        assert weight == pytest.approx(integrate.quad(basis, rhos[0], rho_next)[0], rel=1e-9)


def test_learned_range_lies_between_the_two_fixed_variances():
    """-1 is the small one, +1 the large one, 0 their geometric mean (Nichol & Dhariwal 2021, eq. 15)."""
    large, small = posterior_variances(0.3, 0.45)
    learned = reverse_variance("learned_range", 0.3, 0.45, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    expected = torch.tensor([small, math.sqrt(small * large), large], dtype=torch.float64)
    torch.testing.assert_close(learned, expected)


def test_a_consistency_model_leaves_clean_samples_alone():
    """At timestep 0 the sample itself is the answer; at noisy ones the prediction is (Song et al. 2023, eq. 5)."""
    assert boundary_weights(0, 10.0) == (1.0, 0.0)
    skip, out = boundary_weights(999, 10.0)
    assert skip < 1e-6 and out == pytest.approx(1.0)


def test_beta_quantiles_are_those_of_the_beta_distribution():
    """Ours need no scipy; they equal scipy's to fourteen digits, ends included."""
    probabilities = np.linspace(0, 1, 501)
    np.testing.assert_allclose(beta_quantiles(probabilities), stats.beta.ppf(probabilities, 0.6, 0.6), atol=1e-14)


@pytest.mark.parametrize("make", [karras_sigmas, exponential_sigmas, beta_sigmas])
def test_sigma_schedules_fall_from_the_largest_to_the_smallest(make):
    """Both ends are met exactly, and every step goes down."""
    sigmas = make(0.03, 14.6, 20)
    assert sigmas.shape == (20,) and (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(sigmas[[0, -1]], [14.6, 0.03], rtol=1e-12)


def test_the_spacings_of_a_thousand_timesteps_into_ten():
    """Table 2 of Lin et al. 2023, from 0 instead of from 1."""
    assert spaced_timesteps("leading", 10, 1000).tolist() == [*range(900, -1, -100)]
    assert spaced_timesteps("leading", 10, 1000, steps_offset=1).tolist() == [*range(901, 0, -100)]
    assert spaced_timesteps("trailing", 10, 1000).tolist() == [*range(999, 0, -100)]
    assert spaced_timesteps("linspace", 10, 1000).tolist() == [*range(999, -1, -111)]


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_number_of_steps_gives_as_many_falling_timesteps(spacing):
    """From 1 to 1000, all within the schedule."""
    for steps in range(1, 1001):
        timesteps = spaced_timesteps(spacing, steps, 1000)
        assert len(timesteps) == steps and 0 <= timesteps.min() and timesteps.max() <= 999
        assert (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("leading", 0, 1000), r"\[1, 1000\], got 0"),
        (("leading", 1001, 1000), r"\[1, 1000\], got 1001"),
        (("leading", 1000, 1000, 1), "beyond 999"),
        (("karras", 10, 1000), "leading, linspace, trailing, got 'karras'"),
    ],
)
def test_steps_that_cannot_be_placed_are_refused(arguments, words):
    """No rounding of the number of steps, and no timestep that the model was not trained on."""
    with pytest.raises(ValueError, match=words):
        spaced_timesteps(*arguments)


def test_timesteps_of_training_sigmas_are_their_indices():
    """And between two of them, halfway in log sigma is half a timestep."""
    training = np.geomspace(0.03, 14.6, 1000)
    np.testing.assert_allclose(timesteps_of(training[[0, 500, 999]], training), [0, 500, 999], atol=1e-9)
    assert timesteps_of(np.sqrt(training[500] * training[501]), training) == pytest.approx(500.5)
