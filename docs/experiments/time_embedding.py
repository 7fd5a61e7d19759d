"""A UNet that is told t against one that has to see for itself how noisy a picture is. See time-embedding.md.

pip install '.[experiments]'
python docs/experiments/time_embedding.py --jobs 2 --output runs/experiments
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from figures import comparison, samples_sheet
from recipe import Bench, Variant, read_arguments, real_files, spread

VARIANTS = (Variant("told-mse", "told t"), Variant("not-told-mse", "not told t", told=False))


def table(runs: Sequence[Mapping], real: Mapping) -> str:
    """What was measured, as markdown: mean and standard deviation over the seeds."""
    lines = [
        "| UNet | weights | training loss | held-out loss | bits/dim | Fréchet, DDIM | Fréchet, fresh noise "
        "| accuracy, DDIM | accuracy, fresh noise |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["variant"] for run in runs):
        some = [run for run in runs if run["variant"] == name]
        cells = [
            some[0]["label"],
            f"{some[0]['weights']:,}",
            spread([run["train_loss"] for run in some], 4),
            spread([run["held_out_loss"] for run in some], 4),
            spread([run["bits_per_dim"] for run in some], 3),
            *(spread([run[how]["frechet"] for run in some], 2) for how in ("still", "fresh")),
            *(spread([run[how]["accuracy"] for run in some], 1, 100) + " %" for how in ("still", "fresh")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    floor, judge = f"{real['frechet']:.2f}", f"{real['judge_accuracy']:.1%}".replace("%", " %")
    lines.append(f"| *real pictures* | | | | | {floor} | {floor} | {judge} | {judge} |")
    return "\n".join(lines)


def main() -> None:
    """Make all runs that are not there yet, then the table, the figures and what they come from."""
    output, plan, seeds, jobs = read_arguments(__doc__.splitlines()[0])
    bench = Bench(output, plan)
    runs = bench.all_figures(VARIANTS, seeds, jobs)
    real = bench.references()
    results = {"runs": runs, "real": real}
    (output / "time-embedding.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    measures = (
        ("bits per dimension", "bits_per_dim", None),
        ("Fréchet, DDIM", "still.frechet", real["frechet"]),
        ("Fréchet, fresh noise", "fresh.frechet", real["frechet"]),
        ("accuracy, DDIM", "still.accuracy", real["judge_accuracy"]),
    )
    (output / "time-embedding.png").write_bytes(comparison(runs, measures, "told-mse"))
    rows = [("real", real_files(bench))]
    for how, words in (("still", "DDIM"), ("fresh", "fresh noise")):
        rows += [(f"{each.label},\n{words}", bench.samples(each, seeds[0], how)) for each in VARIANTS]
    (output / "time-embedding-samples.png").write_bytes(samples_sheet(rows))
    print(table(runs, real))


if __name__ == "__main__":
    main()
