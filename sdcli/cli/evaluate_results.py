"""What `sdcli evaluate` prints and draws: figures, as `--json` has them, to lines that people read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sdcli.cli import options
from sdcli.cli.figures import FigureTarget
from sdcli.cli.models import table


def likelihood_lines(found: dict[str, Any]) -> list[str]:
    """The terms a line each, in nats per picture and bits per dimension."""
    nats, numbers = found["nats"], math.prod(found["shape"])
    bits = 1 / (numbers * math.log(2))
    rows = [("term", "nats/picture", "bits/dim")]
    for name, key in (("L_T prior", "prior"), ("L_t denoising", "denoising"), ("L_0 decoder", "decoder")):
        rows.append((name, f"{nats[key]:.2f}", f"{nats[key] * bits:.4f}"))
    rows.append(("bound", f"{nats['bound']:.2f}", f"{found['bits_per_dim']:.4f}"))
    if nats["sampling_error"] > 0:
        rows.append(("± noise, timesteps", f"{nats['sampling_error']:.2f}", f"{nats['sampling_error'] * bits:.4f}"))
    if nats["standard_error"] is not None:
        rows.append(("± pictures", f"{nats['standard_error']:.2f}", f"{nats['standard_error'] * bits:.4f}"))
    how = "in strata" if found["stratified"] else "all"
    lines = [
        f"{found['pictures']} pictures under {found['model']}: {'x'.join(map(str, found['shape']))} {found['space']}, "
        f"L_0 is the {found['decoder']}",
        f"{found['evaluated_timesteps']} of {found['num_train_timesteps']} timesteps ({how}), "
        f"variance {found['variance']}",
        *table(rows),
    ]
    if "vae" in found:
        vae = found["vae"]
        lines += table(
            [
                ("VAE reconstruction", f"{vae['reconstruction']:.2f} nats", f"PSNR {vae['psnr']:.2f} dB"),
                ("VAE KL to the normal", f"{vae['kl_to_normal']:.2f} nats", ""),
                ("VAE KL to the diffusion prior", f"{vae['kl_to_diffusion_prior']:.2f} nats", ""),
                ("pixels, by both", f"{vae['pixels_bits_per_dim']:.4f} bits/dim", ""),
            ]
        )
    return lines


def vae_lines(found: dict[str, Any]) -> list[str]:
    """Means a line each, then the channels, then the worst picture."""
    rows = [("channel", "mean", "std", "std scaled", "KL nats/latent")]
    for number, each in enumerate(found["channels"]):
        values = (each["mean"], each["std"], each["scaled_std"], each["kl_per_latent"])
        rows.append((str(number), *(f"{value:.3f}" for value in values)))
    return [
        f"{found['pictures']} pictures through the VAE of {found['model']}",
        *table(
            [
                ("PSNR", f"{found['psnr']:.2f} dB"),
                ("SSIM", f"{found['ssim']:.4f}"),
                ("L1", f"{found['l1']:.4f}"),
                ("KL", f"{found['kl_per_latent']:.3f} nats per latent number"),
            ]
        ),
        *table(rows),
        f"worst: {found['worst'][0]['path']} ({found['worst'][0]['psnr']:.2f} dB)",
    ]


def clip_lines(found: dict[str, Any]) -> list[str]:
    """Both directions a line each, then classes."""
    rows = [("found", "R@1", "R@5", "R@10", "median rank")]
    for name, key in (("captions of a picture", "image_to_text"), ("pictures of a caption", "text_to_image")):
        ranks = found[key]
        rows.append((name, *(f"{ranks[f'r@{most}']:.1%}" for most in (1, 5, 10)), f"{ranks['median_rank']:g}"))
    lines = [f"{found['pictures']} pictures and {found['captions']} captions under {found['model']}", *table(rows)]
    if "zero_shot" in found:
        zero_shot = found["zero_shot"]
        lines.append(f"zero-shot accuracy: {zero_shot['accuracy']:.1%} of {zero_shot['classes']} classes")
    return lines


def denoiser_lines(found: dict[str, Any]) -> list[str]:
    """A line for each range of timesteps."""
    rows = [("timesteps", f"loss ({found['prediction_type']})", "loss (noise)")]
    for each in found["bins"]:
        rows.append((f"{each['first']} to {each['last']}", f"{each['loss']:.5f}", f"{each['noise_loss']:.5f}"))
    rows.append(("all", f"{found['loss']:.5f}", f"{found['noise_loss']:.5f}"))
    return [f"{found['pictures']} pictures, {found['draws']} draws in each range, under {found['model']}", *table(rows)]


def sample_lines(found: dict[str, Any]) -> list[str]:
    """The figures a line each."""
    return [
        f"{found['samples']} samples against {found['pictures']} pictures, in {found['features']} features of the CLIP "
        f"image tower of {found['model']}",
        *table(
            [
                ("Fréchet distance", f"{found['frechet_distance']:.4f}"),
                ("precision", f"{found['precision']:.1%}"),
                ("recall", f"{found['recall']:.1%}"),
            ]
        ),
    ]


def finish(
    found: dict[str, Any],
    lines: Callable[[dict[str, Any]], list[str]],
    as_json: bool,
    target: FigureTarget | None = None,
    drawing: str = "",
    drawn: Any = None,
) -> None:
    """Draw the figure that was asked for, then print the figures.

    Args:
        found: the figures.
        lines: them as text.
        as_json: print them as JSON instead.
        target: where the drawing goes.
        drawing: name of the function in `sdcli.plots.figures`.
        drawn: what it draws; None is `found`.
    """
    if target is not None and target.wanted:
        from sdcli.plots import figures

        found["plot"] = str(target.write(getattr(figures, drawing)(found if drawn is None else drawn, target.format)))
    if as_json:
        options.print_json(found)
        return
    for line in lines(found):
        options.print_result(line)
