"""The losses: what each is zero for, and how timesteps are weighed."""

import pytest
import torch

from sdcli.components.schedule import add_noise, alphas_cumprod, make_betas, velocity
from sdcli.components.vae import DiagonalGaussian
from sdcli.training.objectives import (
    HUBER_DELTA,
    POINTWISE,
    denoising_loss,
    min_snr_weights,
    perceptual_error,
    vae_loss,
)

ALPHAS = alphas_cumprod(make_betas("scaled_linear", 1000, 0.00085, 0.012))


def test_a_perfect_vae_of_prior_latents_loses_nothing():
    picture = torch.rand(2, 3, 8, 8)
    zeros = torch.zeros(2, 4, 2, 2)
    assert vae_loss(picture, picture, DiagonalGaussian(zeros, zeros), kl_weight=1.0)["loss"] == 0


def test_beta_weighs_divergence_against_reconstruction():
    """Loss = mean absolute, squared and coarse error + beta * (nats per image) / (numbers per image)."""
    picture, ones = torch.zeros(1, 3, 8, 8), torch.ones(1, 4, 2, 2)
    losses = vae_loss(picture + 0.5, picture, DiagonalGaussian(ones, 0 * ones), kl_weight=10.0)
    torch.testing.assert_close(losses["loss"], torch.tensor(0.5 + 0.25 + 0.5 + 10.0 * 8 / 192))


def test_the_denoising_loss_is_zero_for_the_truth_alone():
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not denoising_loss(noise, noise, torch.ones(2)).any()
    torch.testing.assert_close(denoising_loss(noise + 1, noise, torch.tensor([1.0, 3.0])), torch.tensor([1.0, 3.0]))


def test_huber_is_the_square_near_zero_and_goes_on_straight():
    """With the square's value and slope where it turns; the absolute error is straight from the start."""
    errors = torch.tensor([0.0, 0.5, 1.0, 1.001, 3.0])[:, None] * HUBER_DELTA
    zero = torch.zeros_like(errors)
    squares, straight = errors[:, 0] ** 2, HUBER_DELTA**2 + 2 * HUBER_DELTA * (errors[:, 0] - HUBER_DELTA)
    expected = torch.where(errors[:, 0] <= HUBER_DELTA, squares, straight)
    for sign in (1, -1):
        torch.testing.assert_close(POINTWISE["huber"](sign * errors, zero), expected)
        torch.testing.assert_close(POINTWISE["l1"](sign * errors, zero), errors[:, 0])
        torch.testing.assert_close(POINTWISE["mse"](sign * errors, zero), squares)


def test_the_perceptual_error_is_about_directions_of_features_alone():
    """0 for the same directions whatever their lengths, 2 for right angles, 4 for opposite ones; a mean over layers."""
    ours = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    ahead, aside = torch.eye(2)[[0]][None], torch.eye(2)[[1]][None]  # (1, 1, 2)
    assert float(perceptual_error([ours], [3 * ours]).max()) < 1e-10
    assert float(perceptual_error([ahead], [aside])) == 2 and float(perceptual_error([ahead], [-ahead])) == 4
    assert float(perceptual_error([ahead, ahead], [aside, ahead])) == 1


def test_min_snr_weights_of_all_prediction_types_weigh_the_same_error_alike():
    """An error of x_0 costs min(SNR, gamma) whichever quantity the model predicts (Hang et al., section 3.4)."""
    generator = torch.Generator().manual_seed(0)
    latents, noise, mistake = torch.randn(3, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([20, 500, 990])
    alpha_bar = ALPHAS[timesteps].view(-1, 1, 1, 1)
    noisy = add_noise(latents, noise, timesteps, ALPHAS)
    guess = latents + 0.1 * mistake
    guessed_noise = (noisy - alpha_bar.sqrt() * guess) / (1 - alpha_bar).sqrt()
    pairs = {
        "sample": (guess, latents),
        "epsilon": (guessed_noise, noise),
        "v_prediction": (
            alpha_bar.sqrt() * guessed_noise - (1 - alpha_bar).sqrt() * guess,
            velocity(latents, noise, timesteps, ALPHAS),
        ),
    }
    losses = [
        denoising_loss(*pair, min_snr_weights(ALPHAS, timesteps, 5.0, kind)).mean() for kind, pair in pairs.items()
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_are_finite_where_no_signal_is_left(kind):
    """Zero terminal SNR makes no 0/0 (the peers' division by zero)."""
    weights = min_snr_weights(torch.tensor([0.5, 0.0]), torch.tensor([1]), 5.0, kind)
    assert weights.isfinite().all()


def test_without_gamma_all_timesteps_count_alike():
    assert min_snr_weights(ALPHAS, torch.tensor([1, 999]), None, "epsilon").tolist() == [1, 1]
