"""How a setting of a training run becomes a flag: its default, its section of the help, what Tab offers for it."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import typer

from sdcli.cli.completion import among, architectures, model_names
from sdcli.cli.help import with_default
from sdcli.cli.options import DEVICES, MACHINE, PRECISIONS
from sdcli.training.choices import CHOICES
from sdcli.training.settings import TrainSettings

DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
HINTS = get_type_hints(TrainSettings)
METAVARS = {int: "N", float: "X", str: "TEXT", tuple[str, ...]: "TEXT"}
PLACES = {  # what a text names, where it is neither free nor one of CHOICES
    "data": "FOLDER|hf:OWNER/NAME",
    "where": "COLUMN=VALUE,...",
    "output": "RUN",
    "model": "NAME|FOLDER|FILE|HUB_ID",
    "config": "NAME|FILE.toml",
    "cache": "FILE|none",
    "device": "NAME",
    "precision": "NAME",
    "resolution": "PX",
}
SECTIONS = {
    "Data": "data where resolution buckets random_crop random_flip random_affine color_jitter grounds pairs "
    "variations caption_dropout caption_filler validation_split on_error allow_data_change cache num_workers",
    "Run": "output part model config steps seed",
    "What is learned": "loss prediction_type zero_terminal_snr snr_gamma noise_offset kl_weight perceptual_weight "
    "adversarial_weight caption_weight lock",
    "LoRA and embedding": "rank alpha targets token initialize_from",
    "How it is learned": "batch_size accumulate learning_rate text_encoder_lr lr_schedule warmup optimizer "
    "weight_decay max_grad_norm ema average",
    "What is told and kept": "validate_every sample_prompts sample_every checkpoint_every keep tracker save_precision",
    MACHINE: "device precision gradient_checkpointing channels_last tf32 compile",
}
OF_RUN = {"rich_help_panel": "Run"}  # of flags that are no settings
SECTION_OF = {name: title for title, names in SECTIONS.items() for name in names.split()}
COMPLETIONS = {name: among(names) for name, names in CHOICES.items()} | {
    "model": model_names,
    "config": architectures,
    "device": among(DEVICES),
    "precision": among(PRECISIONS),
}


def option(name: str, text: str, *spellings: str) -> Any:
    """A flag of a setting, whose default lives in TrainSettings."""
    default = DEFAULTS[name]
    if default not in (None, (), dataclasses.MISSING) and default is not False:
        text = with_default(text, default)
    return typer.Option(
        *(spellings or ("--" + name.replace("_", "-"),)),
        metavar=metavar_of(name),
        help=text,
        show_default=False,
        rich_help_panel=SECTION_OF.get(name),
        autocompletion=COMPLETIONS.get(name),
    )


def metavar_of(name: str) -> str | None:
    """What stands for the value of a setting; None for a switch."""
    if name in CHOICES:
        return "NAME"
    hint = HINTS[name]
    kinds = [kind for kind in METAVARS if kind in (hint, *getattr(hint, "__args__", ()))]
    return PLACES.get(name) or (METAVARS[kinds[0]] if kinds else None)
