"""The forward process: how noise comes in, what is left of the signal, and how it could be taken out again."""

import math

import diffusers
import pytest
import torch

from sdcli.components.schedule import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    add_noise,
    alphas_cumprod,
    forward_step,
    make_betas,
    posterior_mean,
    posterior_variances,
    rescale_zero_terminal_snr,
    score,
    signal_to_noise_ratio,
    to_noise,
    to_original_sample,
    velocity,
)

STABLE_DIFFUSION = alphas_cumprod(make_betas("scaled_linear"))


def random_latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parity
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_betas_equal_those_of_diffusers(schedule):
    """The same float32 numbers, bit for bit, with and without the zero-SNR rescaling."""
    for rescale in (False, True):
        stock = diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule=schedule, rescale_betas_zero_snr=rescale
        )
        betas = make_betas(schedule)
        assert torch.equal(rescale_zero_terminal_snr(betas) if rescale else betas, stock.betas)
        assert torch.equal(alphas_cumprod(stock.betas), stock.alphas_cumprod)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_little_noise_is_added_first_and_more_later(schedule):
    """Betas rise within (0, 1), the signal and the SNR fall."""
    betas = make_betas(schedule)
    assert betas.shape == (1000,)
    assert 0 < betas.min() and betas.max() < 1
    assert (betas.diff() >= 0).all()
    left = alphas_cumprod(betas)
    assert (left.diff() < 0).all()
    assert (signal_to_noise_ratio(left).diff() < 0).all()


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    """The message helps: it names what was given and what is allowed."""
    with pytest.raises(ValueError, match="linear, scaled_linear, squaredcos_cap_v2, sigmoid, got 'laplace'"):
        make_betas("laplace")


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_zero_snr_rescaling_leaves_exactly_nothing_at_the_end(schedule):
    """The last alpha-bar is 0 and not merely small; the first is kept (Lin et al. 2023)."""
    betas = make_betas(schedule)
    rescaled = alphas_cumprod(rescale_zero_terminal_snr(betas))
    assert rescaled[-1] == 0
    torch.testing.assert_close(rescaled[0], alphas_cumprod(betas)[0], rtol=1e-6, atol=0)
    assert (rescaled.diff() < 0).all()


def test_stable_diffusion_has_seen_almost_but_not_quite_pure_noise():
    """The alpha-bar of its last step is 0.0047, which is why zero-SNR training exists."""
    assert float(STABLE_DIFFUSION[-1]) == pytest.approx(0.0047, abs=5e-5)


def test_many_single_steps_and_the_closed_form_have_the_same_mean_and_variance():
    """q(x_t given x_0) is what t steps of q(x_t given x_{t-1}) make: eq. 2 and 4 of Ho et al. 2020.

    The mean is followed exactly, the variance by 50,000 draws (its standard error is then 0.6 %).
    """
    betas = make_betas("linear", 60, 0.001, 0.08)
    left = alphas_cumprod(betas)
    clean = torch.full((1, 1, 1, 50_000), 1.7)
    mean, drawn = clean, clean
    generator = torch.Generator().manual_seed(0)
    for beta in betas:
        mean = forward_step(mean, torch.zeros(()), beta)
        drawn = forward_step(drawn, torch.randn(drawn.shape, generator=generator), beta)
    at_once = add_noise(clean, random_latents(*clean.shape, seed=1), torch.tensor([59]), left)
    without_noise = add_noise(clean, torch.zeros_like(clean), torch.tensor([59]), left)
    torch.testing.assert_close(mean, without_noise)
    assert float(drawn.mean()) == pytest.approx(float(without_noise.mean()), abs=0.02)
    assert float(drawn.var()) == pytest.approx(1 - float(left[-1]), rel=0.03)
    assert float(at_once.var()) == pytest.approx(1 - float(left[-1]), rel=0.03)


def test_a_hundred_steps_of_one_percent_leave_605_of_the_mean_and_634_of_variance():
    """Correction of a seed: the mean is sqrt(0.99^100) x_0 = 0.605 x_0, not 0.366 x_0."""
    left = alphas_cumprod(torch.full((100,), 0.01))
    mean = add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([99]), left)
    spread = add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([99]), left)
    assert float(left[-1]) == pytest.approx(0.366, abs=5e-4)
    assert float(mean) == pytest.approx(0.605, abs=5e-4)
    assert float(spread**2) == pytest.approx(0.634, abs=5e-4)


def test_five_hundred_steps_of_two_percent_leave_next_to_nothing():
    """Correction of a seed: 0.98^500 is 4e-5, not 0.2."""
    assert float(alphas_cumprod(torch.full((500,), 0.02))[-1]) == pytest.approx(4e-5, rel=0.05)


def test_add_noise_keeps_unit_variance():
    """Unit-variance latents plus unit-variance noise stay unit-variance at every timestep (eq. 4)."""
    latents, noise = random_latents(2, 3, 4, 64, 64)
    noisy = add_noise(latents, noise, torch.tensor([0, 500, 999]), STABLE_DIFFUSION)
    torch.testing.assert_close(noisy.var(dim=(1, 2, 3)), torch.ones(3), atol=0.05, rtol=0)


def test_each_image_gets_the_noise_of_its_own_timestep():
    """A batch of timesteps is the same as one image at a time; one timestep for all is allowed."""
    latents, noise = random_latents(2, 3, 4, 8, 8)
    timesteps = torch.tensor([10, 500, 990])
    together = add_noise(latents, noise, timesteps, STABLE_DIFFUSION)
    for image, timestep in enumerate(timesteps):
        one = slice(image, image + 1)
        assert torch.equal(together[one], add_noise(latents[one], noise[one], timestep[None], STABLE_DIFFUSION))
    alike = add_noise(latents, noise, torch.tensor([500]), STABLE_DIFFUSION)
    assert torch.equal(alike, add_noise(latents, noise, torch.tensor([500, 500, 500]), STABLE_DIFFUSION))


def test_noisy_latents_are_a_differentiable_function_of_the_clean_ones():
    """The reparameterisation: one draw of noise, and the gradient is sqrt(alpha-bar)."""
    latents = random_latents(1, 4, 8, 8).requires_grad_()
    add_noise(latents, random_latents(1, 4, 8, 8, seed=1), torch.tensor([300]), STABLE_DIFFUSION).sum().backward()
    torch.testing.assert_close(latents.grad, torch.full_like(latents, float(STABLE_DIFFUSION[300].sqrt())))


def test_wrong_shapes_are_refused():
    """Noise of another shape, and timesteps that are not one per image."""
    latents = random_latents(2, 4, 8, 8)
    with pytest.raises(ValueError, match=r"noise must have the shape of latents \(2, 4, 8, 8\), got \(4, 8, 8\)"):
        add_noise(latents, latents[0], torch.tensor([1, 2]), STABLE_DIFFUSION)
    with pytest.raises(ValueError, match=r"one per image \(2,\), got \(3,\)"):
        velocity(latents, latents, torch.tensor([1, 2, 3]), STABLE_DIFFUSION)


def test_the_noise_level_does_not_change_the_dtype_of_the_latents():
    """Half-precision latents stay so."""
    latents = random_latents(1, 4, 8, 8).bfloat16()
    assert add_noise(latents, latents, torch.tensor([5]), STABLE_DIFFUSION).dtype == torch.bfloat16


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_answer_gives_back_the_clean_latents_and_the_noise(prediction_type):
    """Whatever the model is trained to say, its right answer stands for the latents and the noise that were mixed."""
    latents, noise = random_latents(2, 3, 4, 8, 8).double()
    timesteps = torch.tensor([3, 400, 950])
    left = STABLE_DIFFUSION.double()
    noisy = add_noise(latents, noise, timesteps, left)
    answers = {"epsilon": noise, "sample": latents, "v_prediction": velocity(latents, noise, timesteps, left)}
    alpha_bar = left[timesteps].view(3, 1, 1, 1)
    original = to_original_sample(answers[prediction_type], noisy, alpha_bar, prediction_type)
    torch.testing.assert_close(original, latents)
    torch.testing.assert_close(to_noise(answers[prediction_type], noisy, alpha_bar, prediction_type), noise)


def test_an_unknown_prediction_type_is_refused():
    """Both ways of reading a model's output name what they know."""
    for read in (to_original_sample, to_noise):
        with pytest.raises(ValueError, match="epsilon, v_prediction, sample, got 'flow_prediction'"):
            read(torch.zeros(1), torch.zeros(1), 0.5, "flow_prediction")


def test_velocity_is_the_derivative_along_the_circle_from_signal_to_noise():
    """With x = cos(phi) x_0 + sin(phi) noise, v is dx/dphi (Salimans & Ho 2022)."""
    latents, noise = random_latents(2, 1, 4, 8, 8).double()
    angle = math.acos(math.sqrt(0.3))
    step = 1e-6
    ahead, behind = (math.cos(phi) * latents + math.sin(phi) * noise for phi in (angle + step, angle - step))
    analytic = velocity(latents, noise, torch.tensor([0]), torch.tensor([0.3], dtype=torch.float64))
    torch.testing.assert_close(analytic, (ahead - behind) / (2 * step), atol=1e-8, rtol=1e-6)


def test_the_score_is_the_gradient_of_the_log_density():
    """Of log N(x_t; sqrt(alpha-bar) x_0, 1 - alpha-bar) at the true noise: -noise / sqrt(1 - alpha-bar)."""
    latents, noise = random_latents(2, 1, 4, 8, 8).double()
    alpha_bar = 0.3
    noisy = (alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise).requires_grad_()
    log_density = -((noisy - alpha_bar**0.5 * latents) ** 2).sum() / (2 * (1 - alpha_bar))
    log_density.backward()
    torch.testing.assert_close(score(noise, alpha_bar), noisy.grad)


def test_the_posterior_is_bayes_rule():
    """q(x_{t-1} given x_t, x_0) is q(x_t given x_{t-1}) times q(x_{t-1} given x_0), as densities of x_{t-1}.

    Two Gaussians multiplied: precisions add, and the mean is the precision-weighted one.
    """
    original, sample = random_latents(2, 1, 4, 8, 8).double()
    left = alphas_cumprod(make_betas("scaled_linear").double())
    alpha_bar, alpha_bar_next = float(left[700]), float(left[699])
    alpha = alpha_bar / alpha_bar_next
    from_sample, from_original = alpha / (1 - alpha), 1 / (1 - alpha_bar_next)  # precisions
    variance = 1 / (from_sample + from_original)
    mean = variance * (from_sample * sample / alpha**0.5 + from_original * alpha_bar_next**0.5 * original)
    torch.testing.assert_close(posterior_mean(sample, original, alpha_bar, alpha_bar_next), mean)
    assert posterior_variances(alpha_bar, alpha_bar_next)[1] == pytest.approx(variance, rel=1e-9)


def test_the_posterior_mean_in_terms_of_the_noise_is_the_reverse_mean():
    """(x_t - (1 - alpha) / sqrt(1 - alpha-bar) noise) / sqrt(alpha): eq. 11 of Ho et al. 2020.

    Correction of a seed, whose full pipeline has sqrt(1 - alpha) in place of that coefficient.
    """
    original, noise = random_latents(2, 1, 4, 8, 8).double()
    left = alphas_cumprod(make_betas("scaled_linear").double())
    alpha_bar, alpha_bar_next = float(left[700]), float(left[699])
    alpha = alpha_bar / alpha_bar_next
    sample = alpha_bar**0.5 * original + (1 - alpha_bar) ** 0.5 * noise
    reverse_mean = (sample - (1 - alpha) / (1 - alpha_bar) ** 0.5 * noise) / alpha**0.5
    torch.testing.assert_close(posterior_mean(sample, original, alpha_bar, alpha_bar_next), reverse_mean)


def test_the_two_variances_agree_at_the_noisy_end_and_part_at_the_clean_end():
    """beta-tilde is never above beta, close to it where there is little signal, and 0 at the last step."""
    left = STABLE_DIFFUSION.double()
    beta, beta_tilde = posterior_variances(left[1:], left[:-1])
    assert (beta_tilde < beta).all()
    assert float(beta_tilde[-1] / beta[-1]) > 0.999
    last_beta, last_tilde = posterior_variances(float(left[0]), 1.0)
    assert last_tilde == 0 and last_beta == pytest.approx(0.00085, rel=1e-4)
