"""What the settings of a training run may be: names, ranges, what goes with which part, what may change on the way."""

import math

from sdcli.settings import LARGEST_SEED, PREDICTION_TYPES

PARTS = ("unet", "vae", "clip", "lora", "embedding", "all")
# Stages of --part all, each of which needs those before it, and the part that each trains. The last one is for text
# encoders that have learned with the UNet: the image encoder learns to agree with what they have become.
STAGES = {"vae": "vae", "clip": "clip", "unet": "unet", "image_encoder": "clip"}
OF_THE_WHOLE = {"data", "output", "part", "stages", "model", "config"}  # settings that no stage has for itself
FIXED = {"image_encoder": {"lock", "caption_weight"}}  # settings of a stage that make it what it is
ADAPTERS = ("lora", "embedding")  # parts that are put onto a model, which stays as it is
DENOISERS = ("unet", *ADAPTERS)  # parts that learn from noisy pictures
LOSSES = ("mse", "l1", "huber", "perceptual")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy", "schedulefree")
LR_SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)
AVERAGES = ("long", "short", "none")
TOWERS = ("text", "image")
SAVE_PRECISIONS = ("fp32", "fp16", "bf16")
TRACKERS = ("none", "tensorboard", "wandb")
ON_ERROR = ("stop", "skip")
CHOICES = {  # of settings that are names; None stands for a choice that something else makes
    "part": PARTS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "lr_schedule": LR_SCHEDULES,
    "average": AVERAGES,
    "lock": TOWERS,
    "prediction_type": PREDICTION_TYPES,
    "save_precision": SAVE_PRECISIONS,
    "tracker": TRACKERS,
    "on_error": ON_ERROR,
}
NEARLY_ONE = 0.999999
MOST_WORKERS = 64
RANGES = {  # of settings that are numbers: least, most
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "sample_every": (0, math.inf),
    "validate_every": (1, math.inf),
    "checkpoint_every": (1, math.inf),
    "keep": (1, math.inf),
    "rank": (1, math.inf),
    "warmup": (0, math.inf),
    "weight_decay": (0, math.inf),
    "kl_weight": (0, math.inf),
    "perceptual_weight": (0, math.inf),
    "adversarial_weight": (0, math.inf),
    "caption_weight": (0, math.inf),
    "noise_offset": (0, 1),
    "seed": (0, LARGEST_SEED),
    "num_workers": (0, MOST_WORKERS),
    "ema": (0, NEARLY_ONE),
    "caption_dropout": (0, 1),
    "caption_filler": (0, 1),
    "random_flip": (0, 1),
    "random_affine": (0, 0.5),
    "color_jitter": (0, 1),
    "grounds": (0, 1),
    "pairs": (0, 1),
    "variations": (0, math.inf),
    "validation_split": (0, 0.9),
}
POSITIVE = {  # settings that are numbers above 0, and what is usual
    "learning_rate": 1e-4,
    "text_encoder_lr": 1e-5,
    "max_grad_norm": 1.0,
    "snr_gamma": 5,
    "alpha": 8,
}
OF_ONE_PART = {
    "token": "embedding",
    "initialize_from": "embedding",
    "targets": "lora",
    "alpha": "lora",
    "lock": "clip",
    "text_encoder_lr": "unet",
}
MAY_CHANGE_ON_RESUME = (
    "steps",
    "sample_every",
    "sample_prompts",
    "validate_every",
    "checkpoint_every",
    "keep",
    "average",
    "save_precision",
    "tracker",
    "num_workers",
    "cache",
    "device",
    "allow_data_change",
)
