"""What CLIP guidance does to the similarity of pictures and prompts: the same prompts and seeds with and without.

    python tests/bench/clip_guidance.py prompts.jsonl --count 32 --scale 2 --out guided/

Prompts are lines of text, or of JSON with the key `prompt`; every eighth is taken, so that all kinds are. Similarities
are those of the finished PNGs, whole, with the CLIP that guided; the difference is paired. OUT keeps `without/` and
`with/`, whose files {index:04d}-0.png another judge can look at, and `sheet.png` with both. Nothing is asserted.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

EVERY = 8


def main() -> None:
    """Make the pictures, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--every", type=int, default=EVERY)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("clip-guidance"))
    asked = parser.parse_args()
    lines = [line for line in asked.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = lines[:: asked.every][: asked.count]
    prompts = [json.loads(line)["prompt"] if line.startswith("{") else line for line in lines]
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "prompts.jsonl").write_text("".join(line + "\n" for line in lines))
    scores, times = {}, {}
    for name, scale in (("without", 0.0), ("with", asked.scale)):
        times[name] = make(asked, prompts, name, scale)
        scores[name] = similarities(asked.model, prompts, asked.out / name)
    gains = [after - before for before, after in zip(scores["without"], scores["with"], strict=True)]
    mean, half = statistics.mean(gains), interval(gains)
    print(f"similarity without {statistics.mean(scores['without']):.4f}, with {statistics.mean(scores['with']):.4f}")
    print(f"paired difference {mean:+.4f}, 95 % interval {mean - half:+.4f} to {mean + half:+.4f}, n = {len(gains)}")
    print(f"higher in {sum(gain > 0 for gain in gains)} of {len(gains)}")
    print(f"seconds per picture: {times['without']:.2f} without, {times['with']:.2f} with (medians)")
    sheet(asked.out, len(prompts))


def make(asked: argparse.Namespace, prompts: list[str], name: str, scale: float) -> float:
    """Make the pictures of one side, and give the median of their seconds."""
    jobs = [
        {"id": f"{place:04d}", "prompt": prompt, "seed": 1000 + place, "output": f"{place:04d}-0.png"}
        for place, prompt in enumerate(prompts)
    ]
    file = asked.out / "jobs.jsonl"
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    command = [sys.executable, "-m", "sdcli", "generate", "--jobs", str(file), "-m", asked.model, "--json"]
    command += ["--clip-guidance", str(scale), "-o", f"{asked.out / name}/", "--if-exists", "overwrite"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return statistics.median(json.loads(line)["elapsed_s"] for line in done.stdout.splitlines())


def similarities(model: str, prompts: list[str], folder: Path) -> list[float]:
    """Of each picture and its prompt."""
    from sdcli.checkpoints.folder import ON_CPU
    from sdcli.clip_models import find_with_tower, load_comparer
    from sdcli.evaluation.retrieval import embed_files

    comparer = load_comparer(find_with_tower(model), ON_CPU)
    images = embed_files(comparer, [folder / f"{place:04d}-0.png" for place in range(len(prompts))])
    return (images * comparer.embed_texts(prompts)).sum(1).tolist()


def interval(values: list[float]) -> float:
    """Half of the 95 % confidence interval of a mean, by Student's t."""
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def sheet(out: Path, count: int) -> None:
    """Both sides in rows, without above."""
    from PIL import Image

    rows, across = [], 16
    for start in range(0, count, across):
        for name in ("without", "with"):
            places = range(start, min(start + across, count))
            rows.append([Image.open(out / name / f"{place:04d}-0.png") for place in places])
    width, height = rows[0][0].size
    whole = Image.new("RGB", (across * width, len(rows) * height), "white")
    for down, row in enumerate(rows):
        for right, image in enumerate(row):
            whole.paste(image, (right * width, down * height))
    whole.save(out / "sheet.png")


if __name__ == "__main__":
    main()
