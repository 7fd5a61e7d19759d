r"""Prompts that stand for several: {a|b} is one of them by the seed, {{a|b}} is each of them in turn.

`\{` and `\}` are plain braces, and so are braces without a bar between them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator

from sdcli.errors import SdcliError

BAR = re.compile(r"\|(?![^{}]*\})")  # not one that belongs to braces inside
ENUMERATED = re.compile(r"(?<!\\)\{\{((?:[^{}]|\{[^{}]*\})*)\}\}")
SEEDED = re.compile(r"(?<!\\)\{([^{}]*\|[^{}]*)\}")  # the innermost first
MOST_COMBINATIONS = 100_000


def combinations(text: str) -> Iterator[str]:
    """Every text that the {{a|b}} of one stand for, the last of them changing fastest.

    Raises:
        SdcliError: there are too many.
    """
    if "{{" not in text:
        yield text
        return
    parts = ENUMERATED.split(text)  # plain and alternatives by turns
    choices = [BAR.split(part) if place % 2 else [part] for place, part in enumerate(parts)]
    choices = [each if len(each) > 1 or not place % 2 else [f"{{{{{each[0]}}}}}"] for place, each in enumerate(choices)]
    count = math.prod(len(each) for each in choices)
    if count > MOST_COMBINATIONS:
        raise SdcliError(f"the prompt stands for {count} prompts", hint=f"{MOST_COMBINATIONS} are the most")
    for chosen in itertools.product(*choices):
        yield "".join(chosen)


def choose(text: str, seed: int) -> str:
    r"""A text with one alternative of each {a|b}, the same for the same seed, and without the \ before braces.

    Which one it is depends on the seed and on the place of the braces in the text, on nothing else.
    """
    if "{" not in text and "}" not in text:
        return text
    for place in itertools.count():
        found = SEEDED.search(text)
        if found is None:
            return text.replace(r"\{", "{").replace(r"\}", "}")
        digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
        alternatives = found[1].split("|")
        chosen = alternatives[int.from_bytes(digest[:8], "big") % len(alternatives)]
        text = text[: found.start()] + chosen + text[found.end() :]
    raise AssertionError("every round takes two braces away")


def escaped(text: str) -> str:
    """A text that stands for itself alone, whatever braces it has."""
    return text.replace("{", r"\{").replace("}", r"\}")
