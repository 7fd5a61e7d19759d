"""A whole process from prompt to PNG: sdcli against stock diffusers and against `diffusers-cli run`, on one folder.

    python tests/bench/whole_process.py [--model FOLDER] [--runs 5] [--device cpu|cuda] [--dtype fp32|fp16]
    python tests/bench/whole_process.py --model /tmp/sd15 --size 256 --steps 4 --runs 3    after full_size.py /tmp/sd15

Runs are interleaved; the figures are medians of wall time and of peak memory, and their ratios. The folder defaults to
the built-in model. All three make one picture of the same size, steps and guidance.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, GUIDANCE = "a cute kitten", 4.0
STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, output, device, dtype, prompt, steps, guidance, size = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), safety_checker=None)
pipeline = pipeline.to(device)
generator = torch.Generator("cpu").manual_seed(1)
size = {"height": int(size), "width": int(size)} if int(size) else {}
how = {"num_inference_steps": int(steps), "guidance_scale": float(guidance), "generator": generator, **size}
image = pipeline(prompt, **how).images[0]
image.save(output)
"""


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall time in seconds and peak resident memory in MiB of a process that must succeed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started_at = time.perf_counter()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
    elapsed_s = time.perf_counter() - started_at
    if status:
        raise SystemExit(f"{command[:4]} failed:\n{(folder / 'log').read_text()[-2000:]}")
    return elapsed_s, usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)  # macOS counts bytes


def commands(model: str, options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The three ways to the same picture."""
    device, dtype, steps = options.device, options.dtype, str(options.steps)
    full = {"fp32": "float32", "fp16": "float16"}[dtype]
    common = [PROMPT, steps, str(GUIDANCE), str(options.size)]
    cli = Path(sys.executable).with_name("diffusers-cli")
    ours = [sys.executable, "-m", "sdcli", "generate", PROMPT, "--model", model, "--seed", "1", "--steps", steps]
    ours += [
        "-g",
        str(GUIDANCE),
        "-o",
        "ours.png",
        "--if-exists",
        "overwrite",
        "--device",
        device,
        "--precision",
        dtype,
    ]
    about = {"prompt": PROMPT, "num_inference_steps": options.steps, "guidance_scale": GUIDANCE}
    if options.size:
        ours += ["-W", str(options.size), "-H", str(options.size)]
        about |= {"width": options.size, "height": options.size}
    settings = json.dumps(about)
    stock_cli = [str(cli), "run", "--model", model, "--seed", "1", "--device-map", device, "--dtype", dtype]
    stock_cli += ["--pipeline-kwargs", settings, "--output", str(folder / "cli.png")]
    return {
        "sdcli": ours,
        "stock script": [sys.executable, "-c", STOCK, model, "stock.png", device, full, *common],
        "diffusers-cli run": stock_cli,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parents[2] / "sdcli" / "builtin" / "emoji"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=0, help="pixels; 0 is the model's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ways = commands(str(Path(options.model).resolve()), options, folder)
        results = {name: [] for name in ways}
        for _ in range(options.runs + 1):  # the first one warms the file cache
            for name, command in ways.items():
                results[name].append(measure(command, folder))
    medians = {
        name: [statistics.median(each) for each in zip(*rows[1:], strict=True)] for name, rows in results.items()
    }
    for name, (elapsed_s, peak_mib) in medians.items():
        time_ratio, memory_ratio = (ours / theirs for ours, theirs in zip(medians["sdcli"], medians[name], strict=True))
        ratios = f"sdcli takes {time_ratio:.2f} of its time, {memory_ratio:.2f} of its memory"
        print(f"{name:18s} {elapsed_s:7.2f} s {peak_mib:8.0f} MiB   {ratios}")


if __name__ == "__main__":
    main()
