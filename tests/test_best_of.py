"""`generate --best-of N`: what is kept are pictures of `-n N`, the best of them, with their scores beside."""

import gc
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from seeing import give_sight

from sdcli.batch import contests
from sdcli.batch.finishing import Drawn
from sdcli.checkpoints.folder import ON_CPU
from sdcli.cli import run
from sdcli.clip_models import find_with_tower, load_comparer
from sdcli.contest import Contest
from sdcli.errors import SdcliError
from sdcli.evaluation.retrieval import compare_files
from sdcli.output import OutputSettings, Request, plan_pictures
from sdcli.run_settings import Shard
from sdcli.settings import GenerateSettings

QUICK = ("--steps", "2", "-g", "3", "--device", "cpu", "--progress", "none")


@pytest.fixture(scope="module")
def sighted(tiny_folder, tmp_path_factory) -> str:
    return str(give_sight(tiny_folder, tmp_path_factory.mktemp("sighted") / "model"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def generate(sighted, capfd):
    """Run `sdcli generate` with the sighted model: its exit code, the lines of stdout, and stderr."""

    def ended(*arguments: object, code: int = 0) -> tuple[list[str], str]:
        capfd.readouterr()
        assert run(["generate", *map(str, arguments), "-m", sighted, *QUICK]) == code
        told = capfd.readouterr()
        return told.out.splitlines(), told.err

    return ended


def block(path: str | Path) -> dict:
    return json.loads(Image.open(path).text["sdcli"])


def files(folder: str) -> dict[str, int]:
    """When each picture of a folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(Path(folder).glob("*.png"))}


def test_the_kept_are_the_best_of_all_and_each_is_the_picture_of_its_seed(generate):
    """Pixels, key, settings and name are those of `-n N`; the scores are told, the best first."""
    generate("cat", "a dog", "-s", 3, "-n", 5, "-o", "all/")
    lines, _ = generate("cat", "a dog", "-s", 3, "--best-of", 5, "-n", 2, "-o", "best/", "--json")
    told = [json.loads(line) for line in lines]
    assert [each["ranking"]["rank"] for each in told] == [1, 2, 1, 2]
    assert len(files("best")) == 4 and len(files("all")) == 10
    for each in told:
        path = Path(each["path"])
        single, kept = block(Path("all") / path.name), block(path)
        assert Image.open(path).tobytes() == Image.open(Path("all") / path.name).tobytes()
        ranking = kept.pop("ranking")
        assert kept == single and ranking == each["ranking"]
        scores = ranking["similarities"]
        assert list(scores) == ["3", "4", "5", "6", "7"] and ranking["best_of"] == 5
        assert scores[str(each["seed"])] == ranking["similarity"]
        assert sorted(scores.values(), reverse=True)[ranking["rank"] - 1] == ranking["similarity"]
    assert told[0]["ranking"]["similarities"] != told[2]["ranking"]["similarities"]


def test_the_similarity_is_that_of_the_file(generate, sighted):
    """As `sdcli plot similarity` has it."""
    lines, _ = generate("cat", "-s", 3, "--best-of", 2, "-o", "cat.png", "--json")
    cosines, _ = compare_files(load_comparer(find_with_tower(sighted), ON_CPU), ["cat.png"], ["cat"])
    assert json.loads(lines[0])["ranking"]["similarity"] == pytest.approx(cosines[0][0], abs=1e-5)


def test_one_file_may_be_named_for_the_best_and_not_for_several(generate):
    """`-o cat.png` is the winner's; two winners need two names."""
    lines, _ = generate("cat", "-s", 3, "--best-of", 3, "-o", "cat.png")
    assert lines == ["cat.png"]
    _, error = generate("cat", "-s", 3, "--best-of", 3, "-n", 2, "-o", "cats.png", code=1)
    assert "3 files would all be cats.png" in error
    _, error = generate("cat", "dog", "--best-of", 3, "-o", "both.png", code=1)
    assert "2 files would all be both.png" in error


def test_a_kept_picture_is_made_again_by_itself(generate):
    """By reproduce, and by --from, which makes the picture without its ranking."""
    generate("cat", "-s", 3, "--best-of", 3, "-o", "cat.png")
    assert run(["reproduce", "cat.png", "--check", "--progress", "none"]) == 0
    generate("--from", "cat.png", "-o", "again.png")
    assert Image.open("cat.png").tobytes() == Image.open("again.png").tobytes()
    assert "ranking" not in block("again.png") and block("again.png")["key"] == block("cat.png")["key"]


def test_what_was_held_is_not_held_again_and_what_is_missing_is(generate, monkeypatch):
    """Skipping: nothing is made where all is there; a contest that lacks one, or has one damaged, is held anew."""
    flags = ("cat", "dog", "-s", 3, "--best-of", 3, "-n", 2, "-o", "out/", "--if-exists", "skip")
    generate(*flags)
    before = files("out")
    with monkeypatch.context() as patched:
        patched.setattr(contests, "similarity", lambda *_: pytest.fail("a contest was held again"))
        assert generate(*flags)[0] == []
    assert files("out") == before
    gone, damaged = list(before)[0], list(before)[2]
    Path("out", gone).unlink()
    content = Path("out", damaged).read_bytes()
    Path("out", damaged).write_bytes(content[: len(content) // 2])
    generate(*flags)
    assert files("out").keys() == before.keys()
    assert Path("out", damaged).read_bytes() == content


def test_pictures_without_a_ranking_are_no_result_of_a_contest(generate):
    """A run with -n left all candidates there: which are the best is not known, and is found out."""
    generate("cat", "-s", 3, "-n", 3, "-o", "out/")
    assert len(generate("cat", "-s", 3, "--best-of", 3, "-o", "out/", "--if-exists", "skip")[0]) == 1
    ranked = [path for path in Path("out").glob("*.png") if "ranking" in block(path)]
    assert len(ranked) == 1 and len(files("out")) == 3


def test_another_number_of_candidates_is_another_contest(generate):
    """The best of 3 is not known to be the best of 4."""
    flags = ("cat", "-s", 3, "-o", "out/", "--if-exists", "skip")
    generate(*flags, "--best-of", 3)
    generate(*flags, "--best-of", 4)
    assert any(block(path)["ranking"]["best_of"] == 4 for path in Path("out").glob("*.png"))


def test_jobs_shards_and_the_manifest(generate):
    """Each contest is one shard's, whole; together they make what one process makes; the manifest names the kept."""
    Path("jobs.jsonl").write_text("".join(json.dumps({"prompt": word, "seed": 3}) + "\n" for word in ("a", "b", "c")))
    flags = ("--jobs", "jobs.jsonl", "--best-of", 3, "-n", 2, "--if-exists", "skip")
    generate(*flags, "-o", "whole/")
    for part in ("1/2", "2/2"):
        generate(*flags, "-o", "parts/", "--shard", part)
    assert files("whole").keys() == files("parts").keys() and len(files("whole")) == 6
    written = [json.loads(line)["path"] for line in Path("parts/manifest.jsonl").read_text().splitlines()[1:]]
    assert sorted(written) == list(files("parts"))


def test_all_candidates_of_a_contest_are_in_one_shard():
    """Whatever the number of shards."""
    settings = {"width": 16, "height": 16, "num_inference_steps": 2, "guidance_scale": 3.0, "model": "tiny"}
    requests = [
        Request(GenerateSettings(prompt="a", seed=seed, **settings), "0", contest=Contest(number, 4, 1, 0))
        for number in range(5)
        for seed in range(4)
    ]
    seen = []
    for index in range(3):
        pictures = plan_pictures(requests, OutputSettings(output="{index}.png"), Shard(index, 3))
        numbers = [picture.contest.number for picture in pictures]
        assert {numbers.count(number) for number in numbers} == {4}
        seen += [picture.index for picture in pictures]
    assert sorted(seen) == list(range(20))


def test_a_run_that_is_ended_in_a_contest_leaves_a_whole_one_or_none_to_be_held_again(generate, monkeypatch):
    """Killed between two kept pictures: the next run makes the contest whole."""
    flags = ("cat", "-s", 3, "--best-of", 3, "-n", 2, "-o", "out/", "--if-exists", "skip")
    real, written = contests.Contests.makes_way, []

    def ends(self, picture):
        if written:
            raise KeyboardInterrupt
        written.append(picture)
        return real(self, picture)

    with monkeypatch.context() as patched, pytest.raises((KeyboardInterrupt, SystemExit)):
        patched.setattr(contests.Contests, "makes_way", ends)
        generate(*flags)
    generate(*flags)
    assert sorted(block(path)["ranking"]["rank"] for path in Path("out").glob("*.png")) == [1, 2]


def test_a_contest_with_a_candidate_that_fails_fails_as_a_whole(generate, monkeypatch):
    """With --on-error skip: the others are held, and failed.jsonl holds one job that makes this one again."""
    real = contests.similarity

    def breaks(comparer, pixel_values, prompt):
        if prompt == "dog":
            raise SdcliError("broken", exit_code=4)
        return real(comparer, pixel_values, prompt)

    monkeypatch.setattr(contests, "similarity", breaks)
    flags = ("cat", "dog", "red", "-s", 3, "--best-of", 4, "-n", 2, "-o", "out/")
    lines, error = generate(*flags, "--on-error", "skip", code=5)
    assert len(lines) == 4 and "2 of 6 pictures failed" in error
    jobs = [json.loads(line) for line in Path("out/failed.jsonl").read_text().splitlines()]
    assert [(job["prompt"], job["seed"], job["num_images"]) for job in jobs] == [("dog", 3, 2)]
    monkeypatch.setattr(contests, "similarity", real)
    assert len(generate("--jobs", "out/failed.jsonl", "--best-of", 4, "-o", "again/")[0]) == 2


def test_few_pictures_are_held_at_once(generate, monkeypatch):
    """Of eight candidates no more than the kept one and the one in work are in memory."""
    most = []
    real = contests.similarity

    def counted(*arguments):
        gc.collect()
        most.append(sum(isinstance(each, Drawn) for each in gc.get_objects()))
        return real(*arguments)

    monkeypatch.setattr(contests, "similarity", counted)
    generate("cat", "-s", 3, "--best-of", 8, "-o", "cat.png", "--batch-size", 1)
    assert len(most) == 8 and max(most) <= 3


def test_progress_counts_candidates_and_tells_of_each_kept_picture_once(generate, sighted, capfd):
    """One image event for each."""
    capfd.readouterr()
    arguments = ["generate", "cat", "-m", sighted, "--best-of", "3", "-o", "cat.png", "--progress", "json"]
    assert run([*arguments, "--steps", "2", "--device", "cpu"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [each["event"] for each in events].count("image") == 1
    assert events[-1]["event"] == "done" and events[-1]["images"] == 1


def test_the_sheet_and_the_pipe_get_the_kept(generate, sighted, capfd):
    """--grid shows winners only, and -o - is the winner."""
    generate("cat", "dog", "-s", 3, "--best-of", 2, "-o", "out/", "--grid", "sheet.png")
    assert Path("sheet.png").is_file()
    assert run(["generate", "cat", "-m", sighted, "-s", "3", "--best-of", "2", "-o", "-", *QUICK]) == 0


def test_another_model_may_rank_what_guides_or_not(generate, tiny_folder, sighted, capfd):
    """--clip-model is enough for a model without an image tower, and stays out of the picture's settings."""
    capfd.readouterr()
    arguments = ["generate", "cat", "-m", str(tiny_folder), "-s", "3", "--best-of", "2", "-o", "cat.png", *QUICK]
    assert run([*arguments, "--clip-model", sighted]) == 0
    assert block("cat.png")["settings"]["clip_model"] is None and block("cat.png")["ranking"]["clip_model"] == sighted
    generate("cat", "-s", 3, "--best-of", 2, "--clip-guidance", 1, "-o", "guided.png")
    assert block("guided.png")["settings"]["clip_guidance"] == 1


def test_a_clip_that_gives_no_numbers_ranks_nothing(generate, sighted, tmp_path):
    """Exit code 4, and no picture."""
    shutil.copytree(sighted, "broken")
    path = Path("broken/image_encoder/model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    _, error = generate("cat", "--best-of", 2, "--clip-model", "broken", "-o", "cat.png", code=4)
    assert "CLIP image tower's output is not a number" in error and not Path("cat.png").exists()


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (("--best-of", "0"), "--best-of must be from 1 to 100000, got 0", "4 to 16 suit most"),
        (("--best-of", "-3"), "--best-of must be from 1 to 100000, got -3", "4 to 16 suit most"),
        (("--best-of", "2", "-n", "3"), "--best-of 2 is fewer than the 3 pictures", "such as --best-of 12"),
        (("--best-of", "2", "-n", "0"), "--num-images must be from 1", "try --num-images 1"),
        (("--best-of", "3", "-s", str(2**64 - 2)), "--seed must be", "picture i has N + i"),
        (("--best-of", "2", "-m", "BLIND"), "has no CLIP image tower", "models that have one: emoji"),
        (("--best-of", "2", "--clip-model", "emjoi"), "no model named 'emjoi'", "emoji"),
    ],
)
def test_mistakes_are_told_before_a_model_loads(flags, message, hint, tiny_folder, sighted, capfd, monkeypatch):
    """In one line, and what to do in another."""
    monkeypatch.setattr("sdcli.workbench.load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    flags = [str(tiny_folder) if flag == "BLIND" else flag for flag in flags]
    model = [] if "-m" in flags else ["-m", sighted]
    assert run(["generate", "cat", "-o", "cat.png", *flags, *model, *QUICK]) == 1
    error, told = capfd.readouterr().err.strip().splitlines()[-2:]
    assert message in error and hint in told


def test_a_job_that_keeps_more_than_are_made_is_told_with_its_line(generate):
    """Its own num_images counts."""
    Path("jobs.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "num_images": 5}\n')
    _, error = generate("--jobs", "jobs.jsonl", "--best-of", 3, "-o", "out/", code=1)
    assert "jobs.jsonl line 2: --best-of 3 is fewer than the 5 pictures" in error
