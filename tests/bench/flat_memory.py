"""Whether memory stays flat over thousands of pictures: python tests/bench/flat_memory.py [--pictures 2000] [--size 64]

Runs one job file of tiny pictures, and prints the resident memory of the process as it goes, and by how
much it grows over the second half.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--size", type=int, default=64, help="pixels each way")
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        jobs = Path(root, "jobs.jsonl")
        lines = [json.dumps({"prompt": f"a kitten {number}", "seed": number}) for number in range(options.pictures)]
        jobs.write_text("\n".join(lines))
        flags = ["--steps", options.steps, "-W", options.size, "-H", options.size, "-g", 1, "--model", options.model]
        command = [sys.executable, "-m", "sdcli", "generate", "--jobs", jobs, "-o", f"{root}/out/", *flags]
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        seen: list[int] = []
        for number, _ in enumerate(process.stdout, start=1):
            if number % (options.pictures // 20) == 0:
                seen.append(psutil.Process(process.pid).memory_info().rss)
                print(f"{number:6} pictures  {seen[-1] / 2**20:7.1f} MiB", flush=True)
        if process.wait():
            raise SystemExit("it failed")
    half = len(seen) // 2
    per_picture = (seen[-1] - seen[half]) / (options.pictures * (len(seen) - 1 - half) / len(seen))
    print(f"second half: {(seen[-1] - seen[half]) / 2**20:+.1f} MiB, {per_picture:+.0f} bytes a picture")


if __name__ == "__main__":
    main()
