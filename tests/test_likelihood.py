"""The likelihood bound is exact where the model is, and agrees with a second implementation of the published one."""

import math

import numpy
import pytest
import torch
from scipy import stats

from sdcli.components.schedule import add_noise, alphas_cumprod, make_betas, rescale_zero_terminal_snr, velocity
from sdcli.components.scheduler import Scheduler
from sdcli.components.unet import UNet
from sdcli.errors import SdcliError
from sdcli.evaluation.bound import BoundSettings, Coding, Likelihood, encode
from sdcli.evaluation.denoising import PictureDenoiser, tell
from sdcli.evaluation.likelihood import TWICE, Bound, ReverseProcess, draw_levels, estimate_bound, stratum_edges
from sdcli.pipeline import SdPipeline

LINEAR = alphas_cumprod(make_betas("linear", 200, 1e-4, 0.08).double())
ZERO = alphas_cumprod(rescale_zero_terminal_snr(make_betas("scaled_linear", 100).double()))
NUMBERS = 12


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def standard_normal_process() -> ReverseProcess:
    """The best denoiser of data N(0, I): E[x_0 given x_t] = sqrt(alpha-bar) x_t, that is noise sqrt(1 - alpha-bar) x_t.

    The reverse steps of such data have exactly the variance beta.
    """

    def denoiser(noisy, timesteps):
        return LINEAR[timesteps].sqrt().view(-1, 1) * noisy, None

    return ReverseProcess(denoiser=denoiser, alphas_cumprod=LINEAR, variance_type="fixed_large")


def test_the_bound_is_the_likelihood_of_standard_normal_data():
    """With the analytically best noise prediction nothing is lost: −ELBO = −ln p(x), within the standard error."""
    pictures = torch.randn(2000, NUMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = -torch.from_numpy(stats.norm.logpdf(pictures.numpy())).sum(1)
    bound = estimate_bound(standard_normal_process(), pictures, generators(2000), 200)
    assert abs(float((bound.total - exact).mean())) < 3 * bound.sampling_error < 0.04 * float(exact.mean())


def test_the_mean_of_many_estimates_is_the_likelihood():
    """The same picture with two hundred noises, from strata: no bias."""
    picture = torch.linspace(-2, 2, NUMBERS, dtype=torch.float64).expand(200, -1)
    exact = -stats.norm.logpdf(picture[0].numpy()).sum()
    bound = estimate_bound(standard_normal_process(), picture, generators(200), 20)
    assert abs(float(bound.total.mean()) - exact) < 3.5 * bound.sampling_error < 0.2 * exact


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.3), (1.5, 0.05), (-0.7, 2.0)])
def test_the_bound_is_the_likelihood_of_any_gaussian_where_the_variance_is_learned(mean, deviation):
    """Data N(m, s² I), its best denoiser and the true variance of each reverse step; no signal is left at the end."""

    def denoiser(noisy, timesteps):
        left, before = ZERO[timesteps], torch.where(timesteps > 0, ZERO[timesteps - 1], 1.0)
        total, total_before = left * deviation**2 + 1 - left, before * deviation**2 + 1 - before
        gain = left.sqrt() * deviation**2 / total
        original = mean + gain.view(-1, 1) * (noisy - left.sqrt().view(-1, 1) * mean)
        variance = total_before * (1 - left / before) / total
        return original, variance.view(-1, 1).expand_as(noisy)

    process = ReverseProcess(denoiser=denoiser, alphas_cumprod=ZERO, variance_type="learned")
    pictures = mean + deviation * torch.randn(2000, NUMBERS, generator=torch.Generator().manual_seed(2)).double()
    exact = -torch.from_numpy(stats.norm(mean, deviation).logpdf(pictures.numpy())).sum(1)
    bound = estimate_bound(process, pictures, generators(2000), 100)
    assert abs(float((bound.total - exact).mean())) < 3 * bound.sampling_error < 0.6


@pytest.mark.parametrize("count", [20, 200])
def test_the_error_that_is_told_is_the_spread_of_repeated_estimates(count):
    """Of one picture, from strata and from all timesteps."""
    picture = torch.linspace(-2, 2, NUMBERS, dtype=torch.float64).expand(300, -1)
    bound = estimate_bound(standard_normal_process(), picture, generators(300), count)
    assert float(bound.variance.mean()) == pytest.approx(float(bound.total.var()), rel=0.25)


def test_each_timestep_is_told_once():
    """Of all of them, in order; of strata, one place for each."""
    pictures = torch.randn(3, NUMBERS, dtype=torch.float64)
    bound = estimate_bound(standard_normal_process(), pictures, generators(3), 200)
    places, means = zip(*bound.by_timestep(), strict=True)
    assert places == tuple(range(200))
    total = float(bound.prior.mean()) + sum(means)
    assert total == pytest.approx(float(bound.total.mean()))
    assert len(estimate_bound(standard_normal_process(), pictures[:1], generators(1), 20).by_timestep()) == 11


def test_a_worse_denoiser_has_a_worse_bound():
    """The bound is one: no other model of the same data gets below the likelihood."""
    best = standard_normal_process()
    worse = ReverseProcess(
        denoiser=lambda noisy, timesteps: (0.9 * best.denoiser(noisy, timesteps)[0], None),
        alphas_cumprod=LINEAR,
        variance_type="fixed_large",
    )
    small = ReverseProcess(denoiser=best.denoiser, alphas_cumprod=LINEAR, variance_type="fixed_small")
    pictures = torch.randn(16, NUMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = -torch.from_numpy(stats.norm.logpdf(pictures.numpy())).sum(1).mean()
    for process in (worse, small):
        bound = estimate_bound(process, pictures, generators(16), 200)
        assert float(bound.total.mean()) > float(exact) + 3 * bound.sampling_error


def digits(side: int = 8) -> torch.Tensor:
    """Scikit-learn's digits as pixel values of 256 levels, (1797, 3, 8, 8) in [-1, 1]."""
    from sklearn.datasets import load_digits

    levels = torch.from_numpy(load_digits().images / 16 * 255).round()
    return (levels / 127.5 - 1).float()[:, None].expand(-1, 3, -1, -1)


def pixel_pipeline(variance_type: str) -> SdPipeline:
    """A UNet that has learned 8x8 digits for a few dozen updates, and a short schedule."""
    torch.manual_seed(0)
    unet = UNet(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        layers_per_block=1,
        norm_num_groups=8,
    )
    scheduler = Scheduler(
        num_train_timesteps=40,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        variance_type=variance_type,
    )
    pictures, optimizer = digits(), torch.optim.Adam(unet.parameters(), 3e-3)
    for _ in range(40):
        batch = pictures[torch.randint(len(pictures), (32,))]
        noise, timesteps = torch.randn_like(batch), torch.randint(40, (32,))
        noisy = add_noise(batch, noise, timesteps, scheduler.alphas_cumprod)
        target = velocity(batch, noise, timesteps, scheduler.alphas_cumprod)
        loss = (unet(noisy, timesteps) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.6
    return SdPipeline(None, None, None, unet.eval(), scheduler)


def published_terms(unet, betas, pictures, noises, large: bool) -> numpy.ndarray:
    """L_T, L_{T-1} … L_1, L_0 of Ho et al. 2020 in float64, written from the paper with its own numbering from 1.

    beta_1 … beta_T; the mean by eq. 7 from the predicted x_0, clipped as in the authors' code, whose variance of the
    last step is beta-tilde_2 for both choices; eq. 13 for L_0. noises[t] is what makes x_t.
    """
    betas = numpy.concatenate([[0.0], betas])
    bars = numpy.cumprod(1 - betas)  # index 0 is clean: 1
    tilde = numpy.concatenate([[0.0], betas[1:] * (1 - bars[:-1]) / (1 - bars[1:])])
    last = len(betas) - 1
    signal, spread = numpy.sqrt(bars[last]) * pictures, 1 - bars[last]
    terms = [0.5 * (spread + signal**2 - 1 - numpy.log(spread)).reshape(len(pictures), -1).sum(1)]
    for step in range(last, 0, -1):
        noisy = numpy.sqrt(bars[step]) * pictures + numpy.sqrt(1 - bars[step]) * noises[step]
        velocities = unet(torch.from_numpy(noisy).float(), torch.tensor([step - 1])).double().numpy()
        predicted = (numpy.sqrt(bars[step]) * noisy - numpy.sqrt(1 - bars[step]) * velocities).clip(-1, 1)

        def mean(clean, step=step, noisy=noisy):
            ours = numpy.sqrt(bars[step - 1]) * betas[step] / (1 - bars[step]) * clean
            return ours + numpy.sqrt(1 - betas[step]) * (1 - bars[step - 1]) / (1 - bars[step]) * noisy

        variance = betas[step] if large and step > 1 else tilde[max(step, 2)]
        if step > 1:
            ratio = tilde[step] / variance
            term = 0.5 * (ratio - 1 - numpy.log(ratio) + (mean(pictures) - mean(predicted)) ** 2 / variance)
        else:
            around = stats.norm(mean(predicted), numpy.sqrt(variance))
            upper = numpy.where(pictures > 0.999, 1.0, around.cdf(pictures + 1 / 255))
            lower = numpy.where(pictures < -0.999, 0.0, around.cdf(pictures - 1 / 255))
            term = -numpy.log((upper - lower).clip(1e-300))
        terms.append(term.reshape(len(pictures), -1).sum(1))
    return numpy.stack(terms)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_the_bound_of_a_trained_pixel_model_is_the_published_one(variance_type):
    """Term by term, on the same noise: ours against numpy's float64, of a model that has learned something."""
    pipeline = pixel_pipeline(variance_type)
    pictures = digits()[:4].double()
    denoiser = PictureDenoiser(pipeline, tell(pipeline, [""] * 4, (8, 8)), clip=True)
    table = alphas_cumprod(pipeline.scheduler.betas.double())
    process = ReverseProcess(denoiser=denoiser, alphas_cumprod=table, variance_type=variance_type, discrete=True)
    bound = estimate_bound(process, pictures, generators(4), 40)

    noises = {step: [] for step in range(1, 41)}
    for generator in generators(4):
        for step in range(1, 41):
            draws = [torch.randn(3, 8, 8, generator=generator) for _ in range(1 + (step <= TWICE))]
            noises[step].append(draws[-1].double().numpy())
    noises = {step: numpy.stack(each) for step, each in noises.items()}
    with torch.no_grad():
        betas = pipeline.scheduler.betas.double().numpy()
        expected = published_terms(pipeline.unet, betas, pictures.numpy(), noises, variance_type == "fixed_large")
    numpy.testing.assert_allclose(bound.prior, expected[0], rtol=1e-9)
    on_these = torch.cat([bound.terms[:, 1 : 2 * TWICE : 2], bound.terms[:, 2 * TWICE :]], dim=1)
    numpy.testing.assert_allclose(on_these.flip(1).T, expected[1:], rtol=1e-4, atol=1e-5)
    bits = float(bound.total.mean()) / (3 * 8 * 8 * math.log(2))
    assert 0 < bits < 8  # less than the pixels as they are stored


def test_the_figures_of_a_picture_do_not_depend_on_those_beside_it():
    """Nor on how many are looked at together."""
    pictures = torch.randn(5, NUMBERS, dtype=torch.float64)
    whole = estimate_bound(standard_normal_process(), pictures, generators(5), 20)
    alone = [
        estimate_bound(standard_normal_process(), pictures[place : place + 1], generators(5)[place : place + 1], 20)
        for place in range(5)
    ]
    assert torch.equal(whole.total, alone[0].joined(*alone[1:]).total)


@pytest.mark.parametrize(("steps", "strata"), [(1000, 32), (1000, 499), (10, 4), (1000, 1)])
def test_strata_cover_every_timestep_once(steps, strata):
    """From 1 to T − 1, rising, none empty; so the weights of all draws sum to T − 1."""
    edges = stratum_edges(steps, strata)
    assert (edges[0], edges[-1], len(edges)) == (1, steps, strata + 1)
    assert all(first < end for first, end in zip(edges, edges[1:], strict=False))
    timesteps, weights = draw_levels(steps, 2 * strata, torch.Generator().manual_seed(0))
    assert float(weights[2:].sum()) == pytest.approx(steps - 1)
    assert timesteps[2:].min() >= 1 and timesteps.max() < steps


@pytest.mark.parametrize("steps", [2, 3, 32, 33, 1000])
def test_all_timesteps_are_all_of_them(steps):
    """Each with weight 1, also of a schedule with few."""
    timesteps, weights = draw_levels(steps, steps, torch.Generator())
    assert torch.zeros(steps).double().index_add_(0, timesteps, weights).tolist() == [1.0] * steps


@pytest.mark.parametrize("timesteps", [1, 0, -4, 5, 999, 5000])
def test_timesteps_that_do_not_fit_the_schedule_are_refused(timesteps):
    """They come in pairs; all of them is T."""
    with pytest.raises(SdcliError, match=f"--timesteps {timesteps} does not fit a schedule of 1000"):
        BoundSettings(timesteps=timesteps).check(1000)
    BoundSettings(timesteps=1000).check(1000)


def test_the_entropy_is_that_of_the_scaled_posterior(tiny_pipeline):
    """What the encoder's own choice of latents saves: by torch.distributions, after the scaling factor."""
    pixel_values = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        _, coding, _ = encode(tiny_pipeline, pixel_values, generators(2))
        posterior = tiny_pipeline.vae.encode(pixel_values)
    deviation = (0.5 * posterior.log_variance).exp() * tiny_pipeline.vae.config.scaling_factor
    expected = torch.distributions.Normal(torch.zeros_like(deviation), deviation).entropy().sum((1, 2, 3))
    torch.testing.assert_close(coding.entropy.float(), expected, rtol=1e-4, atol=1e-3)


def test_pixels_cost_reconstruction_and_rate():
    """The rate is what latents cost less what the posterior gives back: here 30 − 10 nats, and 12 for the pixels."""
    zeros, ones = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4).double()
    bound = Bound(torch.zeros(1).double(), zeros, ones, torch.tensor([[10.0, 10.0, 10.0, 10.0]]).double())
    coding = Coding(torch.tensor([0.04]), torch.tensor([7.0]), torch.tensor([10.0]))
    found = Likelihood(bound, (4, 2, 2), (3, 4, 4), 1000, "fixed_small", coding, torch.tensor([12.0])).figures()["vae"]
    assert (found["kl_to_diffusion_prior"], found["kl_to_normal"]) == (20.0, 7.0)
    assert found["pixels_bits_per_dim"] == pytest.approx(32 / 48 / math.log(2))
    assert found["psnr"] == pytest.approx(20)


def test_the_last_of_an_odd_number_is_held_against_its_neighbour():
    """Pairs that agree add nothing; the one that is left differs by 2 from the one before it: (2²) / 2."""
    terms = torch.tensor([[1.0, 1.0, 2.0, 2.0, 4.0]]).double()
    bound = Bound(torch.zeros(1).double(), torch.zeros(1, 5, dtype=torch.int64), torch.ones_like(terms), terms)
    assert bound.variance.tolist() == [2.0]
