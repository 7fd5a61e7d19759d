"""Rate and time left of a run, by events whose times are known."""

import pytest

from sdcli.batch.events import Failed, Loaded, Made, Stepped, There
from sdcli.cli import progress
from sdcli.cli.progress import Reporter
from sdcli.errors import SdcliError
from sdcli.output import Picture
from sdcli.settings import GenerateSettings

SETTINGS = GenerateSettings(
    prompt="", model="tiny", seed=0, width=8, height=8, num_inference_steps=2, guidance_scale=1.0
)
PICTURE = Picture(settings=SETTINGS, index=0, file="a.png")
LOADED = Loaded("tiny", "cpu", "fp32", 1.0)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test lets pass."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    ours = Clock()
    monkeypatch.setattr(progress, "time", ours)
    return ours


def test_what_waits_to_be_written_counts_as_done(clock):
    """So the rate does not fall back when the next batch begins before the pictures of this one are on disk."""
    reporter = Reporter(8)
    reporter(LOADED)
    clock.now += 4
    reporter(Stepped(0, 4, 2, 2))
    assert reporter.pace() == (1.0, 4.0)
    clock.now += 2
    step = Stepped(4, 4, 1, 2)
    assert reporter.pace(step) == (1.0, 2.0)
    for _ in range(4):
        reporter(Made(PICTURE, 1.0))
    assert reporter.pace(step) == (1.0, 2.0)


def test_the_loading_of_a_second_model_does_not_raise_the_rate(clock):
    """Its time counts, as the pictures that were made before do."""
    reporter = Reporter(4)
    reporter(LOADED)
    clock.now += 2
    for _ in range(2):
        reporter(Stepped(0, 1, 2, 2))
        reporter(Made(PICTURE, 1.0))
    clock.now += 2
    reporter(LOADED)
    assert reporter.pace() == (0.5, 4.0)


def test_no_more_is_done_than_there_is_to_do(clock, capsys):
    """Pictures that are there or failed are not left, and one that is denoised twice is still one."""
    reporter = Reporter(4)
    reporter(There(PICTURE))
    assert reporter.pace() == (0.0, 0.0)
    reporter(LOADED)
    clock.now += 1
    reporter(Failed(PICTURE, SdcliError("it failed")))
    for _ in range(3):
        reporter(Stepped(0, 1, 2, 2))
    assert reporter.pace() == (2.0, 0.0)
    assert capsys.readouterr().err == "warning: a.png failed: it failed\n"
