"""Many pictures: one job file against a loop of single commands and against a stock diffusers script that batches.

    python tests/bench/many.py [--pictures 64] [--loop 64] [--batch-size 8] [--steps 20] [--model FOLDER]

Everything is timed as whole processes, so that each pays for what it loads and imports; the three run one after the
other, twice in turn with --runs 2. Prints images per second, and ratios. Of the loop only so many commands are run as
--loop says, and its rate is that of those.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GUIDANCE = 4.0
BUILTIN = Path(__file__).parents[2] / "sdcli" / "builtin" / "emoji"
WORDS = ("kitten", "rocket", "slice of pizza", "red heart", "green tree", "blue bird", "house", "umbrella")
STOCK = """
import json, sys, torch
from diffusers import StableDiffusionPipeline
folder, jobs, output, steps, guidance, size = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
pipeline.set_progress_bar_config(disable=True)
jobs = [json.loads(line) for line in open(jobs)]
size = int(size)
for start in range(0, len(jobs), size):
    group = jobs[start : start + size]
    generators = [torch.Generator("cpu").manual_seed(job["seed"]) for job in group]
    prompts = [job["prompt"] for job in group]
    how = {"num_inference_steps": int(steps), "guidance_scale": float(guidance), "generator": generators}
    for job, image in zip(group, pipeline(prompts, **how).images):
        image.save(f"{output}/{job['id']}.png")
"""


def seconds(run: Callable[[], None]) -> float:
    """How long something takes."""
    started_at = time.perf_counter()
    run()
    return time.perf_counter() - started_at


def call(*command: object) -> None:
    """A command that must succeed."""
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--loop", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--model", default=str(BUILTIN))
    options = parser.parse_args()
    model = str(Path(options.model).resolve())
    jobs = [
        {"id": str(number), "prompt": f"a {WORDS[number % len(WORDS)]}", "seed": number}
        for number in range(options.pictures)
    ]
    flags = ("--model", model, "--steps", options.steps, "-g", GUIDANCE, "--progress", "none", "--precision", "fp32")
    sdcli = (sys.executable, "-m", "sdcli", "generate", *flags)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        file = Path(root, "jobs.jsonl")
        file.write_text("".join(json.dumps(job) + "\n" for job in jobs))
        for number in range(options.runs):
            folder = Path(root, str(number))

            def one_file(folder: Path = folder) -> None:
                call(*sdcli, "--jobs", file, "-o", f"{folder}/ours/")

            def loop(folder: Path = folder) -> None:
                for job in jobs[: options.loop]:
                    call(*sdcli, job["prompt"], "-s", job["seed"], "-o", f"{folder}/loop/{job['id']}.png")

            def stock(folder: Path = folder) -> None:
                (folder / "stock").mkdir(parents=True)
                how = (options.steps, GUIDANCE, options.batch_size)
                call(sys.executable, "-c", STOCK, model, file, folder / "stock", *how)

            for name, run, count in (
                ("one job file", one_file, options.pictures),
                ("stock script", stock, options.pictures),
                ("loop of commands", loop, min(options.loop, options.pictures)),
            ):
                rates.setdefault(name, []).append(count / seconds(run))
                print(f"{name}: {rates[name][-1]:.3f} images/s", flush=True)
    medians = {name: statistics.median(each) for name, each in rates.items()}
    for name in ("loop of commands", "stock script"):
        print(f"one job file is {medians['one job file'] / medians[name]:.2f} x {name}")


if __name__ == "__main__":
    main()
