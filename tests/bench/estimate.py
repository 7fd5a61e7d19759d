"""What --dry-run says against what a run takes: python tests/bench/estimate.py [--model M] [-- FLAGS OF GENERATE]

Prints time and memory, estimated and measured, and their ratios. The time is that of pictures, without loading.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time


def generate(*words: str) -> tuple[list[dict], float]:
    """The events of a command, and the most memory that it had, in bytes."""
    script = "import resource, sys; from sdcli.cli import run; code = run(sys.argv[1:]);"
    script += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
    command = [sys.executable, "-c", script, "generate", "a cute kitten", "-s", "1", "--progress", "json", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    return events, float(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("-n", type=int, default=4, help="pictures")
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    flags = ("-m", options.model, "-n", str(options.n), "--precision", "fp32", *options.flags)
    with tempfile.TemporaryDirectory() as folder:
        started_at = time.monotonic()
        events, _ = generate(*flags, "-o", f"{folder}/", "--dry-run")
        took = time.monotonic() - started_at
        (estimate,) = [event for event in events if event["event"] == "estimate"]
        events, peak = generate(*flags, "-o", f"{folder}/")
    at = {event["event"]: event["elapsed_s"] for event in events}
    seconds = at["image"] - at["load"]
    print(f"dry run took   {took:8.1f} s")
    compare("time", "s", estimate["seconds"], seconds)
    compare("memory", "MiB", estimate["memory_bytes"] / 2**20, peak / 2**20)


def compare(what: str, unit: str, estimated: float, measured: float) -> None:
    """Print both, and their ratio."""
    print(
        f"{what:8} estimated {estimated:8.1f} {unit:3}  measured {measured:8.1f} {unit:3}  {estimated / measured:.2f}"
    )


if __name__ == "__main__":
    main()
