"""docs/experiments: both recipes run, a UNet that is not told t ignores it, the pages show what was measured."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from sdcli import load_pipeline

FOLDER = Path(__file__).parent.parent / "docs" / "experiments"
EXPERIMENTS = {"time_embedding": "time-embedding", "losses": "losses"}  # script and page
LINKS = [
    (page, target)
    for page in EXPERIMENTS.values()
    for target in re.findall(r"\]\(([^)#]+)\)", (FOLDER / f"{page}.md").read_text(encoding="utf-8"))
]
MOST_BYTES = 150_000  # of a figure


def script(name: str, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


def conduct(name: str, output: Path, *flags: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", [name, "--tiny", "--output", str(output), *flags])
        script(name, monkeypatch).main()


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """The first experiment with runs of three updates, one of each variant."""
    folder = tmp_path_factory.mktemp("experiments")
    conduct("time_embedding", folder, "--seeds", "1")
    return folder


def test_the_unet_that_is_not_told_t_does_not_depend_on_it(output):
    """At 9 as at 900, to the bit; the one that is told does."""
    sample, words = torch.randn(2, 1, 8, 8), torch.randn(2, 8, 32)
    for variant, alike in (("told-mse", False), ("not-told-mse", True)):
        unet = load_pipeline(str(output / f"{variant}-0"), device="cpu").unet
        with torch.no_grad():
            early, late = (unet(sample, timestep, words) for timestep in (9, 900))
        assert torch.equal(early, late) == alike
        assert early.abs().max() > 0


@pytest.mark.parametrize("name", ["time_embedding", pytest.param("losses", marks=pytest.mark.slow)])
def test_results_have_a_row_for_each_variant_and_a_figure_of_each_kind(output, monkeypatch, name):
    """Runs that both experiments have in common are made once, and called what each calls them."""
    module, page = script(name, monkeypatch), EXPERIMENTS[name]
    if name == "losses":
        before = (output / "told-mse-0" / "figures.json").stat().st_mtime_ns
        conduct(name, output, "--seeds", "1")
        assert (output / "told-mse-0" / "figures.json").stat().st_mtime_ns == before
    found = json.loads((output / f"{page}.json").read_text())
    assert [run["variant"] for run in found["runs"]] == [variant.name for variant in module.VARIANTS]
    head, _, *rows = (line.strip("|").split("|") for line in module.table(**found).splitlines())
    assert [row[0].strip() for row in rows] == [*(each.label for each in module.VARIANTS), "*real pictures*"]
    assert all(len(row) == len(head) for row in rows)
    assert all(re.search(r"\d", cell) for row in rows[:-1] for cell in row[1:])
    for file in (f"{page}.png", f"{page}-samples.png"):
        assert (output / file).read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_made_again_and_other_settings_are_refused(output, monkeypatch, capsys):
    """So an interrupted experiment goes on, and no table mixes two of them."""
    monkeypatch.setattr("recipe.Bench._measure", lambda *_: pytest.fail("measured again"))
    conduct("time_embedding", output, "--seeds", "1")
    assert "| told t |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        conduct("time_embedding", output, "--steps", "7")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_page_shows_the_table_of_what_was_measured(monkeypatch, name):
    """To the last digit, of three seeds."""
    page = EXPERIMENTS[name]
    found = json.loads((FOLDER / f"{page}.json").read_text(encoding="utf-8"))
    module = script(name, monkeypatch)
    assert len(found["runs"]) == 3 * len(module.VARIANTS)
    assert module.table(**found) in (FOLDER / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_lead_somewhere_and_figures_are_small(page, target):
    if not target.startswith("http"):
        assert (FOLDER / target).stat().st_size < MOST_BYTES
