"""Properties of the VAE and of its latents."""

import pytest
import torch

from sdcli.components.tiling import run_in_tiles
from sdcli.components.vae import VAE, DiagonalGaussian


def tiny_vae(**changes) -> VAE:
    torch.manual_seed(0)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    shape = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "sample_size": 32}
    return VAE(**{**levels, **shape, **changes}).eval()


def test_each_level_but_the_last_halves_the_sides():
    """Three levels are a stride of four: 16 times fewer positions, in latent_channels channels."""
    vae = tiny_vae()
    posterior = vae.encode(torch.zeros(2, 3, 32, 48))
    assert vae.stride == 4
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 4, 8, 12)
    assert vae.decode(posterior.mode).shape == (2, 3, 32, 48)


def test_stable_diffusion_keeps_one_number_of_forty_eight():
    """512x512x3 numbers become 64x64x4: eight per side, 48 times fewer numbers (the theory's row 8)."""
    names = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = VAE(**names, block_out_channels=(4, 4, 4, 4), norm_num_groups=2)
    with torch.device("meta"):
        picture = torch.empty(1, 3, 512, 512)
    latents = vae.to("meta").encode(picture).mode
    assert latents.shape == (1, 4, 64, 64)
    assert picture.numel() / latents.numel() == 48


def test_a_sample_is_the_mean_and_the_noise_at_its_width():
    """The reparameterisation trick: a sample is a differentiable function of mean and variance."""
    mean, log_variance = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    posterior = DiagonalGaussian(mean.requires_grad_(), log_variance.requires_grad_())
    torch.testing.assert_close(posterior.sample(torch.zeros_like(mean)), mean)
    noise = torch.ones_like(mean)
    torch.testing.assert_close(posterior.sample(noise) - mean, (0.5 * log_variance).exp())
    posterior.sample(noise).sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(log_variance.grad, 0.5 * (0.5 * log_variance.detach()).exp())


def test_the_divergence_is_zero_for_the_prior_alone():
    """KL is 0 for the standard normal and grows as the mean leaves it by half its squared length."""
    zeros = torch.zeros(1, 4, 2, 2)
    assert DiagonalGaussian(zeros, zeros).kl().item() == 0
    torch.testing.assert_close(DiagonalGaussian(zeros + 3, zeros).kl(), torch.tensor([16 * 9 / 2]))


def test_tiles_of_a_network_that_looks_at_single_pixels_leave_no_trace():
    """Where a tile does not depend on what lies around it, tiling changes nothing, whatever the sides."""
    picture = torch.randn(1, 3, 45, 70, generator=torch.Generator().manual_seed(0))
    tiled = run_in_tiles(lambda tile: 2 * tile + 1, picture, tile_in=16, tile_out=16)
    torch.testing.assert_close(tiled, 2 * picture + 1)


def test_a_picture_no_larger_than_a_tile_is_not_cut():
    vae = tiny_vae()
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = vae.encode(picture).mode
    vae.enable_tiling()
    assert torch.equal(vae.encode(picture).mode, whole)


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 4, got 30x32"):
        tiny_vae().encode(torch.zeros(1, 3, 30, 32))


def test_a_block_that_no_stable_diffusion_vae_has_is_refused():
    with pytest.raises(ValueError, match="AttnDownEncoderBlock2D"):
        VAE(down_block_types=("AttnDownEncoderBlock2D",))
