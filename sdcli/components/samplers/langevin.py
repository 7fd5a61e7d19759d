"""Annealed Langevin dynamics: follow the gradient of ln p(x_t), a little at a time, while the noise is turned down.

Samples are (B, C, H, W) of unit variance; alpha_bar is the signal variance left, a number in [0, 1].

The plainest sampler that a score allows, and one to learn from: it knows no posterior and no ODE. Every call is one
evaluation of the model, at a noise level of its own, so that n inference steps are n levels and n evaluations. Song &
Ermon take a hundred corrections at each of ten levels; as many evaluations spread over as many levels turn the noise
down more gently. The last call only denoises. Samples always carry the noise of the level before, which shows when
levels are few: 50 to 100 steps are worth their time here, where other samplers need 20.
"""

from torch import Tensor

from sdcli.components.samplers.moment import Moment
from sdcli.components.schedule import score, to_noise

# The step, as a share of the noise variance: at 1 a call goes half of the way to the prediction. (Song & Ermon's is
# 0.2, for a hundred corrections.) Twice that shows the model much more noise than it is told of.
STEP = 1.0


def langevin_step(sample: Tensor, gradient: Tensor, alpha_bar: float, noise: Tensor) -> Tensor:
    """Go a little way to where data are likelier, and shake: many such steps draw from p(x_t).

    Args:
        sample: x_t.
        gradient: of ln p(x_t) with respect to x_t, as `score` gives it.
        alpha_bar: signal variance left at this level; the step is in proportion to the noise variance 1 - alpha_bar.
        noise: standard normal.

    Returns:
        x_t + step / 2 * gradient + sqrt(step) * noise with step = STEP * (1 - alpha_bar).

    Reference: Song & Ermon 2019 (arXiv:1907.05600), algorithm 1, lines 4 to 6.
    """
    step = STEP * (1 - alpha_bar)
    return sample + step / 2 * gradient + step**0.5 * noise


def take_langevin_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`langevin_step` for the scheduler; the last call gives E[x_0 given x_t] (Song & Ermon 2020, arXiv:2006.09011)."""
    if moment.is_last:
        return moment.pred_original_sample, ()
    alpha_bar = moment.plan.alpha_bars[moment.index]
    pred_noise = to_noise(moment.pred_original_sample, moment.sample, alpha_bar, "sample")  # after any clipping
    return langevin_step(moment.sample, score(pred_noise, alpha_bar), alpha_bar, moment.noise), ()
