"""A CLIP tokenizer for captions of its own: byte-level BPE, learned from them."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

END_OF_WORD = "</w>"


def train_tokenizer(captions: Iterable[str], vocab_size: int, model_max_length: int) -> CLIPTokenizer:
    """A tokenizer that knows every byte, and the words of the captions besides.

    Args:
        captions: what to learn the merges from.
        vocab_size: tokens in all; the last two are the start and the end of a text, as in CLIP's own vocabulary.
        model_max_length: tokens of a text, start and end among them.

    Reference: Sennrich et al. 2016 (arXiv:1508.07909); Radford et al. 2021 (arXiv:2103.00020), section 2.4.
    """
    stock = CLIPTokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_and_ends = alphabet + [byte + END_OF_WORD for byte in alphabet]
    special_tokens = [stock.bos_token, stock.eos_token]

    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer = stock.backend_tokenizer.normalizer
    learner.pre_tokenizer = stock.backend_tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, end_of_word_suffix=END_OF_WORD, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    merges = merges[: vocab_size - len(bytes_and_ends) - len(special_tokens)]

    tokens = list(dict.fromkeys(bytes_and_ends + ["".join(merge) for merge in merges]))
    padding = [f"<|unused{number}|>" for number in range(vocab_size - len(tokens) - len(special_tokens))]
    vocab = {token: number for number, token in enumerate(tokens + padding + special_tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=model_max_length)
