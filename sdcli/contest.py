"""Which of several pictures of a prompt are kept: those that CLIP finds most like it. Knows no file and no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contest:
    """Candidates of one prompt, with seeds that follow each other, of which some are kept.

    Args:
        number: of the contest in the run, from 0.
        candidates: how many there are.
        kept: how many are kept.
        first_seed: of the first candidate.
    """

    number: int
    candidates: int
    kept: int
    first_seed: int
