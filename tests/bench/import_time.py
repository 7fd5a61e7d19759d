"""How long `sdcli --help` takes against `import torch`, interleaved, median of the runs.

    python tests/bench/import_time.py [--runs 5]

Target: the help takes at most a quarter of the import.
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "sdcli --help": [sys.executable, "-m", "sdcli", "--help"],
    "sdcli generate --help": [sys.executable, "-m", "sdcli", "generate", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "python": [sys.executable, "-c", ""],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    seconds = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):  # the first one warms the file cache
        for name, command in COMMANDS.items():
            started_at = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started_at)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:22s} {median:6.3f} s   {median / medians['import torch']:.2f} of import torch")


if __name__ == "__main__":
    main()
