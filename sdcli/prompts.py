"""Prompts to text features: A1111's weights, chunks beyond the text encoder's length, one text encoder or two.

B texts, K chunks, L tokens of a chunk (77), D width of the features, P width of the pooled ones.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sdcli.components.clip import TextEncoder
from sdcli.components.conditioning import Conditioning
from sdcli.components.unet import UNet
from sdcli.prompt_syntax import Piece, parse_prompt
from sdcli.settings import check_range

AESTHETIC_SCORES = 6.0, 2.5  # what SDXL's refiner is told of a picture that is wanted, and of one that is not
EMPTY: Mapping[int, list[int]] = MappingProxyType({})
BACKTRACK = 20  # tokens after a comma that go into the next chunk with the rest of their phrase


@dataclass(frozen=True)
class Chunk:
    """Tokens that a text encoder takes at once, without those that begin and end a text, and their weights."""

    input_ids: list[int]
    weights: list[float]


def chunks_of(
    pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase, room: int, learned: Mapping[int, list[int]] = EMPTY
) -> list[Chunk]:
    """Tokens in chunks of at most `room`; a phrase that would be torn at its end goes into the next one whole.

    Args:
        pieces: of a prompt.
        tokenizer: text to tokens.
        room: tokens in a chunk.
        learned: what tokens stand for several, see `Reader.learned`.
    """
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks, now, after_comma = [], Chunk([], []), None
    for piece in pieces:
        if piece.text is None:
            chunks.append(now)
            now, after_comma = Chunk([], []), None
            continue
        tokens = tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids
        for token in itertools.chain.from_iterable(learned.get(each, [each]) for each in tokens):
            if len(now.input_ids) == room:
                torn = after_comma is not None and token != comma and room - after_comma < BACKTRACK
                cut = after_comma if torn else room
                chunks.append(Chunk(now.input_ids[:cut], now.weights[:cut]))
                now, after_comma = Chunk(now.input_ids[cut:], now.weights[cut:]), None
            now.input_ids.append(token)
            now.weights.append(piece.weight)
            if token == comma:
                after_comma = len(now.input_ids)
    return [*chunks, now] if now.input_ids or not chunks else chunks


@dataclass(frozen=True)
class Reader:
    """A tokenizer and the text encoder that it is for.

    Args:
        tokenizer: text to tokens.
        text_encoder: tokens to features.
        before_last: take the features from before the last layer, without the final norm (SDXL).
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: TextEncoder
    before_last: bool = False

    @property
    def length(self) -> int:
        """L. Some tokenizers on the hub do not say how many tokens their text encoder takes."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def chunks(self, prompt: str) -> list[Chunk]:
        """A prompt in chunks."""
        return chunks_of(parse_prompt(prompt), self.tokenizer, self.length - 2, self.learned)

    @cached_property
    def learned(self) -> dict[int, list[int]]:
        """Tokens of learned words with several vectors, by the first one, which stands for all of them."""
        added = self.tokenizer.get_added_vocab()
        several = {}
        for token, number in added.items():
            more = itertools.takewhile(lambda each: each in added, (f"{token}_{place}" for place in itertools.count(1)))
            if others := [added[each] for each in more]:
                several[number] = [number, *others]
        return several

    def read(self, prompts: Sequence[str], count: int, clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """Features of prompts, in `count` chunks each.

        Returns:
            (B, K * L, D), and those of the whole first chunk, (B, P), of an encoder with a projection.
        """
        rows, weights = [], []
        for prompt in prompts:
            chunks = self.chunks(prompt)
            for chunk in (*chunks, *[Chunk([], [])] * (count - len(chunks))):
                rows.append(self._framed(chunk.input_ids))
                weights.append([1.0, *chunk.weights, *[1.0] * (self.length - 1 - len(chunk.weights))])
        device = self.text_encoder.device
        output = self.text_encoder(torch.tensor(rows, device=device))
        features = self.layer(output, clip_skip)
        each = [  # weighted by itself, so that its last bits do not depend on the others
            weighted(chunk, torch.tensor(row, device=device)) if any(weight != 1 for weight in row) else chunk
            for chunk, row in zip(features, weights, strict=True)
        ]
        features = torch.stack(each)
        pooled = None if output.text_embeds is None else output.text_embeds[::count]
        return features.reshape(len(prompts), count * self.length, -1), pooled

    def _framed(self, input_ids: list[int]) -> list[int]:
        """Tokens of a chunk with those that begin, end and fill it."""
        begin, end, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        return [begin, *input_ids, end, *[pad] * (self.length - 2 - len(input_ids))]

    def layer(self, output, clip_skip: int = 0) -> Tensor:
        """Of what the text encoder gives, the features that a UNet is told, or those of `clip_skip` layers before.

        Raises:
            SdcliError: it has not so many layers.
        """
        check_range("--clip-skip", clip_skip, 0, len(output.hidden_states) - 1 - self.before_last)
        if self.before_last:
            return output.hidden_states[-2 - clip_skip]
        return self.text_encoder.skip_layers(output, clip_skip) if clip_skip else output.last_hidden_state


def weighted(features: Tensor, weights: Tensor) -> Tensor:
    """Features of a chunk's tokens, (L, D), times their weights, (L,), brought back to the mean that they had."""
    scaled = features.float() * weights[:, None]
    return (scaled * (features.float().mean() / scaled.mean())).to(features.dtype)


def takes_score(config: Mapping[str, Any], pooled_width: int) -> bool:
    """Whether a UNet of SDXL is told how beautiful a picture is to be (the refiner), and not the size that is wanted.

    Both are told the size that a picture had, and what was cut off above and left of it.
    """
    width = config["projection_class_embeddings_input_dim"] - pooled_width
    return width // config["addition_time_embed_dim"] == 5


class PromptEncoder:
    """What a UNet is told of texts.

    Args:
        readers: its tokenizers and text encoders: none, one or two.
        unet: it knows what it takes; None takes the text alone.
        class_names: of a class-conditional UNet, from number 1 on.
        zeros_for_empty: tell an empty negative prompt as zeros (SDXL).
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        unet: UNet | None,
        class_names: Sequence[str] = (),
        zeros_for_empty: bool = False,
    ):
        self.readers = readers
        self.config = {} if unet is None else unet.config
        self.class_names = class_names
        self.zeros_for_empty = zeros_for_empty

    def encode(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        size: tuple[int, int],
        clip_skip: int = 0,
        guided: bool = True,
    ) -> tuple[Conditioning, Conditioning | None]:
        """What is told of B prompts and negative prompts. Where one has more chunks, all get as many.

        Args:
            prompts: what to show.
            negative_prompts: what to steer away from; '' is the unconditional prompt.
            size: height and width in pixels, which SDXL is told.
            clip_skip: last layers to leave out, for the prompts only: stock leaves none out for the negative prompt,
                and its pictures are the reference.
            guided: whether negative prompts are wanted.

        Returns:
            Of B pictures each; the second is None when not guided.
        """
        texts = [*prompts, *negative_prompts] if guided else list(prompts)
        count = max((len(reader.chunks(text)) for reader in self.readers for text in texts), default=0)
        wanted = self._told(prompts, count, clip_skip, (size, AESTHETIC_SCORES[0]))
        if not guided:
            return wanted, None
        unwanted = self._told(negative_prompts, count, 0, (size, AESTHETIC_SCORES[1]))
        if self.zeros_for_empty:
            told = torch.tensor([text != "" for text in negative_prompts], device=unwanted.prompt_embeds.device)
            embeds, pooled = unwanted.prompt_embeds * told[:, None, None], unwanted.pooled_embeds * told[:, None]
            unwanted = replace(unwanted, prompt_embeds=embeds, pooled_embeds=pooled)
        return wanted, unwanted

    def _told(
        self, texts: Sequence[str], count: int, clip_skip: int, about: tuple[tuple[int, int], float]
    ) -> Conditioning:
        """Features of texts from all text encoders, side by side, with what else the UNet takes."""
        labels = self.classes(texts)
        if not self.readers:
            return Conditioning(class_labels=labels)
        read = [reader.read(texts, count, clip_skip) for reader in self.readers]
        embeds, pooled = torch.cat([features for features, _ in read], dim=-1), read[-1][1]
        if self.config.get("addition_embed_type") != "text_time":
            return Conditioning(prompt_embeds=embeds, class_labels=labels)
        size, score = about
        time_ids = [*size, 0, 0, *([score] if takes_score(self.config, pooled.shape[1]) else size)]
        time_ids = torch.tensor([time_ids] * len(texts), device=embeds.device)
        return Conditioning(embeds, pooled, time_ids, labels)

    def classes(self, texts: Sequence[str]) -> Tensor | None:
        """Classes that texts name, (B,) int64; None of a UNet that is told none.

        The class of a text is the one whose name is in it as a word, the longest of several; 0, no class, where none
        is.
        """
        if self.config.get("num_class_embeds") is None:
            return None
        longest_first = sorted(enumerate(self.class_names, start=1), key=lambda each: -len(each[1]))

        def class_of(text: str) -> int:
            spelled = ((number, rf"(?<!\w){re.escape(name)}(?!\w)") for number, name in longest_first)
            return next((number for number, name in spelled if re.search(name, text, re.IGNORECASE)), 0)

        return torch.tensor([class_of(text) for text in texts])
