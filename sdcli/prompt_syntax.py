"""What brackets and numbers in a prompt mean, as A1111 reads them. Knows no tokens and no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sdcli.errors import SdcliError

TOKEN = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
BRACKETS = re.compile(r"(?<!\\)\[([^\[\]]*)\]")
NUMBER = re.compile(r"[\d.]+")
STRONGER = 1.1  # what round brackets multiply by, and square ones divide by


@dataclass(frozen=True)
class Piece:
    """A part of a prompt and how much it counts; None as its text ends a chunk."""

    text: str | None
    weight: float = 1.0


def parse_prompt(prompt: str) -> list[Piece]:
    r"""Split a prompt by its weights, as A1111 reads them.

    (word) counts 1.1 times, ((word)) 1.21 times, (word:1.3) as it says, [word] 1/1.1 times; `\(` is a bracket; BREAK
    begins a new chunk. A bracket that is not closed counts to the end, and one that was not opened is text.

    Raises:
        SdcliError: it has A1111's prompt editing, [from:to:when] or [a|b], which changes prompts between steps.
    """
    for found in BRACKETS.finditer(prompt):
        if is_editing(found[1]):
            hint = r"write one of the words; \[ and \] are plain brackets"
            raise SdcliError(f"prompt editing is not there: {found[0]}", hint=hint)
    pieces: list[list] = []  # text and weight
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(first: int, factor: float) -> None:
        for piece in pieces[first:]:
            piece[1] *= factor

    for found in TOKEN.finditer(prompt):
        token = found[0]
        if token in opened:
            opened[token].append(len(pieces))
        elif found[1] is not None and opened["("]:
            multiply(opened["("].pop(), float(found[1]))
        elif token == ")" and opened["("]:
            multiply(opened["("].pop(), STRONGER)
        elif token == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / STRONGER)
        elif len(token) == 2 and token.startswith("\\"):
            pieces.append([token[1], 1.0])
        else:
            for place, text in enumerate(BREAK.split(token)):
                pieces += [[None, 1.0]] * (place > 0) + [[text, 1.0]]
    for first in opened["("]:
        multiply(first, STRONGER)
    for first in opened["["]:
        multiply(first, 1 / STRONGER)
    return merged(pieces)


def plain_text(prompt: str) -> str:
    """A prompt without its weights, as one who looks at pictures reads it."""
    return "".join(" " if piece.text is None else piece.text for piece in parse_prompt(prompt)).strip()


def is_editing(inside: str) -> bool:
    """Whether what stands in square brackets changes between steps: from:to:when, or a|b."""
    _, colon, when = inside.rpartition(":")
    return "|" in inside or bool(colon and NUMBER.fullmatch(when.strip()))


def merged(pieces: Sequence[Sequence]) -> list[Piece]:
    """Neighbours of the same weight as one, so that words are not torn apart."""
    together: list[Piece] = []
    for text, weight in pieces:
        last = together[-1] if together else None
        if last is not None and None not in (last.text, text) and last.weight == weight:
            together[-1] = Piece(last.text + text, weight)
        else:
            together.append(Piece(text, 1.0 if text is None else weight))
    return together or [Piece("")]
