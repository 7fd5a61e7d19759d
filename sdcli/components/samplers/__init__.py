"""The table of samplers: name -> how to plan a trajectory, how to take one step, and the counterpart in diffusers.

Each family has a file, where a step is a function of tensors that can be read alone: markov (ddpm, ddim), pndm,
euler (euler, euler_a, lms), second_order (heun, dpm2, dpm2_a, dpmpp_sde), dpm_solver (dpmpp_2m, dpmpp_2m_sde,
dpmpp_3m_sde), unipc, deis, consistency (lcm, tcd), langevin.
"""

from functools import partial

from sdcli.components.samplers import consistency, deis, dpm_solver, euler, langevin, markov, pndm, second_order, unipc
from sdcli.components.samplers.moment import Moment, Plan, Sampler, always_noisy, noisy_until_clean, noisy_until_last
from sdcli.components.samplers.plans import exploding_plan

_exploding = partial(Sampler, exploding=True)
_dpmpp = partial(
    Sampler,
    stock_class="DPMSolverMultistepScheduler",
    make_plan=dpm_solver.plan_dpmpp,
    step=dpm_solver.take_dpmpp_step,
    sigma_schedules=True,
    thresholds=True,
    solver_types=("midpoint", "heun"),
)

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        stock_class="DDPMScheduler",
        make_plan=markov.plan_ddpm,
        step=markov.take_ddpm_step,
        takes_noise=markov.ddpm_takes_noise,
        on_timesteps=True,
        clips=True,
        thresholds=True,
    ),
    "ddim": Sampler(
        stock_class="DDIMScheduler",
        make_plan=markov.plan_ddim,
        step=markov.take_ddim_step,
        takes_noise=markov.ddim_takes_noise,
        on_timesteps=True,
        clips=True,
        thresholds=True,
    ),
    "pndm": Sampler(stock_class="PNDMScheduler", make_plan=pndm.plan_pndm, step=pndm.take_pndm_step, on_timesteps=True),
    "lms": _exploding(
        stock_class="LMSDiscreteScheduler", make_plan=exploding_plan, step=euler.take_lms_step, sigma_schedules=True
    ),
    "euler": _exploding(
        stock_class="EulerDiscreteScheduler",
        make_plan=euler.plan_euler,
        step=euler.take_euler_step,
        sigma_schedules=True,
    ),
    "euler_a": _exploding(
        stock_class="EulerAncestralDiscreteScheduler",
        make_plan=exploding_plan,
        step=euler.take_euler_ancestral_step,
        takes_noise=noisy_until_clean,
    ),
    "heun": _exploding(
        stock_class="HeunDiscreteScheduler",
        make_plan=second_order.plan_heun,
        step=second_order.take_heun_step,
        order=2,
        sigma_schedules=True,
        clips=True,
    ),
    "dpm2": _exploding(
        stock_class="KDPM2DiscreteScheduler",
        make_plan=partial(second_order.plan_with_middles, round_karras=True),
        step=second_order.take_dpm2_step,
        order=2,
        sigma_schedules=True,
    ),
    "dpm2_a": _exploding(
        stock_class="KDPM2AncestralDiscreteScheduler",
        make_plan=partial(second_order.plan_with_middles, middle=second_order.ancestral_middle, round_karras=True),
        step=second_order.take_dpm2_step,
        takes_noise=second_order.second_call_takes_noise,
        order=2,
        sigma_schedules=True,
    ),
    "dpmpp_2m": _dpmpp(solver_orders=(2, 1, 3)),
    "dpmpp_2m_sde": _dpmpp(solver_orders=(2, 1), takes_noise=always_noisy),
    "dpmpp_sde": _exploding(
        stock_class="DPMSolverSDEScheduler",
        make_plan=second_order.plan_with_middles,
        step=second_order.take_dpmpp_sde_step,
        takes_noise=second_order.both_calls_take_noise,
        order=2,
        sigma_schedules=True,
    ),
    "dpmpp_3m_sde": _dpmpp(solver_orders=(3,), takes_noise=always_noisy),
    "unipc": Sampler(
        stock_class="UniPCMultistepScheduler",
        make_plan=unipc.plan_unipc,
        step=unipc.take_unipc_step,
        sigma_schedules=True,
        thresholds=True,
        solver_orders=(2, 1, 3),
        solver_types=("bh2", "bh1"),
    ),
    "deis": Sampler(
        stock_class="DEISMultistepScheduler",
        make_plan=deis.plan_deis,
        step=deis.take_deis_step,
        sigma_schedules=True,
        thresholds=True,
        solver_orders=(2, 1, 3),
        solver_types=("logrho",),
    ),
    "lcm": Sampler(
        stock_class="LCMScheduler",
        make_plan=consistency.plan_consistency,
        step=consistency.take_lcm_step,
        takes_noise=noisy_until_last,
        on_timesteps=True,
        clips=True,
        thresholds=True,
    ),
    "tcd": Sampler(
        stock_class="TCDScheduler",
        make_plan=consistency.plan_consistency,
        step=consistency.take_tcd_step,
        takes_noise=consistency.tcd_takes_noise,
        on_timesteps=True,
    ),
    "langevin": Sampler(
        stock_class="DDPMScheduler",
        make_plan=markov.plan_ddpm,
        step=langevin.take_langevin_step,
        takes_noise=noisy_until_last,
        on_timesteps=True,
        clips=True,
        thresholds=True,
        without_counterpart=True,
    ),
}

__all__ = ["SAMPLERS", "Moment", "Plan", "Sampler"]
