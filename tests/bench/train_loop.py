"""Training the UNet part: `sdcli train` against a loop of stock parts, on the same model, data and settings.

python tests/bench/train_loop.py                 SD 1.5 at reduced depth, 512x512 pictures; on CUDA fp16 and full depth
python tests/bench/train_loop.py --depth full

The stock loop does at every step what diffusers' examples/text_to_image/train_text_to_image.py does: decode, resize and
normalise pictures, encode them with the VAE, encode captions, add noise, predict, backpropagate, clip, AdamW, constant
learning rate, and the average of the weights (`--use_ema`). sdcli encodes every picture and caption once. Both are
whole processes; interleaved; the time of a picture is the median over the updates after the first two, so what sdcli
does before its first update shows in the time of the whole process alone. Prints both rates and their ratio.
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

WARM = 2  # updates that are not counted
WIDTHS = {"reduced": (320, 640), "full": (320, 640, 1280, 1280)}


def make_model(folder: Path, depth: str) -> None:
    """A Stable Diffusion 1.5 with random weights; at reduced depth with its first two resolutions, one block each."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from conftest import write_tokenizer
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(folder.with_name("tokenizer")), local_files_only=True)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **ids)
    levels = len(WIDTHS[depth])
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        layers_per_block=1 if depth == "reduced" else 2,
        block_out_channels=WIDTHS[depth],
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = {"vae": vae, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer, "unet": unet}
    StableDiffusionPipeline(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)


def make_data(folder: Path, count: int = 8) -> None:
    """Photographs of noise, as large as people's, with captions."""
    import numpy
    from PIL import Image

    folder.mkdir()
    rows = []
    for number in range(count):
        small = numpy.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype="uint8")
        Image.fromarray(small).resize((1200, 800)).save(folder / f"{number}.jpg", quality=92)
        rows.append(json.dumps({"file_name": f"{number}.jpg", "text": f"the cat and the dog, number {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def stock(args) -> None:
    """The loop of stock parts; prints seconds per update as JSON."""
    import numpy
    import torch
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from PIL import Image, ImageOps
    from transformers import CLIPTextModel, CLIPTokenizer

    accelerator = Accelerator(mixed_precision=args.mixed, cpu=args.device == "cpu")
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.mixed]
    tokenizer = CLIPTokenizer.from_pretrained(args.model, subfolder="tokenizer")
    frozen = {"device": accelerator.device, "dtype": dtype}
    text_encoder = (
        CLIPTextModel.from_pretrained(args.model, subfolder="text_encoder").requires_grad_(False).to(**frozen)
    )
    vae = AutoencoderKL.from_pretrained(args.model, subfolder="vae").requires_grad_(False).to(**frozen)
    unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet").train()
    average = EMAModel(unet.parameters())
    scheduler = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, weight_decay=1e-2)
    rates = get_scheduler("constant", optimizer)
    rows = [json.loads(line) for line in (Path(args.data) / "metadata.jsonl").read_text().splitlines()]

    def example(row):
        with Image.open(Path(args.data) / row["file_name"]) as image:
            square = ImageOps.fit(image.convert("RGB"), (512, 512), Image.Resampling.BILINEAR)
        options = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True}
        input_ids = tokenizer(row["text"], return_tensors="pt", **options).input_ids[0]
        return torch.from_numpy(numpy.asarray(square) / numpy.float32(127.5) - 1).permute(2, 0, 1), input_ids

    loader = torch.utils.data.DataLoader(
        rows, args.batch_size, shuffle=True, collate_fn=lambda rows: [*map(example, rows)]
    )
    unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)
    average.to(accelerator.device)
    seconds, batches = [], iter(loader)
    for _ in range(args.steps):
        begun_at = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        pixel_values = torch.stack([each[0] for each in batch]).to(accelerator.device, dtype)
        input_ids = torch.stack([each[1] for each in batch]).to(accelerator.device)
        latents = vae.encode(pixel_values).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),), device=latents.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        hidden = text_encoder(input_ids, return_dict=False)[0]
        with accelerator.autocast():
            prediction = unet(noisy, timesteps, hidden, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        loss.item()
        seconds.append(time.perf_counter() - begun_at)
    print(json.dumps(seconds))


def ours(args, output: Path) -> list[float]:
    """`sdcli train` as a process; seconds per update, from its own metrics."""
    precision = "fp32" if args.mixed == "no" else args.mixed
    flags = f"--steps {args.steps} --batch-size {args.batch_size} --learning-rate 1e-5 --lr-schedule constant "
    flags += f"--sample-every 0 --checkpoint-every 100000 --device {args.device} --precision {precision}"
    command = [sys.executable, "-m", "sdcli", "train", "--data", args.data, "--model", args.model, "-o", str(output)]
    command += ["--cache", args.cache, "--progress", "none", *flags.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    elapsed = [row["elapsed_s"] for row in rows]
    return [after - before for before, after in zip([0.0, *elapsed], elapsed, strict=False)]


def measured(run) -> tuple[float, float]:
    """The median seconds of an update, and those of the whole process."""
    begun_at = time.perf_counter()
    seconds = run()
    return statistics.median(seconds[WARM:]), time.perf_counter() - begun_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", choices=WIDTHS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--stock", action="store_true", help=argparse.SUPPRESS)
    for hidden in ("--model", "--data", "--device", "--mixed", "--cache"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stock:
        stock(args)
        return
    import torch

    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.mixed = "fp16" if args.device == "cuda" else "no"
    args.depth = args.depth or ("full" if args.device == "cuda" else "reduced")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        args.model, args.data, args.cache = (str(root / name) for name in ("model", "data", "cache.sqlite3"))
        make_model(Path(args.model), args.depth)
        make_data(Path(args.data))
        passed = [word for name in ("model", "data", "device", "mixed") for word in (f"--{name}", getattr(args, name))]
        passed += ["--steps", str(args.steps), "--batch-size", str(args.batch_size)]

        def run_stock() -> list[float]:
            command = [sys.executable, __file__, "--stock", *passed]
            return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        results: dict[str, list[tuple]] = {"sdcli": [], "stock": []}
        for number in range(args.runs):
            Path(args.cache).unlink(missing_ok=True)  # every run encodes for itself
            results["sdcli"].append(measured(lambda number=number: ours(args, root / f"run{number}")))
            results["stock"].append(measured(run_stock))
        rates = {}
        for name, runs in results.items():
            seconds, whole_s = (statistics.median(values) for values in zip(*runs, strict=True))
            rates[name] = args.batch_size / seconds
            print(f"{name:6} {rates[name]:7.3f} pictures/s   whole process of {args.steps} updates {whole_s:6.1f} s")
        where = f"{os.cpu_count()} cores, {args.device}, {args.depth} depth"
        print(f"ratio  {rates['sdcli'] / rates['stock']:7.3f}   ({where})")


if __name__ == "__main__":
    main()
