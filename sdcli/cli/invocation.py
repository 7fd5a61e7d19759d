"""What a command knows of the process that runs it: its arguments, and models that are loaded already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdcli.device import Placement
    from sdcli.workbench import Benches


class Warm:
    """The models that a server keeps between commands: those of the last placement."""

    def __init__(self) -> None:
        self._benches: Benches | None = None

    def benches(self, placement: Placement) -> Benches:
        """The models of a placement; those of another one are dropped."""
        from sdcli.workbench import Benches

        if self._benches is None or self._benches.placement != placement:
            self._benches = Benches(placement)
        return self._benches


@dataclass(frozen=True)
class Invocation:
    """One run of the command line.

    Args:
        arguments: of the program.
        warm: of the server that runs it; None in a process of its own, which loads what it needs.
    """

    arguments: Sequence[str] = ()
    warm: Warm | None = None

    def benches(self, placement: Placement) -> Benches:
        """The models in memory."""
        return (self.warm or Warm()).benches(placement)
