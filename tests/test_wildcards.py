"""Prompts that stand for several."""

import pytest

from sdcli.errors import SdcliError
from sdcli.wildcards import choose, combinations


def test_double_braces_stand_for_each_in_turn():
    """The last changes fastest; what has no bar is text."""
    assert list(combinations("a {{red|blue}} {{cat|dog|}}")) == [
        *("a red cat", "a red dog", "a red "),
        *("a blue cat", "a blue dog", "a blue "),
    ]
    assert list(combinations("a {red|blue} cat")) == ["a {red|blue} cat"]
    assert list(combinations("a {{cat}}")) == ["a {{cat}}"]
    assert list(combinations("{{a {x|y}|b}}")) == ["a {x|y}", "b"]


def test_too_many_combinations_are_refused():
    """Not a machine out of memory."""
    with pytest.raises(SdcliError, match="stands for 10000000000 prompts"):
        list(combinations("{{0|1|2|3|4|5|6|7|8|9}}" * 10))


def test_a_choice_depends_on_the_seed_and_the_place_alone():
    """The same seed chooses the same; all alternatives come about equally often."""
    text = "{a|b|c} {a|b|c}"
    chosen = [choose(text, seed) for seed in range(3000)]
    assert chosen == [choose(text, seed) for seed in range(3000)]
    assert choose("{a|b|c} and more", 7)[0] == choose("{a|b|c}", 7)
    counts = [chosen.count(f"{first} {second}") for first in "abc" for second in "abc"]
    assert min(counts) > 250  # of 333, in nine cells: four standard deviations


def test_choices_may_lie_in_choices():
    """The innermost is chosen first."""
    assert {choose("{a|{b|c}}", seed) for seed in range(60)} == {"a", "b", "c"}


def test_plain_braces_stay():
    r"""Without a bar, or behind a backslash, which goes."""
    assert choose("a {cat} {", 1) == "a {cat} {"
    assert choose(r"a \{red|blue\} cat", 1) == "a {red|blue} cat"
