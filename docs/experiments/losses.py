"""The squared error against three other losses of a UNet. See losses.md.

pip install '.[experiments]'
python docs/experiments/losses.py --jobs 2 --output runs/experiments
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from figures import comparison, samples_sheet
from recipe import Bench, Variant, read_arguments, real_files, spread

VARIANTS = (
    Variant("told-mse", "MSE"),  # the runs that are told t in time_embedding.py
    Variant("told-l1", "L1", loss="l1"),
    Variant("told-huber", "Huber", loss="huber"),
    Variant("told-perceptual", "perceptual", loss="perceptual"),
)


def table(runs: Sequence[Mapping], real: Mapping) -> str:
    """What was measured, as markdown: mean and standard deviation over the seeds."""
    lines = [
        "| loss | its value in training | held-out MSE | bits/dim | Fréchet, DDIM | Fréchet, fresh noise "
        "| Fréchet in CLIP's features, DDIM | accuracy, DDIM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["variant"] for run in runs):
        some = [run for run in runs if run["variant"] == name]
        cells = [
            some[0]["label"],
            spread([run["train_loss"] for run in some], 4),
            spread([run["held_out_loss"] for run in some], 4),
            spread([run["bits_per_dim"] for run in some], 3),
            *(spread([run[how]["frechet"] for run in some], 2) for how in ("still", "fresh")),
            spread([run["still"]["clip_frechet"] for run in some], 2),
            spread([run["still"]["accuracy"] for run in some], 1, 100) + " %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    accuracy = f"{real['judge_accuracy']:.1%}".replace("%", " %")
    floor, of_clip = f"{real['frechet']:.2f}", f"{real['clip_frechet']:.2f}"
    lines.append(f"| *real pictures* | | | | {floor} | {floor} | {of_clip} | {accuracy} |")
    return "\n".join(lines)


def main() -> None:
    """Make all runs that are not there yet, then the table, the figures and what they come from."""
    output, plan, seeds, jobs = read_arguments(__doc__.splitlines()[0])
    bench = Bench(output, plan)
    runs = bench.all_figures(VARIANTS, seeds, jobs)
    runs.sort(key=lambda run: [each.name for each in VARIANTS].index(run["variant"]))
    real = bench.references()
    results = {"runs": runs, "real": real}
    (output / "losses.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    measures = (
        ("bits per dimension", "bits_per_dim", None),
        ("Fréchet, DDIM", "still.frechet", real["frechet"]),
        ("in CLIP's features", "still.clip_frechet", real["clip_frechet"]),
        ("accuracy, DDIM", "still.accuracy", real["judge_accuracy"]),
    )
    (output / "losses.png").write_bytes(comparison(runs, measures, "told-mse"))
    rows = [("real", real_files(bench))] + [(each.label, bench.samples(each, seeds[0], "still")) for each in VARIANTS]
    (output / "losses-samples.png").write_bytes(samples_sheet(rows))
    print(table(runs, real))


if __name__ == "__main__":
    main()
