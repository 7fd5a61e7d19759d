"""What CLIP finds: captions of pictures, pictures of captions, classes of pictures, and the grid of all similarities.

I pictures, N texts, E width that both are compared in.

Reference: Radford et al. 2021 (arXiv:2103.00020), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.comparer import Comparer
from sdcli.components.clip import normalize_for_clip
from sdcli.data.folder import Example
from sdcli.evaluation.denoising import OnProgress, nothing
from sdcli.images import load_image, to_pixel_values

AT = (1, 5, 10)  # how many of those found first may hold the right one


def load_for_clip(path, image_size: int) -> Tensor:
    """A picture file as CLIP sees it, (1, 3, image_size, image_size)."""
    return normalize_for_clip(to_pixel_values(load_image(path)), image_size)


def best_ranks(similarities: Tensor, right: Tensor) -> Tensor:
    """At which place each row finds the first of what is right for it, counted from 1.

    Args:
        similarities: (rows, candidates).
        right: whether a candidate is right, the same shape; at least one of each row is.

    Returns:
        (rows,) int64. What is wrong and just as similar comes first, so one answer for everything gains nothing.
    """
    best = similarities.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((similarities >= best) & ~right).sum(1)


def rank_figures(ranks: Tensor) -> dict[str, float]:
    """Share of ranks (rows,) among the first 1, 5 and 10, and their median."""
    shares = {f"r@{most}": float((ranks <= most).float().mean()) for most in AT}
    return shares | {"median_rank": float(ranks.float().quantile(0.5))}


@dataclass(frozen=True)
class RetrievalFigures:
    """Everything measured.

    Args:
        image_to_text: best rank of each picture's captions, (I,).
        text_to_image: best rank of each text's pictures, (N,).
        truncated: texts that were cut off.
        zero_shot: share of pictures whose own class is nearest, and the number of classes; None without classes.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    truncated: list[str]
    zero_shot: tuple[float, int] | None

    def figures(self) -> dict[str, Any]:
        """As JSON types."""
        found = {
            "pictures": len(self.image_to_text),
            "captions": len(self.text_to_image),
            "image_to_text": rank_figures(self.image_to_text),
            "text_to_image": rank_figures(self.text_to_image),
            "truncated_captions": len(self.truncated),
        }
        if self.zero_shot is not None:
            accuracy, classes = self.zero_shot
            found["zero_shot"] = {"accuracy": accuracy, "classes": classes}
        return found


def measure_retrieval(
    comparer: Comparer,
    examples: Sequence[Example],
    classes: Sequence[str | None],
    *,
    template: str = "{}",
    batch_size: int = 32,
    on_progress: OnProgress = nothing,
) -> RetrievalFigures:
    """How well captions and pictures find each other, and classes their pictures.

    A caption that several pictures share is one text, for which each of them is right.

    Args:
        comparer: the CLIP.
        examples: pictures, each with a caption at least.
        classes: what each of them shows; zero-shot accuracy is measured where all have one, and there are several.
        template: the text for a class, with {} for its name.
        batch_size: pictures at a time.
        on_progress: told of pictures done.

    Raises:
        SdcliError: a text is too long.
    """
    texts = list(dict.fromkeys(caption for example in examples for caption in example.captions))
    names = sorted({name for name in classes if name is not None})
    told = [template.replace("{}", name) for name in names]
    truncated = comparer.check([*texts, *told])
    text_embeds = comparer.embed_texts(texts)
    image_embeds = embed_files(comparer, [example.path for example in examples], batch_size, on_progress)
    number_of = {text: number for number, text in enumerate(texts)}
    right = torch.zeros(len(examples), len(texts), dtype=torch.bool)
    for row, example in enumerate(examples):
        right[row, [number_of[caption] for caption in example.captions]] = True
    similarities = image_embeds @ text_embeds.T
    zero_shot = None
    if len(names) > 1 and None not in classes:
        of_classes = image_embeds @ comparer.embed_texts(told).T
        own = torch.tensor([[name == each for name in names] for each in classes])
        zero_shot = float((best_ranks(of_classes, own) == 1).float().mean()), len(names)
    return RetrievalFigures(best_ranks(similarities, right), best_ranks(similarities.T, right.T), truncated, zero_shot)


def embed_files(comparer: Comparer, paths: Sequence, batch_size: int = 32, on_progress: OnProgress = nothing) -> Tensor:
    """Picture files to (I, E) vectors of length 1."""
    size = comparer.clip.vision_model.config.image_size
    rows = []
    for start in range(0, len(paths), batch_size):
        some = paths[start : start + batch_size]
        rows.append(comparer.embed_images(torch.cat([load_for_clip(path, size) for path in some])))
        on_progress(start + len(some), len(paths))
    return torch.cat(rows)


def compare_files(
    comparer: Comparer, paths: Sequence, captions: Sequence[str]
) -> tuple[list[list[float]], list[list[float]]]:
    """The grid of pictures and captions.

    Returns:
        Cosines, a row for each caption with a number for each picture; and in the same form how likely each caption is
        for a picture, among these captions: the softmax of the scaled cosines.
    """
    cosines = comparer.embed_texts(captions) @ embed_files(comparer, paths).T  # (N, I)
    scaled = cosines * comparer.clip.logit_scale.detach().float().cpu().exp()
    return cosines.tolist(), scaled.softmax(0).tolist()
