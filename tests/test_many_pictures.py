"""`sdcli generate` asked for many pictures at once, and for pictures like others."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sdcli.cli import run
from sdcli.images import load_image, read_text

QUICK = ("--steps", "2", "--progress", "none", "-s", "1")


@pytest.fixture
def generate(capsys, tmp_path, monkeypatch, tiny_folder):
    """Run the command in an empty folder; its code, the lines of stdout and those of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def command(*words: str) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        code = run(["generate", *words, "-m", str(tiny_folder)])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return command


def settings_in(path: str) -> dict:
    return json.loads(read_text(Path(path))[0]["sdcli"])["settings"]


def test_wildcards_make_a_grid_with_rows(generate):
    """Each of the double braces, one of the single ones, two seeds; the sheet's path comes last."""
    code, out, _ = generate("a {red|blue} {{cat|dog}}", "-n", "2", *QUICK, "-o", "out/", "--grid", "sheet.png")
    assert code == 0 and len(out) == 5 and out[-1] == "sheet.png"
    prompts = [settings_in(path)["prompt"].split() for path in out[:4]]
    assert [words[2] for words in prompts] == ["cat", "cat", "dog", "dog"]
    assert {words[1] for words in prompts} <= {"red", "blue"}
    assert load_image(Path("sheet.png")).width > 2 * 16
    assert generate("x", *QUICK, "-o", "x.png", "--grid", "sheet.png")[2][0] == "error: sheet.png is already there"


def test_a_picture_is_recalled_and_flags_go_first(generate):
    """The same again, bit for bit; or with what the user says."""
    assert (
        generate("a {red cat", "-N", "a dog", "--sampler", "euler", "--schedule", "karras", *QUICK, "-o", "a.png")[0]
        == 0
    )
    assert generate("--from", "a.png", "--progress", "none", "-o", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert generate("a dog", "--from", "a.png", "--sampler", "ddim", "--progress", "none", "-o", "c.png")[0] == 0
    changed = settings_in("c.png")
    assert (changed["prompt"], changed["sampler"], changed["negative_prompt"], changed["seed"]) == (
        "a dog",
        "ddim",
        "a dog",
        1,
    )
    Path("s.toml").write_text('prompt = "the cat"\nsteps = 3\nseed = 9\n')
    assert generate("--from", "s.toml", "--progress", "none", "-o", "d.png")[0] == 0
    assert (settings_in("d.png")["num_inference_steps"], settings_in("d.png")["seed"]) == (3, 9)


def test_what_a_peer_says_and_cannot_be_used_is_told(generate):
    """Its model, and how much of a picture that is not here was made anew."""
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a cat\nSteps: 2, Sampler: Euler, CFG scale: 2, Seed: 5, Size: 16x16, Model: theirs, Denoising strength: 0.5",
    )
    Image.new("RGB", (16, 16)).save("peer.png", pnginfo=text)
    code, out, err = generate("--from", "peer.png", "--progress", "none", "-o", "a.png")
    assert (code, out) == (0, ["a.png"])
    assert any("strength" in line for line in err) and any("theirs" in line for line in err)
    assert settings_in("a.png")["seed"] == 5


def test_a_pattern_begins_from_each_picture(generate):
    """In order, each of its own size."""
    Path("in").mkdir()
    for name, size in (("a", (16, 16)), ("b", (24, 16))):
        Image.new("RGB", size, "red").save(f"in/{name}.png")
    code, out, _ = generate("a cat", "--init-image", "in/*.png", "--strength", "1", *QUICK, "-o", "out/")
    assert code == 0
    assert [(settings_in(path)["init_image"], settings_in(path)["width"]) for path in out] == [
        ("in/a.png", 16),
        ("in/b.png", 24),
    ]


def test_latents_are_kept_beside_the_picture(generate, tiny_folder):
    """And decode to it."""
    assert generate("a cat", *QUICK, "-o", "a.png", "--save-latents")[0] == 0
    assert run(["decode", "a.safetensors", "-o", "b.png", "-m", str(tiny_folder)]) == 0
    assert load_image(Path("a.png")).tobytes() == load_image(Path("b.png")).tobytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "--prompts", "p.txt"), "PROMPT, --prompts and --jobs do not go together"),
        (("--prompts", "none.txt"), "there is no file none.txt"),
        (("--prompts", "empty.txt"), "empty.txt asks for nothing"),
        (("--jobs", "bad.jsonl"), "bad.jsonl line 2: unknown key 'promt'"),
        (("a", "--shard", "3/2"), "--shard 3/2 is none"),
        (("a", "--batch-size", "0"), "--batch-size must be from 1"),
        (("a", "--offload", "model"), "--offload is for a GPU"),
        (("a", "-n", "2", "-o", "-"), "2 pictures do not fit into one pipe"),
        (("a", "--from", "none.png"), "there is no file none.png"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(generate, words, message):
    """One line, code 1, no file."""
    Path("empty.txt").write_text("# nothing\n")
    Path("p.txt").write_text("a\n")
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "a"}\n')
    before = sorted(Path().rglob("*"))
    code, out, err = generate(*words, "--progress", "none")
    assert (code, out) == (1, []) and err[0] == f"error: {message}" or err[0].startswith(f"error: {message}")
    assert [path for path in sorted(Path().rglob("*")) if "cache" not in str(path)] == before
