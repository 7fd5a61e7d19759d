"""Prompts as A1111 reads them: weights, chunks of 75 tokens, and what a text encoder makes of both."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdcli.checkpoints.tokenizers import clip_tokenizer, quick_tokenizer
from sdcli.errors import SdcliError
from sdcli.prompt_syntax import Piece, parse_prompt
from sdcli.prompts import Reader, chunks_of, weighted
from sdcli.registry import find_model

LENGTH = 77


def spelled(prompt: str) -> list[tuple[str | None, float]]:
    return [(piece.text, round(piece.weight, 6)) for piece in parse_prompt(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("", [("", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a ((red)) cat", [("a ", 1), ("red", 1.21), (" cat", 1)]),
        ("a (red:1.5) cat", [("a ", 1), ("red", 1.5), (" cat", 1)]),
        ("a (red : .5 ) cat", [("a ", 1), ("red ", 0.5), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 0.909091), (" cat", 1)]),
        ("a (very (red:2) cat)", [("a ", 1), ("very ", 1.1), ("red", 2.2), (" cat", 1.1)]),
        (r"a \(red\) cat", [("a (red) cat", 1)]),
        (r"a \\ cat", [(r"a \ cat", 1)]),
        ("a (red cat", [("a ", 1), ("red cat", 1.1)]),
        ("a red) cat", [("a red) cat", 1)]),
        ("12:30 (at night:1.2)", [("12:30 ", 1), ("at night", 1.2)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("a cat BREAK a dog", [("a cat", 1), (None, 1), ("a dog", 1)]),
        ("BREAKFAST", [("BREAKFAST", 1)]),
        ("(a BREAK b:1.3)", [("a", 1.3), (None, 1), ("b", 1.3)]),
        ("(a:-1)", [("a", -1)]),
    ],
)
def test_brackets_mean_what_they_mean_in_a1111(prompt, expected):
    """The cases of its wiki page on attention, and those that its parser is known for."""
    assert spelled(prompt) == expected


@pytest.mark.parametrize("prompt", ["a [cat:dog:0.5]", "a [cat:10]", "a [cat|dog]"])
def test_prompt_editing_is_refused(prompt):
    with pytest.raises(SdcliError, match="prompt editing is not there"):
        parse_prompt(prompt)
    assert spelled(prompt.replace("[", "\\[").replace("]", "\\]")) == [(prompt, 1)]


@given(st.text(alphabet="ab ():[]\\.1,|", max_size=30))
def test_every_text_is_read_or_refused(prompt):
    """Nothing hangs, nothing is a traceback, and no letter is lost."""
    try:
        pieces = parse_prompt(prompt)
    except SdcliError:
        return
    kept = "".join(piece.text or "" for piece in pieces)
    assert [letter for letter in kept if letter in "ab"] == [letter for letter in prompt if letter in "ab"]


def words(prompt: str, tokenizer, room: int) -> list[str]:
    """What each chunk says."""
    return [tokenizer.decode(chunk.input_ids) for chunk in chunks_of(parse_prompt(prompt), tokenizer, room)]


def test_a_phrase_that_would_be_torn_goes_into_the_next_chunk(tiny_tokenizer):
    assert words("the cat, red dog the", tiny_tokenizer, room=10) == ["the cat , red dog the"]
    assert words("the cat, red dog the", tiny_tokenizer, room=5) == ["the cat ,", "red dog the"]
    assert words("the cat red dog the", tiny_tokenizer, room=4) == ["the cat red dog", "the"]
    far = "the, " + "red " * 25
    assert [len(chunk.input_ids) for chunk in chunks_of(parse_prompt(far), tiny_tokenizer, 24)] == [24, 3]


def test_break_begins_a_chunk(tiny_tokenizer):
    assert words("the cat BREAK red", tiny_tokenizer, room=10) == ["the cat", "red"]
    assert words("the BREAK BREAK red", tiny_tokenizer, room=10) == ["the", "", "red"]


def test_weights_keep_the_mean():
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) + 1
    result = weighted(features, torch.tensor([1, 1.5, 0.5, 1, 1]))
    torch.testing.assert_close(result.mean(), features.mean())
    ratio = result / features
    torch.testing.assert_close(ratio[1] / ratio[0], torch.full((8,), 1.5))


def test_a_prompt_without_weights_is_left_alone_among_others(tiny_pipeline):
    """To the bit; and one with weights is the same whoever stands beside it."""
    (reader,) = tiny_pipeline.readers
    with torch.no_grad():
        plain, _ = reader.read(["the red cat", "the red cat"], 1, 0)
        mixed, _ = reader.read(["the red cat", "the (red:1.4) cat"], 1, 0)
        both, _ = reader.read(["the (red:1.4) cat", "the (red:1.4) cat"], 1, 0)
    assert torch.equal(mixed[0], plain[0]) and not torch.equal(mixed[1], plain[1])
    assert torch.equal(mixed[1], both[1]) and torch.equal(both[0], both[1])


def reference(prompt_pieces: list[tuple[str, float]], tokenizer, text_encoder) -> torch.Tensor:
    """What A1111 makes of pieces, written down again from its description: token by token, chunk by chunk."""
    tokens = [
        (token, weight)
        for text, weight in prompt_pieces
        for token in tokenizer(text, add_special_tokens=False).input_ids
    ]
    result = []
    for start in range(0, max(1, len(tokens)), LENGTH - 2):
        part = tokens[start : start + LENGTH - 2]
        fill = LENGTH - 2 - len(part)
        ids = [tokenizer.bos_token_id, *(token for token, _ in part), *[tokenizer.eos_token_id] * (fill + 1)]
        factors = torch.tensor([1.0, *(weight for _, weight in part), *[1.0] * (fill + 1)])
        features = text_encoder(torch.tensor([ids])).last_hidden_state
        scaled = features * factors[None, :, None]
        result.append(scaled * features.mean() / scaled.mean())
    return torch.cat(result, dim=1)


@pytest.mark.parity
@torch.no_grad()
def test_long_and_weighted_prompts_are_what_a1111_makes_of_them(unchanged_stock, tiny_pipeline):
    """Against stock's text encoder with the same weights; 120 words are two chunks."""
    prompt = "the red dog " * 40 + "(the cat:1.4) the [dog]"
    pieces = [("the red dog " * 40, 1.0), ("the cat", 1.4), (" the ", 1.0), ("dog", 1 / 1.1)]
    expected = reference(pieces, unchanged_stock.tokenizer, unchanged_stock.text_encoder)
    wanted, unwanted = tiny_pipeline.encode_prompt([prompt], [""])
    torch.testing.assert_close(wanted.prompt_embeds, expected, atol=1e-5, rtol=1e-5)
    empty = reference([("", 1.0)], unchanged_stock.tokenizer, unchanged_stock.text_encoder)
    torch.testing.assert_close(unwanted.prompt_embeds, empty.repeat(1, 2, 1), atol=1e-5, rtol=1e-5)


def test_a_piece_is_a_text_and_its_weight(tiny_tokenizer, tiny_pipeline):
    """A prompt without weights has the tokens that the tokenizer gives it, whole."""
    reader = Reader(tiny_tokenizer, tiny_pipeline.text_encoder)
    (chunk,) = reader.chunks("a red cat, the dog")
    assert chunk.input_ids == tiny_tokenizer("a red cat, the dog", add_special_tokens=False).input_ids
    assert set(chunk.weights) == {1.0} and Piece("a").weight == 1.0


TEXTS = ("a photo of a cat, Déjà vu!", "  two   blanks ", "<|endoftext|> inside", "数字 123 isn't", "")


@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
def test_the_quick_way_to_a_tokenizer_gives_what_transformers_gives(pad, tmp_path):
    """Of CLIP's own, and of the built-in model's; one with added words goes the long way."""
    clip_tokenizer(pad, {"vocab_size": 49408, "max_position_embeddings": 77}).save_pretrained(tmp_path)
    for folder in (tmp_path, find_model("emoji").path / "tokenizer"):
        quick, whole = quick_tokenizer(folder), CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        options = {"padding": "max_length", "truncation": True}
        assert quick(list(TEXTS), **options).input_ids == whole(list(TEXTS), **options).input_ids
        assert (quick.pad_token_id, quick.model_max_length) == (whole.pad_token_id, whole.model_max_length)
        assert quick.get_vocab() == whole.get_vocab()
    whole.add_tokens(["<thing>"])
    whole.save_pretrained(tmp_path / "more")
    assert quick_tokenizer(tmp_path / "more") is None
