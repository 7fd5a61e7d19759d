"""Loading a model of full size: sdcli against stock `from_pretrained`, time and peak memory, in interleaved runs.

    python tests/bench/full_size.py /tmp/sd15
    python tests/bench/load.py /tmp/sd15 [--runs 5]

Each run is a process of its own that imports everything, loads the folder in fp32 on the CPU, and then reads every
weight once, so that what is only mapped from the disk counts too. Time is that of loading alone, and of loading and
reading; memory is the peak above what was there before loading, over the size of the weights in memory.
"""

import argparse
import json
import statistics
import subprocess
import sys

CHILD = """
import json, resource, sys, time
import torch
way, folder = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if way == "sdcli":
    from sdcli import load_pipeline
    import sdcli.checkpoints
    load = lambda: load_pipeline(folder, device="cpu", precision="fp32")
else:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel, PNDMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer
    load = lambda: StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
before, started = peak(), time.perf_counter()
pipeline = load()
loaded = time.perf_counter()
peak_loading = peak()
weights = 0
for name in ("unet", "vae", "text_encoder"):
    for parameter in getattr(pipeline, name).parameters():
        parameter.detach().view(-1)[::512].sum()
        weights += parameter.numel() * parameter.element_size()
read = time.perf_counter()
print(json.dumps([loaded - started, read - started, (peak_loading - before) / weights, (peak() - before) / weights]))
"""
NAMES = ("load_s", "load and read_s", "peak while loading", "peak once read")


def measure(way: str, folder: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", CHILD, way, folder], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    results = {"sdcli": [], "stock": []}
    for _ in range(options.runs + 1):  # the first one warms the file cache
        for way, rows in results.items():
            rows.append(measure(way, options.folder))
    medians = {way: [statistics.median(each) for each in zip(*rows[1:], strict=True)] for way, rows in results.items()}
    for place, name in enumerate(NAMES):
        ours, theirs = medians["sdcli"][place], medians["stock"][place]
        unit = "s" if name.endswith("_s") else "x the weights"
        said = f"sdcli {ours:.3f} {unit}, stock {theirs:.3f} {unit}, ratio {ours / theirs:.2f}"
        print(f"{name.removesuffix('_s'):20s} {said}")


if __name__ == "__main__":
    main()
