"""A graph of ComfyUI: nodes by their ids, each input a value or a link to an output of another node.

Any graph can be walked, one that leads back into itself too: no walk visits a node twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_NODES = 2000  # a large workflow has hundreds
VALUES = ("value", "text", "string", "seed", "noise_seed", "int", "float", "number")  # inputs of nodes that hold one


@dataclass(frozen=True)
class Node:
    """One node.

    Args:
        name: its id.
        kind: the class of it.
        inputs: values and links by name; a link is a list of an id and the place of an output.
    """

    name: str
    kind: str
    inputs: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What to call it."""
        return f"{self.name} {self.kind}"

    @property
    def values(self) -> dict[str, Any]:
        """Its inputs that are no links."""
        return {name: value for name, value in self.inputs.items() if not is_link(value)}


def is_link(value: Any) -> bool:
    """Whether an input comes from another node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


class Graph:
    """The nodes of a graph and the ways between them.

    Args:
        content: as ComfyUI's API has it; what is no node is left aside.
    """

    def __init__(self, content: Mapping[str, Any]):
        self.nodes = {
            name: Node(name, node["class_type"], node["inputs"])
            for name, node in list(content.items())[:MOST_NODES]
            if isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
        }

    def at(self, link: Any) -> Node | None:
        """The node that a link leads to."""
        return self.nodes.get(link[0]) if is_link(link) else None

    def value(self, node: Node, name: str) -> Any:
        """The value of an input, followed through nodes that only hold or pass one; None where there is none."""
        value, seen = node.inputs.get(name), set()
        while is_link(value):
            source = self.at(value)
            if source is None or source.name in seen:
                return None
            seen.add(source.name)
            held = [source.inputs[each] for each in (name, *VALUES) if each in source.inputs]
            only = list(source.inputs.values())
            value = held[0] if held else only[0] if len(only) == 1 else None
        return value

    def upstream(self, *links: Any, inputs: tuple[str, ...] = ()) -> Iterator[Node]:
        """Nodes that links lead to, the nearest first.

        Args:
            links: where to begin.
            inputs: the only ones to go on through; none goes through all.
        """
        waiting, seen = deque(links), set()
        while waiting:
            node = self.at(waiting.popleft())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            yield node
            links = {name: value for name, value in node.inputs.items() if is_link(value)}
            waiting.extend(value for name, value in links.items() if not inputs or name in inputs)
