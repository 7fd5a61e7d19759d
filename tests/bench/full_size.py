"""Write a Stable Diffusion 1.5 of full size with random weights, as a folder: python tests/bench/full_size.py FOLDER

With --dtype fp16 its files are half as large. It is what load.py and whole_process.py --model measure on.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from sd15 import stock_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16"))
    options = parser.parse_args()
    stock_pipeline({"fp32": torch.float32, "fp16": torch.float16}[options.dtype]).save_pretrained(options.folder)


if __name__ == "__main__":
    main()
