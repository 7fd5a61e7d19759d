"""Kill a run of jobs with -9 again and again, and see that the folder ends as if nothing had happened.

    python tests/bench/soak.py [--jobs 500] [--kills 25] [--steps 2] [--seed 1] [--model NAME]

The same job file is run twice: once to its end, and once killed at random moments, most of them while pictures are
made, some while the program starts, and started again with the same command. The two folders must be the same byte for
byte, with nothing missing, nothing more, and no picture made twice. Exit code 1 if they are not.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("kitten", "rocket", "slice of pizza", "red heart", "green tree", "blue bird", "house", "umbrella")
STARTING_S = 8.0  # some kills fall within so much time after a start
SHARE_STARTING = 0.2


def write_jobs(path: Path, count: int, steps: int, chance: random.Random) -> None:
    """A job file as people write them: several sizes, samplers and guidance scales, ids on some lines."""
    lines = []
    for number in range(count):
        job = {"prompt": f"a {chance.choice(WORDS)}", "seed": chance.randrange(1000), "steps": steps}
        if number % 3 == 0:
            job["id"] = f"job-{number}"
        if number % 4 == 0:
            job |= {"sampler": chance.choice(("euler_a", "ddim", "dpmpp_2m")), "guidance_scale": chance.choice((1, 4))}
        if number % 5 == 0:
            job |= {"width": 96, "height": 160, "output": "tall/{id}-{index}.png"}
        lines.append(json.dumps(job))
    path.write_text("\n".join(lines) + "\n")


def start(jobs: Path, folder: Path, model: str) -> subprocess.Popen:
    """The command that is run again and again."""
    flags = ["--if-exists", "skip", "--progress", "none", "--offline", "--seed", "1", "--model", model]
    command = [sys.executable, "-m", "sdcli", "generate", "--jobs", str(jobs), "-o", f"{folder}/", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def pictures(folder: Path) -> dict[Path, int]:
    """Whole pictures with the moment in which each came to be."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png") if not path.name.startswith(".")}


def content(folder: Path) -> dict[str, bytes]:
    """Every file; the lines of the manifest in order, for which of two came first is chance."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found[str(path.relative_to(folder))] = (
                b"\n".join(sorted(data.split(b"\n"))) if "jsonl" in path.name else data
            )
    return found


def kill_at(process: subprocess.Popen, folder: Path, wanted: int, delay_s: float) -> bool:
    """Kill a run once so many pictures are there and some time has gone by; False if it has ended before."""
    while len(pictures(folder)) < wanted and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay_s)
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="emoji")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        jobs, whole, killed = Path(root, "jobs.jsonl"), Path(root, "whole"), Path(root, "killed")
        write_jobs(jobs, options.jobs, options.steps, chance)
        started_at = time.monotonic()
        finish(start(jobs, whole, options.model))
        print(f"{options.jobs} jobs in one go: {time.monotonic() - started_at:.0f} s", flush=True)

        started_at, seen, kills, twice = time.monotonic(), {}, 0, 0
        moments = sorted(chance.sample(range(options.jobs), options.kills))
        for moment in moments:
            process = start(jobs, killed, options.model)
            if chance.random() < SHARE_STARTING:
                kills += kill_at(process, killed, 0, chance.uniform(0, STARTING_S))
            else:
                kills += kill_at(process, killed, moment, chance.uniform(0, 0.3))
            now = pictures(killed)
            twice += sum(now.get(path) != made_at for path, made_at in seen.items())
            seen = now
            print(f"killed with {len(now)} of {options.jobs} there", flush=True)
        finish(start(jobs, killed, options.model))
        twice += sum(pictures(killed).get(path) != made_at for path, made_at in seen.items())
        print(f"killed {kills} times and finished: {time.monotonic() - started_at:.0f} s", flush=True)

        one, other = content(whole), content(killed)
    missing, more = sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
    different = sorted(name for name in one.keys() & other.keys() if one[name] != other[name])
    print(f"{len(one)} files; missing {missing}, more {more}, different {different}, made twice {twice}")
    if kills < options.kills:
        print(f"only {kills} of {options.kills} kills hit a running process: take more jobs or steps")
    sys.exit(bool(missing or more or different or twice or kills < options.kills))


def finish(process: subprocess.Popen) -> None:
    """Wait for a run that must succeed."""
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}:\n{err[-2000:]}")


if __name__ == "__main__":
    main()
