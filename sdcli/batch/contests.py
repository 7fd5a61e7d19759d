"""Candidates of one prompt, one contest after the other: all are made, and those that CLIP finds most like it are kept.

Of the others nothing stays, so that a contest takes the memory of the kept ones and of those in work. A kept picture
is, key and settings included, the one that its seed alone makes; how it came to be kept stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdcli.batch.checks import find_clip
from sdcli.batch.denoising import Undrawn
from sdcli.batch.done import OnDisk, is_whole, key_in, look_for, ranking_in
from sdcli.batch.events import Warned
from sdcli.batch.finishing import Drawn
from sdcli.batch.groups import portions
from sdcli.batch.part import Part
from sdcli.clip_models import clip_files
from sdcli.comparer import Comparer
from sdcli.components.clip import normalize_for_clip
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import SdcliError
from sdcli.files import read_bytes
from sdcli.images import to_image, to_pixel_values
from sdcli.keys import digest_of, key_of
from sdcli.output import Picture
from sdcli.prompt_syntax import plain_text
from sdcli.registry import ModelSpec
from sdcli.run_settings import RunSettings

if TYPE_CHECKING:
    from sdcli.batch.run import Run


def contests_of(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Pictures by their contests; each that is in none by itself."""
    groups = groupby(pictures, lambda each: each.index if each.contest is None else (each.contest.number,))
    return [list(group) for _, group in groups]


def losers_of(contest: Sequence[Picture]) -> list[Picture]:
    """As many candidates as are not kept, whichever these are."""
    return [picture for picture in contest if picture.contest is not None and picture.candidate >= picture.contest.kept]


class Contests:
    """Holds the contests of a run.

    Args:
        run: that they belong to.
    """

    def __init__(self, run: Run):
        self.run = run

    def are_there(self, contest: Sequence[Picture]) -> bool:
        """Whether a contest need not be held, for all that it keeps is on disk; if so, that is reported."""
        winners = winners_of(self.run.part, contest, self.run.how)
        if winners is None:
            return False
        for winner in winners:
            self.run.tell_there(winner, self.run.part.key(winner))
        self.run.drop(losers_of(contest), made=False)
        return True

    def hold(self, contest: Sequence[Picture], easel: Easel | ForeignEasel) -> None:
        """Make the candidates of a contest, and hand on those that are kept, the best first.

        Raises:
            SdcliError: one cannot be made, and the run is to end.
        """
        run, kept = self.run, contest[0].contest.kept
        run.collect(waiting=0)  # candidates are decoded here, and no other picture beside them
        best: list[tuple[float, Drawn]] = []
        scores: dict[int, float] = {}
        try:
            comparer = self.comparer_for(contest)
            for drawn in self.drawn(contest, easel):
                settings, pixel_values = drawn.picture.settings, run.finish.pixels(drawn)
                scores[settings.seed] = similarity(comparer, pixel_values, settings.prompt)
                best.append((scores[settings.seed], replace(drawn, pixel_values=pixel_values)))
                best.sort(key=lambda each: (-each[0], each[1].picture.candidate))
                run.drop([each.picture for _, each in best[kept:]], made=True)
                del best[kept:]
        except SdcliError as error:
            run.pass_warnings_on()
            run.fail(contest, error, dropped=len(scores) - len(best))
            return
        model = judge_of(run.part, contest, run.how)
        key = contest_key([run.part.key(picture) for picture in contest], model)
        for rank, (score, drawn) in enumerate(best, start=1):
            if self.makes_way(drawn.picture):
                run.finisher.submit(replace(drawn, ranking=ranking_of(rank, score, scores, key, model)))
        run.collect(waiting=0)
        if run.manifest is not None:
            run.manifest.release(contest[0].path)

    def comparer_for(self, contest: Sequence[Picture]) -> Comparer:
        """The CLIP that says which candidates are kept; texts that it does not read to their end are told.

        Raises:
            SdcliError: it does not load.
        """
        comparer = self.run.bench.comparer(self.run.how.clip_model or contest[0].settings.clip_model)
        for text in comparer.check(list(dict.fromkeys(plain_text(each.settings.prompt) for each in contest))):
            message = f"CLIP reads {comparer.length} tokens; --best-of leaves out how this ends: {text[:60]} …"
            self.run.report(Warned(message))
        return comparer

    def drawn(self, contest: Sequence[Picture], easel: Easel | ForeignEasel) -> Iterator[Drawn]:
        """Denoised candidates, a group after the other.

        Raises:
            SdcliError: one cannot be denoised.
        """
        for group in portions(contest, easel, self.run.size_of(contest[0].settings)):
            for outcome in self.run.denoise(group, easel):
                self.run.pass_warnings_on()
                if isinstance(outcome, Undrawn):
                    raise outcome.error
                yield from outcome

    def makes_way(self, picture: Picture) -> bool:
        """Whether a kept picture may be written; the same one, made without ranking, makes way for it.

        Raises:
            SdcliError: in its place is another picture, and this is a run of jobs.
        """
        run = self.run
        if run.how.if_exists != "skip" or picture.to_pipe:
            return True
        if look_for(picture.path, run.part.keys.of(picture.settings)) is OnDisk.THE_PICTURE:
            picture.path.unlink()
        return not run.picture_is_there(picture)


def similarity(comparer: Comparer, pixel_values: Tensor, prompt: str) -> float:
    """The cosine of a picture, (1, 3, H, W) in [-1, 1], as its file will have it, and its prompt."""
    seen = to_pixel_values(to_image(pixel_values))
    images = comparer.embed_images(normalize_for_clip(seen, comparer.clip.vision_model.config.image_size))
    return float((images * comparer.embed_texts([plain_text(prompt)])).sum())


def contest_key(keys: Sequence[str], model: ModelSpec) -> str:
    """What a contest is known by: its candidates' keys, and the weights of the CLIP that judges them."""
    return key_of({"candidates": list(keys), "clip": [digest_of(str(path)) for path in clip_files(model).values()]})


def judge_of(part: Part, contest: Sequence[Picture], how: RunSettings) -> ModelSpec:
    """The model whose CLIP says which candidates are kept."""
    return find_clip(how.clip_model or contest[0].settings.clip_model, part.model)


def winners_of(part: Part, contest: Sequence[Picture], how: RunSettings) -> list[Picture] | None:
    """As `winners_on_disk`, of a contest as a run would hold it."""
    keys = [part.key(picture) for picture in contest]
    return winners_on_disk(contest, contest_key(keys, judge_of(part, contest, how)), keys)


def winners_on_disk(contest: Sequence[Picture], key: str, keys: Sequence[str]) -> list[Picture] | None:
    """The kept pictures of a contest that was held already, the best first; None where one is missing or not whole.

    Args:
        contest: candidates.
        key: of the contest.
        keys: of each candidate.
    """
    found: dict[int, Picture] = {}
    for picture, own in zip(contest, keys, strict=True):
        if picture.to_pipe or not picture.path.is_file() or not is_whole(read_bytes(picture.path)):
            continue
        ranking = ranking_in(picture.path)
        if ranking.get("contest") == key and key_in(picture.path) == own:
            found[ranking.get("rank", 0)] = picture
    ranks = range(1, contest[0].contest.kept + 1)
    return [found[rank] for rank in ranks] if all(rank in found for rank in ranks) else None


def ranking_of(rank: int, score: float, scores: dict[int, float], key: str, model: ModelSpec) -> dict[str, Any]:
    """What is written beside the settings of a kept picture.

    Args:
        rank: 1 is the best.
        score: the similarity of it and its prompt.
        scores: the similarity of every candidate, by its seed.
        key: of the contest.
        model: whose CLIP has decided.
    """
    return {
        "similarity": round(score, 6),
        "rank": rank,
        "best_of": len(scores),
        "similarities": {str(seed): round(each, 6) for seed, each in scores.items()},
        "clip_model": model.name,
        "contest": key,
    }
