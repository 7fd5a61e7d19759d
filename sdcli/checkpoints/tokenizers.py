"""CLIP tokenizers from disk, and CLIP's own, which comes with the program for files that have none."""

import gzip
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from sdcli.checkpoints.weights import read_json
from sdcli.errors import SdcliError
from sdcli.headers import COPIED_IN_PART, FETCH_AGAIN

MERGES = Path(__file__).with_name("clip_merges.txt.gz")  # OpenAI's CLIP, MIT licence: github.com/openai/CLIP
PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
ENDS = ["<|startoftext|>", "<|endoftext|>"]
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
ALIKE = ("normalizer", "pre_tokenizer", "decoder")  # parts of a tokenizer.json that CLIP's class makes by itself


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer.

    Raises:
        SdcliError: its files are missing or bad.
    """
    paths = [path for name in ("tokenizer.json", "vocab.json", "merges.txt") if (path := folder / name).is_file()]
    if paths[:1] != [folder / "tokenizer.json"] and len(paths) < 2:
        needed = "neither tokenizer.json nor vocab.json with merges.txt"
        raise SdcliError(f"{folder} has {needed}", hint=COPIED_IN_PART)
    for path in paths:
        # Of a file that is cut off, transformers says so by a bare Exception.
        text = path.read_bytes().strip()
        if path.suffix == ".json" and not (text.startswith(b"{") and text.endswith(b"}")):
            raise SdcliError(f"{path} is not JSON, or cut off", hint=FETCH_AGAIN)
    try:
        return quick_tokenizer(folder) or CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SdcliError(f"{folder} is no CLIP tokenizer: {error}", hint=FETCH_AGAIN) from error


def quick_tokenizer(folder: Path) -> CLIPTokenizer | None:
    """What `from_pretrained` gives, in half the time, for a tokenizer without peculiarities; None for any other."""
    file, about = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file() or not about.is_file():
        return None
    content, config = read_json(file), read_json(about)
    special = {name: spelled(config[name]) for name in SPECIAL if name in config}
    added = {token["content"] for token in content.get("added_tokens", ())}
    usual = canonical()
    plain = all(content.get(part) == usual[part] for part in ALIKE) and content["model"].get("type") == "BPE"
    if not plain or added - {*special.values()} or (folder / "added_tokens.json").exists():
        return None
    if content["model"].get("end_of_word_suffix") != usual["model"]["end_of_word_suffix"]:
        return None
    merges = [tuple(each.split(" ")) if isinstance(each, str) else tuple(each) for each in content["model"]["merges"]]
    length = {"model_max_length": config["model_max_length"]} if "model_max_length" in config else {}
    return CLIPTokenizer(vocab=content["model"]["vocab"], merges=merges, **special, **length)


def spelled(token: str | Mapping[str, Any]) -> str:
    """A special token as tokenizer_config.json has it, a text or an object."""
    return token if isinstance(token, str) else token["content"]


@lru_cache(maxsize=1)
def canonical() -> dict[str, Any]:
    """The tokenizer.json of CLIP's class without a vocabulary."""
    bare = CLIPTokenizer(vocab={token: number for number, token in enumerate(ENDS)})
    return json.loads(bare.backend_tokenizer.to_str())


@lru_cache(maxsize=1)
def clip_merges() -> tuple[str, ...]:
    """The merges of CLIP's vocabulary."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as lines:
        return tuple(lines.read().splitlines())


def clip_tokenizer(pad: str, config: Mapping[str, Any]) -> CLIPTokenizer:
    """CLIP's own tokenizer.

    Args:
        pad: the token that fills up a text.
        config: of the text encoder that it is for.

    Raises:
        SdcliError: that has another vocabulary.
    """
    letters = [chr(byte) for byte in PRINTABLE] + [chr(256 + place) for place in range(256 - len(PRINTABLE))]
    words = (each.replace(" ", "") for each in clip_merges())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *words, *ENDS]
    if config["vocab_size"] != len(tokens):
        raise SdcliError(
            f"the text encoder has {config['vocab_size']} tokens, and CLIP's vocabulary {len(tokens)}",
            hint="give the model as a folder, with its own tokenizer",
        )
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[tuple(each.split()) for each in clip_merges()],
        model_max_length=config["max_position_embeddings"],
        pad_token=pad,
    )
