"""What all commands have in common, for docs/cli.md: words here, and every name, type and default from the program."""

import contextlib
import dataclasses
import io
import json
from dataclasses import MISSING
from pathlib import Path

from sdcli import errors
from sdcli.batch import events
from sdcli.cli.progress import JsonReporter
from sdcli.jobs import OF_JOBS
from sdcli.output import Picture
from sdcli.setting_types import ALIASES, KINDS, in_words
from sdcli.settings import STRENGTH, GenerateSettings, GenerationDefaults
from sdcli.training import events as training_events

EXIT_CODES = {
    0: "done",
    1: "a mistake that the user can fix: `error:` says what was wrong, `hint:` what to try; it is found before a model "
    "loads wherever that can be",
    2: "wrong usage: a flag, a command or a value that there is not",
    3: "out of memory, after everything that takes less of it was tried",
    4: "the networks gave values that are no numbers; no picture is written",
    5: "some of many failed, the rest is done (`--on-error skip`)",
    6: "`reproduce --check` differs",
    130: "interrupted by SIGINT (Ctrl-C); what is finished is kept",
    141: "nobody reads stdout any more, as after `| head -1`; nothing is said",
    143: "ended by SIGTERM; what is finished is kept",
}
OF_THE_SHELL = (0, 2, 130, 141, 143)  # that errors.py does not name
STREAMS = """\
Results go to stdout, at once when each is whole: one path a line, or with `--json` one JSON object a line, which has
at least `path`. Everything else goes to stderr: progress, `seed: N` where the seed was drawn, lines that begin with
`warning:`, and at the end of a run that failed one line `error: …` and one line `hint: …`. A bug shows its traceback.

`-` in the place of an input file is stdin, in the place of an output file stdout; a file is never written to a
terminal. A file appears whole or not at all, and one that is there already is an error unless `--if-exists` says
otherwise. The first SIGINT or SIGTERM ends a run cleanly, the second at once."""
EVENTS = {
    "Loaded": "a model is ready",
    "Stepped": "one denoising step is done, of `images` pictures at once; `index` is that of the first",
    "Made": "a picture is on disk, whole",
    "Dropped": "a candidate of `--best-of` is not kept; not `made` where its contest was held before, or failed",
    "There": "a picture is on disk since an earlier run (`--if-exists skip`)",
    "Failed": "a picture could not be made, and the run goes on",
    "Warned": "something that the user should know",
    "Estimated": "what a run would make with one model, and what it would take (`--dry-run`)",
}
TRAINING_EVENTS_INTRODUCTION = """\
`sdcli train --progress json` has events of its own; those that `metrics.jsonl` holds too have its keys.
Beside `loss` stand the terms that it is made of, if it is made of some."""
JOBS = """\
`generate --jobs FILE` takes a JSON object a line (JSONL, UTF-8); empty lines are skipped, `-` is stdin. Every line is
checked before a model loads, and a mistake is told with its file and line: an unknown key, one that stands twice, a
value of another type. What a line does not say comes from the flags, then from `--from`, then from the model."""
VARIABLES = {
    "SDCLI_MODELS": "a models.toml that goes before the others, after `--models-file`",
    "XDG_CONFIG_HOME": "where `sdcli/models.toml` is looked for (default: `~/.config`)",
    "XDG_CACHE_HOME": "where `sdcli/` keeps hashes of weights, and latents and text features of training (default: "
    "`~/.cache`)",
    "SDCLI_SOCKET": "of the server that `generate` runs in, see `sdcli serve`",
    "HF_HUB_OFFLINE": "`1` is `--offline`",
    "HF_HOME": "where the hub's library keeps what it fetches, in `hub/` (default: `~/.cache/huggingface`)",
    "HF_HUB_CACHE": "the same, that folder itself",
    "HUGGINGFACE_HUB_CACHE": "its older name",
    "HF_TOKEN": "lets the hub's library fetch models that ask for a licence to be accepted",
    "CUDA_VISIBLE_DEVICES": "the GPUs that there are for `--device`",
    "RANK": "set by `accelerate launch` and `torchrun`: which of several processes this is",
    "WORLD_SIZE": "set by them as well: how many there are",
    "OMP_NUM_THREADS": "threads on the CPU; a picture made with another number may differ in its last bits",
    "COLUMNS": "width of the help, where it is no terminal's",
    "_SDCLI_COMPLETE": "by which the shell asks on Tab",
}
FILES = """\
- `./models.toml`, `~/.config/sdcli/models.toml`: names of models, with the settings that each wants; the one that comes
  with the program shows the form.
- `outputs/`: where pictures go without `--output`.
- `manifest.jsonl` in the output folder of `--jobs` and `--prompts`: what is done, by the SHA-256 of everything that
  decides a picture. The same command again makes what is missing.
- `failed.jsonl` there: what failed with `--on-error skip`, as jobs for `--jobs`.
- `~/.cache/sdcli/`: hashes of weights, latents and text features; it may be deleted at any time."""
COMPLETION = """\
`sdcli --install-completion` sets up bash, zsh, fish or PowerShell, whichever runs it; `sdcli --show-completion` prints
the script. Where the shell cannot be told, `_SDCLI_COMPLETE=source_bash sdcli` prints that of bash, and so for `zsh`,
`fish` and `pwsh`. Offered are commands, options, and names of models, samplers, schedules and whatever else is one of
some names; else files."""


def common_sections() -> list[str]:
    """The sections, each a heading and what is under it."""
    return [
        "## Exit codes",
        table(("code", "is"), [(str(code), text) for code, text in exit_codes().items()]),
        "## Streams",
        STREAMS,
        "## Progress events",
        "`generate --progress json` writes an event a line to stderr, each a JSON object with `event` and `elapsed_s`, "
        "the\nseconds since the start of the run. Times are in seconds, rates in pictures per second.",
        table(("event", "says", "keys"), generate_events()),
        TRAINING_EVENTS_INTRODUCTION,
        table(("event", "says", "keys"), train_events()),
        "## Job files",
        JOBS,
        table(("key", "value", "where nobody says"), job_keys()),
        "## Environment variables",
        table(("variable", "is"), [(f"`{name}`", text) for name, text in VARIABLES.items()]),
        "## Files",
        FILES,
        "## Completion by Tab",
        COMPLETION,
    ]


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def exit_codes() -> dict[int, str]:
    """What each code means; one that the program knows and nobody has described is an error here."""
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert known <= EXIT_CODES.keys(), f"describe the exit codes {known - EXIT_CODES.keys()} in {Path(__file__).name}"
    return {code: text for code, text in EXIT_CODES.items() if code in known or code in OF_THE_SHELL}


def generate_events() -> list[tuple[str, str, str]]:
    """Name, meaning and keys of each event, as the reporter itself writes them."""
    picture = Picture(
        settings=GenerateSettings(
            prompt="", model="", seed=0, width=8, height=8, num_inference_steps=1, guidance_scale=1
        ),
        index=0,
        file="a.png",
    )
    examples = {
        "There": events.There(picture),
        "Warned": events.Warned(""),
        "Loaded": events.Loaded("", "", "", 0.0),
        "Stepped": events.Stepped(0, 1, 1, 1),
        "Made": events.Made(picture, 0.0),
        "Dropped": events.Dropped(picture, made=True),
        "Failed": events.Failed(picture, errors.SdcliError("")),
        "Estimated": events.Estimated("", "", "", 1, 0, 1.0, 1, 1),
    }
    kinds = {kind.__name__ for kind in events.Event.__args__}
    assert kinds == EVENTS.keys() == examples.keys(), f"describe the events {kinds ^ EVENTS.keys()}"
    rows = []
    reporter = JsonReporter(9)
    for name, event in examples.items():
        rows.append(event_row(lambda event=event: reporter(event), EVENTS[name]))
    rows.insert(3, event_row(lambda: reporter.seed(0), "the seed that was drawn, as none was given"))
    return [*rows, event_row(lambda: reporter.__exit__(None), "the end; a run that ends with an error has none")]


def event_row(tell, text: str) -> tuple[str, str, str]:
    """A row for what is written to stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as written:
        tell()
    event = json.loads(written.getvalue())
    keys = [f"`{key}`" for key in event if key not in ("event", "elapsed_s")]
    return f"`{event['event']}`", text, ", ".join(keys)


def train_events() -> list[tuple[str, str, str]]:
    """The same for training, from the events' own words."""
    rows = []
    for kind in training_events.Event.__args__:
        fields = [each.name for each in dataclasses.fields(kind)]
        if hasattr(kind, "row"):
            averages = ("raw", "long", "short") if kind is training_events.Validated else ("loss",)
            example = dict.fromkeys(fields, 0) | {"losses": dict.fromkeys(averages, 0)}
            fields = list(kind(**example).row())
        keys = [f"`{name}`" for name in fields]
        sentence = " ".join(kind.__doc__.split()).removesuffix(".")
        rows.append((f"`{kind.__name__.lower()}`", sentence[0].lower() + sentence[1:], ", ".join(keys)))
    return rows


def job_keys() -> list[tuple[str, str, str]]:
    """Key, type and default of everything that a job may say."""
    flags = {setting: key for key, setting in ALIASES.items()}
    fields = {each.name: each for each in dataclasses.fields(GenerateSettings)}
    defaults = {"id": "its number, from `00000`", "num_images": "1", "output": "as `--output` says"}
    rows = [(f"`{key}`", in_words(kind), defaults.get(key, "is passed over")) for key, kind in OF_JOBS.items()]
    for name, kind in KINDS.items():
        rows.append((f"`{flags.get(name, name)}`", in_words(kind), default_of(fields[name])))
    return rows


def default_of(field: dataclasses.Field) -> str:
    """What a setting is where neither job nor flag says it."""
    own = {
        "prompt": "needed",
        "model": "the default model",
        "seed": "drawn once for the run",
        "strength": f"{STRENGTH}; with a mask 1",
    }
    if field.name in own:
        return own[field.name]
    if field.name in {each.name for each in dataclasses.fields(GenerationDefaults)}:
        return "the model's own"
    value = () if field.default is MISSING else field.default
    return "none" if value in (None, (), "") else f"{value:g}"
