"""Runs of jobs: what is there already, what fails, what runs out of memory, who makes what."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdcli import keys
from sdcli.batch import groups, memory
from sdcli.batch.agreement import Agreement
from sdcli.batch.events import Failed, Made, There, Warned
from sdcli.batch.failures import FailureList
from sdcli.batch.manifest import Manifest
from sdcli.batch.run import Run
from sdcli.checkpoints.folder import ON_CPU
from sdcli.drawing import Easel
from sdcli.errors import EXIT_NOT_A_NUMBER, EXIT_OUT_OF_MEMORY, SdcliError
from sdcli.images import load_image
from sdcli.latents import LatentsFile, decode
from sdcli.output import Picture
from sdcli.run_settings import RunSettings, Shard
from sdcli.settings import GenerateSettings
from sdcli.workbench import Benches, Workbench

pytestmark = pytest.mark.alone

SETTINGS = GenerateSettings(
    prompt="the red cat", model="tiny", seed=1, width=16, height=16, num_inference_steps=2, guidance_scale=1.0
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(folder: Path, count: int, **changes) -> list[Picture]:
    return [
        Picture(settings=replace(SETTINGS, seed=seed, **changes), index=seed, file=f"{folder}/{seed}.png", id=str(seed))
        for seed in range(count)
    ]


def run(todo, model, folder: Path | None = None, **how) -> list:
    """The events of a run; with a folder it is one of jobs."""
    events: list = []
    making = Run({"tiny": model}, Benches(ON_CPU), RunSettings(**how), events.append)
    if how.get("on_error") == "skip":
        making.failures = FailureList(folder or todo[0].path.parent, Shard())
    if folder is None:
        making(making.check(todo))
        return events
    with Manifest(folder, 7) as making.manifest:
        making(making.check(todo))
    return events


def of_kind(events: list, kind: type) -> list[int]:
    return [event.picture.index for event in events if isinstance(event, kind)]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What is there already


def test_exactly_what_is_missing_is_made(tmp_path, tiny_model):
    """Files are the same as in one run, the manifest too; what a killed process left half-written is gone."""
    run(pictures(tmp_path / "once", 4), tiny_model, tmp_path / "once", if_exists="skip")
    first = run(pictures(tmp_path / "twice", 4)[:2], tiny_model, tmp_path / "twice", if_exists="skip")
    (tmp_path / "twice" / ".2.png.0123abcd.tmp").write_bytes(b"half")
    second = run(pictures(tmp_path / "twice", 4), tiny_model, tmp_path / "twice", if_exists="skip")
    assert (of_kind(first, Made), of_kind(second, There), of_kind(second, Made)) == ([0, 1], [0, 1], [2, 3])
    assert content_of(tmp_path / "once") == content_of(tmp_path / "twice")
    third = run(pictures(tmp_path / "twice", 4), tiny_model, tmp_path / "twice", if_exists="skip")
    assert [type(event) for event in third] == [There] * 4  # and no model is loaded


def test_a_file_that_does_not_open_is_made_again(tmp_path, tiny_model):
    """A picture that was cut off, an empty file; and that is said."""
    todo = pictures(tmp_path, 2)
    run(todo, tiny_model, tmp_path)
    before = content_of(tmp_path)
    todo[0].path.write_bytes(before["0.png"][:-20])
    todo[1].path.write_bytes(b"")
    events = run(todo, tiny_model, tmp_path, if_exists="skip")
    assert of_kind(events, Made) == [0, 1]
    assert len([event for event in events if isinstance(event, Warned)]) == 2
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("change", [{"guidance_scale": 2.0}, {"prompt": "a dog"}, {"sampler": "euler"}])
def test_another_picture_of_that_name_is_no_excuse(tmp_path, tiny_model, change):
    """Its key tells: a run of jobs refuses it, a run of prompts leaves it alone and says so."""
    run(pictures(tmp_path, 1), tiny_model)
    before = content_of(tmp_path)
    with pytest.raises(SdcliError, match="was made from something else"):
        run(pictures(tmp_path, 1, **change), tiny_model, tmp_path, if_exists="skip")
    events = run(pictures(tmp_path, 1, **change), tiny_model, if_exists="skip")
    assert [type(event) for event in events] == [Warned, There]
    assert content_of(tmp_path)["0.png"] == before["0.png"]


def test_a_key_follows_content_and_not_names(tmp_path, tiny_model, tiny_folder):
    """Weights of another path are the same, other weights under the same path are not."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    run(pictures(tmp_path / "out", 1), tiny_model)
    moved = replace(tiny_model, path=tmp_path / "model", name="other")
    assert of_kind(run(pictures(tmp_path / "out", 1), moved, tmp_path / "out", if_exists="skip"), There) == [0]
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SdcliError, match="made from something else"):
        run(pictures(tmp_path / "out", 1), moved, tmp_path / "out", if_exists="skip")


def test_a_key_follows_the_picture_to_begin_from(tmp_path, tiny_model):
    """A new drawing under the old name is another job."""
    drawing = tmp_path / "drawing.png"
    for colour, found in (("red", []), ("red", [0])):
        Image.new("RGB", (16, 16), colour).save(drawing)
        todo = pictures(tmp_path / "out", 1, init_image=str(drawing), strength=1.0)
        assert of_kind(run(todo, tiny_model, tmp_path / "out", if_exists="skip"), There) == found
    Image.new("RGB", (16, 16), "blue").save(drawing)
    with pytest.raises(SdcliError, match="made from something else"):
        run(todo, tiny_model, tmp_path / "out", if_exists="skip")


# What fails


def test_a_failure_is_written_down_and_the_rest_is_done(tmp_path, tiny_model, monkeypatch):
    """In the form of a job file; what an earlier run left there goes."""
    (tmp_path / "failed.jsonl").write_text("old")
    draw = Easel.draw

    def sometimes(self, group, on_step):
        if group[0].seed == 1:
            raise SdcliError("the UNet's output is not a number", exit_code=EXIT_NOT_A_NUMBER)
        return draw(self, group, on_step)

    monkeypatch.setattr(Easel, "draw", sometimes)
    events = run(pictures(tmp_path, 3), tiny_model, tmp_path, on_error="skip")
    assert (of_kind(events, Made), of_kind(events, Failed)) == ([0, 2], [1])
    (line,) = (tmp_path / "failed.jsonl").read_text().splitlines()
    job = json.loads(line)
    assert (job["id"], job["seed"], job["output"]) == ("1", 1, "1.png")
    assert job["error"] == "the UNet's output is not a number"
    with pytest.raises(SdcliError, match="not a number"):
        run(pictures(tmp_path / "stop", 3), tiny_model)
    assert list(content_of(tmp_path / "stop")) == ["0.png"]


def test_in_a_batch_only_the_bad_picture_fails(tmp_path, tiny_model, monkeypatch):
    """It is found by making each alone."""
    draw = Easel.draw

    def sometimes(self, group, on_step):
        if any(each.seed == 1 for each in group):
            raise SdcliError("the UNet's output is not a number", exit_code=EXIT_NOT_A_NUMBER)
        return draw(self, group, on_step)

    monkeypatch.setattr(Easel, "draw", sometimes)
    monkeypatch.setattr("sdcli.batch.run.group_size", lambda *_: 3)
    events = run(pictures(tmp_path, 3), tiny_model, on_error="skip")
    assert (of_kind(events, Made), of_kind(events, Failed)) == ([0, 2], [1])


def test_what_does_not_load_fails_its_own_pictures(tmp_path, tiny_model):
    """A LoRA that is none; the jobs before and behind it are done."""
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    bad = pictures(tmp_path / "out", 1, lora=(str(tmp_path / "bad.safetensors"),))
    good = [
        replace(each, index=each.index + 1, file=f"{tmp_path}/out/g{each.index}.png") for each in pictures(tmp_path, 2)
    ]
    events = run([good[0], *bad, good[1]], tiny_model, tmp_path / "out", on_error="skip")
    assert (of_kind(events, Made), of_kind(events, Failed)) == ([1, 2], [0])
    with pytest.raises(SdcliError):
        run(bad, tiny_model, tmp_path / "stop")


def test_a_key_knows_the_order_of_what_has_one(tmp_path, tiny_model, monkeypatch):
    """Two ControlNets with one picture and two weights are another picture the other way round."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    monkeypatch.setattr(keys, "find_controlnet", lambda name: Path(f"{name}.safetensors"))
    monkeypatch.setattr("sdcli.checkpoints.fingerprints.training_of", lambda path: None)
    drawing = tmp_path / "drawing.png"
    Image.new("RGB", (16, 16)).save(drawing)
    both = (str(tmp_path / "a"), str(tmp_path / "b"))
    shared = {"control_image": (str(drawing),) * 2, "control_scale": (1.0, 0.5)}
    found = {keys.Keys(tiny_model).of(replace(SETTINGS, controlnet=order, **shared)) for order in (both, both[::-1])}
    assert len(found) == 2


# Memory


def out_of_memory() -> SdcliError:
    return SdcliError("out of memory", hint="smaller", exit_code=EXIT_OUT_OF_MEMORY)


def test_batches_are_halved_until_they_fit(tmp_path, tiny_model, monkeypatch):
    """Once and for all, and each step is told once."""
    sizes = []
    draw = Easel.draw

    def greedy(self, group, on_step):
        sizes.append(len(group))
        if len(group) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(self, group, on_step)

    monkeypatch.setattr(Easel, "draw", greedy)
    monkeypatch.setattr("sdcli.batch.run.group_size", lambda *_: 8)
    monkeypatch.setattr(Agreement, "__call__", lambda *_: True)
    todo = [
        *pictures(tmp_path, 8),
        *[replace(each, file=f"{tmp_path}/b{each.index}.png") for each in pictures(tmp_path, 4, width=24)],
    ]
    events = run(todo, tiny_model)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    told = [event.message for event in events if isinstance(event, Warned)]
    assert told == [
        "out of memory with 8 pictures at once: from here on 4",
        "out of memory with 4 pictures at once: from here on 2",
    ]
    assert len(of_kind(events, Made)) == 12


def test_the_vae_works_in_tiles_when_it_has_to(tmp_path, tiny_model, monkeypatch):
    """And the picture is not drawn again."""
    drawn = []
    draw, develop, tile = Easel.draw, Easel.develop, Workbench.tile
    tiled = []
    monkeypatch.setattr(Easel, "draw", lambda self, *rest: drawn.append(1) or draw(self, *rest))
    monkeypatch.setattr(Workbench, "tile", lambda self: tile(self) and not tiled.append(1))

    def greedy(self, latents):
        if not tiled:
            raise out_of_memory()
        return develop(self, latents)

    monkeypatch.setattr(Easel, "develop", greedy)
    events = run(pictures(tmp_path, 2), tiny_model, batch_size=1)
    assert len(drawn) == 2 and of_kind(events, Made) == [0, 1]
    assert [event.message for event in events if isinstance(event, Warned)] == [
        "out of memory while decoding: the VAE works in tiles from here on (--tile-vae)"
    ]


def test_at_the_end_of_the_ladder_latents_are_kept(tmp_path, tiny_model, monkeypatch):
    """And the error says where, and what would fit."""

    def greedy(self, latents):
        raise out_of_memory()

    monkeypatch.setattr(Easel, "develop", greedy)
    with pytest.raises(SdcliError) as raised:
        run(pictures(tmp_path, 2), tiny_model)
    assert raised.value.exit_code == EXIT_OUT_OF_MEMORY
    assert f"sdcli decode {tmp_path / '0.safetensors'} -o {tmp_path / '0.png'}" in raised.value.hint
    file = LatentsFile.parse((tmp_path / "0.safetensors").read_bytes(), "x")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(pictures(tmp_path / "again", 1), tiny_model)
    (image,) = decode(file, tiny_model, ON_CPU)
    assert image.tobytes() == load_image(tmp_path / "again" / "0.png").tobytes()


def test_a_hint_says_what_would_fit():
    """Half of each side, in whole latents."""
    assert memory.what_would_fit(520, 512).startswith("try -W 256 -H 256,")


LIMITED = """
import resource, sys
from sdcli.cli import run
import torch, sdcli.batch.run
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**29,) * 2)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_process_of_little_memory_ends_with_3(tmp_path, tiny_folder):
    """By one error, with what is done kept."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a"}\n{"prompt": "a", "width": 4096, "height": 4096}\n')
    flags = ("--model", str(tiny_folder), "--steps", "1", "-g", "1", "--seed", "1", "--progress", "none", "-o", "out/")
    words = [sys.executable, "-c", LIMITED, "generate", "--jobs", str(jobs), *flags]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (EXIT_OUT_OF_MEMORY, "out/00000-1-a.png\n"), ended.stderr
    error, hint = ended.stderr.splitlines()[-2:]
    assert error.startswith("error: out of memory at 4096x4096") and "-W 2048 -H 2048" in hint


# Batches as on a GPU


def test_strict_fills_up_every_batch(tmp_path, tiny_model, monkeypatch):
    """Nothing of what fills it up is written."""
    sizes = []
    draw = Easel.draw
    monkeypatch.setattr(
        Easel, "draw", lambda self, group, on_step: sizes.append(len(group)) or draw(self, group, on_step)
    )
    monkeypatch.setattr("sdcli.batch.run.group_size", lambda *_: 2)
    assert of_kind(run(pictures(tmp_path, 3), tiny_model, strict=True), Made) == [0, 1, 2]
    assert sizes == [2, 2]
    assert sorted(content_of(tmp_path)) == [
        "0.png",
        "1.png",
        "2.png",
        *[n for n in content_of(tmp_path) if "cache" in n],
    ]


def test_strict_pictures_do_not_depend_on_their_number(tmp_path, tiny_model, monkeypatch):
    """Bit for bit, where batches are of one shape."""
    monkeypatch.setattr("sdcli.batch.run.group_size", lambda *_: 4)
    run(pictures(tmp_path / "all", 6), tiny_model, strict=True)
    run(pictures(tmp_path / "one", 6)[5:], tiny_model, strict=True)
    assert (tmp_path / "all" / "5.png").read_bytes() == (tmp_path / "one" / "5.png").read_bytes()


def test_group_sizes_suit_the_pictures():
    """Or are what is asked for."""
    gpu = replace(ON_CPU, device=torch.device("cuda"))
    assert groups.group_size(SETTINGS, gpu, None) == groups.LARGEST_GROUP
    assert groups.group_size(replace(SETTINGS, width=1024, height=1024), gpu, None) == 1


# Processes


@pytest.fixture
def command(tmp_path, tiny_folder):
    """Start `sdcli generate` on forty tiny jobs in a process of its own."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(json.dumps({"prompt": f"cat {number}", "id": f"j{number}"}) + "\n" for number in range(40)))

    def start(output: str, *more: str, words=(), environment=None, host=()) -> subprocess.Popen:
        flags = ("-m", str(tiny_folder), "--steps", "8", "--if-exists", "skip", "--progress", "none", "-o", output)
        call = [*host, sys.executable, *words, "-m", "sdcli", "generate", "--jobs", str(jobs), *flags, *more]
        env = {**os.environ, **(environment or {})}
        return subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    return start


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in err, err
    return process.returncode, out.splitlines()


def without_manifest(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in content_of(folder).items() if name != "manifest.jsonl"}


@pytest.mark.slow
def test_two_processes_share_a_folder_and_no_picture(tmp_path, command):
    """Neither makes what the other makes, both end when all is there, and no seed has to be told."""
    both = [command("out/"), command("out/")]
    (code, first), (code_too, second) = map(ended, both)
    assert (code, code_too) == (0, 0)
    assert len(first) + len(second) == 40 and not set(first) & set(second)
    assert len(without_manifest(tmp_path / "out")) == 40
    seeds = {json.loads(line)["seed"] for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()}
    assert len(seeds) == 1


SLOW_SIGNALS = [
    pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
]


@pytest.mark.parametrize("number", SLOW_SIGNALS)
def test_a_run_that_is_ended_goes_on_where_it_was(tmp_path, command, number):
    """Nothing is made twice, nothing is missing, nothing half-written lies about."""
    process = command("out/", "--seed", "3")
    done = [process.stdout.readline().strip() for _ in range(5)]
    process.send_signal(number)
    code, rest = ended(process)
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    before = set(without_manifest(tmp_path / "out"))
    if number == signal.SIGKILL:  # a half-written file may lie there until the next run sweeps it away
        before = {name for name in before if not name.startswith(".")}
    else:
        assert before == {Path(path).name for path in [*done, *rest]}
    code, second = ended(command("out/", "--seed", "3"))
    assert code == 0 and len(second) == 40 - len(before)
    assert ended(command("once/", "--seed", "3"))[0] == 0
    assert content_of(tmp_path / "out") == content_of(tmp_path / "once")


@pytest.mark.slow
def test_shards_and_processes_make_the_same_files(tmp_path, command):
    """A job array of three, and two processes that torchrun starts and that talk over gloo."""
    assert ended(command("whole/"))[0] == 0
    seed = json.loads((tmp_path / "whole" / "manifest.jsonl").read_text().splitlines()[0])["seed"]
    shards = [ended(command("shards/", "--shard", f"{number}/3", "--seed", str(seed))) for number in (1, 2, 3)]
    assert [len(paths) for _, paths in shards] == [14, 13, 13]
    assert without_manifest(tmp_path / "shards") == without_manifest(tmp_path / "whole")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517")
    code, paths = ended(command("ranks/", "--seed", str(seed), "--device", "cpu", words=launch))
    assert (code, len(paths)) == (0, 40)
    assert without_manifest(tmp_path / "ranks") == without_manifest(tmp_path / "whole")
    code, paths = ended(command("drawn/", "--device", "cpu", words=launch))  # the drawn seed is agreed on
    assert (code, len(paths)) == (0, 40)


@pytest.fixture
def two_hosts():
    """Words that run a command on one of two machines: network namespaces, joined by a cable, with an address each."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    names = ("sdcli-one", "sdcli-two")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", name, "link", "set", link, "up")
        yield [("ip", "netns", "exec", name) for name in names]
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need ip and its rights")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.slow
def test_processes_on_two_machines_make_the_same_files(tmp_path, command, two_hosts):
    """Each into its own folder, as machines do that share no disk; they agree on the seed over the network."""
    launch = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1")
    environment = {"GLOO_SOCKET_IFNAME": "cable"}
    processes = [
        command(
            f"host{rank}/",
            "--device",
            "cpu",
            words=(*launch, "--master-port", "29518", "--node-rank", str(rank)),
            environment=environment,
            host=host,
        )
        for rank, host in enumerate(two_hosts)
    ]
    assert [(code, len(paths)) for code, paths in map(ended, processes)] == [(0, 20), (0, 20)]
    made = [without_manifest(tmp_path / f"host{rank}") for rank in (0, 1)]
    seeds = {
        json.loads((tmp_path / f"host{rank}" / "manifest.jsonl").read_text().splitlines()[0])["seed"] for rank in (0, 1)
    }
    assert len(seeds) == 1
    assert ended(command("whole/", "--seed", str(seeds.pop())))[0] == 0
    assert made[0] | made[1] == without_manifest(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_gives_its_pictures_to_the_one_that_waits(tmp_path, command):
    """Which then makes all that is missing."""
    first = command("out/", "--seed", "3")
    first.stdout.readline()
    second = command("out/", "--seed", "3")
    second.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(0.1)
    assert ended(second)[0] == 0
    made = without_manifest(tmp_path / "out")
    made = [name for name in made if not name.startswith(".")]  # the first may have left one half-written
    assert len(made) == 40
