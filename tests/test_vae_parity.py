"""Our VAE = diffusers' AutoencoderKL on the same weights.

Tolerance: max|a-b| / max|b| <= 1e-5 in float32, a few hundred roundings of 6e-8 over the depth of the network.
"""

import pytest
import torch
from diffusers import AutoencoderKL

from sdcli.components.vae import VAE

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5
CONFIGS = {
    "sd": {},
    "deep": {"layers_per_block": 3},
    "no quant convolutions": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "sixteen channels": {"latent_channels": 16},
}


def twins(**changes) -> tuple[VAE, AutoencoderKL]:
    torch.manual_seed(0)
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "sample_size": 32,
        **changes,
    }
    stock = AutoencoderKL(**config).eval()
    ours = VAE(**config).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(ours.state_dict(), strict=True)
    return ours, stock


def error(ours: torch.Tensor, stock: torch.Tensor) -> float:
    return ((ours - stock).abs().max() / stock.abs().max()).item()


def pictures(height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_encode_and_decode_equal_stock(name):
    ours, stock = twins(**CONFIGS[name])
    posterior, reference = ours.encode(pictures()), stock.encode(pictures()).latent_dist
    assert error(posterior.mean, reference.mean) <= TOLERANCE
    assert error(posterior.log_variance, reference.logvar) <= TOLERANCE
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(2))
    drawn = reference.sample(torch.Generator().manual_seed(2))
    assert error(posterior.sample(noise), drawn) <= TOLERANCE
    assert error(posterior.kl(), reference.kl()) <= TOLERANCE
    assert error(ours.decode(drawn), stock.decode(drawn).sample) <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 40), (100, 36)])
@torch.no_grad()
def test_tiled_encode_and_decode_equal_stock(height, width):
    ours, stock = twins()
    ours.enable_tiling()
    stock.enable_tiling()
    latents = stock.encode(pictures(height, width)).latent_dist.mean
    assert error(ours.encode(pictures(height, width)).mean, latents) <= TOLERANCE
    assert error(ours.decode(latents), stock.decode(latents).sample) <= TOLERANCE


def test_gradients_equal_stock():
    """One step of the VAE's loss gives every weight the gradient that it has in the stock model."""
    ours, stock = twins()
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(2))
    reconstruction, posterior = ours(pictures(), noise)
    ((reconstruction - pictures()).square().mean() + 1e-3 * posterior.kl().mean()).backward()
    reference = stock.encode(pictures()).latent_dist
    reconstruction = stock.decode(reference.mean + reference.std * noise).sample
    ((reconstruction - pictures()).square().mean() + 1e-3 * reference.kl().mean()).backward()
    expected = dict(stock.named_parameters())
    largest = max(weight.grad.abs().max().item() for weight in expected.values())
    for name, weight in ours.named_parameters():
        assert (weight.grad - expected[name].grad).abs().max().item() <= TOLERANCE * largest, name
