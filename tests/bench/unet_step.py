"""One UNet step at full size: our UNet against stock UNet2DConditionModel, on the same random weights.

python tests/bench/unet_step.py                                     SD 1.5, 64x64 latents, batch 2; on CUDA in fp16
python tests/bench/unet_step.py --family sdxl --size 128 --batch 1  SDXL

Prints the median times of interleaved runs and their ratio, the peak memory of each, and how far the outputs are apart.
Our step reuses the keys and values of the text, as denoising does; computing them, once per prompt, is timed by itself.
"""

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from sdcli.components.unet import UNet

sys.path.insert(0, str(Path(__file__).parents[1]))
from sd15 import build, random_weights

MIB = 2**20
FAMILIES = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def random_inputs(config, args, device, dtype):
    def normal(*shape):
        return torch.randn(args.batch, *shape, generator=generator).to(device, dtype)

    generator = torch.Generator().manual_seed(1)
    inputs = {"sample": normal(4, args.size, args.size), "timestep": torch.tensor(501, device=device)}
    inputs["encoder_hidden_states"] = normal(77, config["cross_attention_dim"])
    if "addition_embed_type" in config:
        time_ids = torch.tensor([[8.0 * args.size, 8.0 * args.size, 0, 0, 8.0 * args.size, 8.0 * args.size]])
        inputs["added_cond_kwargs"] = {
            "text_embeds": normal(1280),
            "time_ids": time_ids.repeat(args.batch, 1).to(device),
        }
    return inputs


def timed(call, device):
    started_at = time.perf_counter()
    output = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return output, time.perf_counter() - started_at


def peak_memory(call, device):
    """Bytes: on CUDA allocated by torch, elsewhere the resident memory of this process (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    call()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="sd15")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="float16 on CUDA, else float32")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the latents")
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("float16" if device.type == "cuda" else "float32"))

    config = FAMILIES[args.family]
    with torch.device("meta"):
        shapes = UNet2DConditionModel(**config).state_dict()
    weights = random_weights(shapes, device, dtype)
    ours, stock = build(UNet, config, weights), build(UNet2DConditionModel, config, weights)
    del weights
    inputs = random_inputs(config, args, device, dtype)
    text = inputs["encoder_hidden_states"]
    own_inputs = {name: value for name, value in inputs.items() if name != "encoder_hidden_states"}
    own_inputs["text_keys_values"] = ours.project_text(text)

    calls = {"ours": lambda: ours(**own_inputs), "stock": lambda: stock(**inputs).sample}
    peaks = {name: peak_memory(call, device) for name, call in calls.items()}  # and warm-up
    seconds, outputs = {name: [] for name in calls}, {}
    for _ in range(args.runs):
        for name, call in calls.items():
            outputs[name], elapsed_s = timed(call, device)
            seconds[name].append(elapsed_s)
    _, projection_s = timed(lambda: ours.project_text(text), device)

    where = f"{dtype}, {device}, {torch.get_num_threads()} threads"
    print(f"{args.family}, {args.size}x{args.size} latents, batch {args.batch}, {where}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        runs = ", ".join(f"{value:.4f}" for value in seconds[name])
        print(f"{name:5}  median {median:.4f} s of {runs}; peak {peaks[name] / MIB:.0f} MiB")
    error = (outputs["ours"] - outputs["stock"]).abs().max() / outputs["stock"].abs().max()
    print(
        f"ratio  {medians['ours'] / medians['stock']:.3f}; text, once per prompt and not counted: {projection_s:.4f} s"
    )
    print(f"error  {error:.2e} = max|ours - stock| / max|stock|")


if __name__ == "__main__":
    main()
