"""A server that keeps its model warm: the same results, streams and exit codes as a process of its own."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sdcli
from sdcli.cli.client import without_socket
from sdcli.cli.server import Server, listen
from sdcli.cli.wire import connect, receive_reply
from sdcli.errors import SdcliError

pytestmark = pytest.mark.alone

QUICK = ("-s", "1", "--steps", "2", "--progress", "none")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(sdcli.__file__).parent.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sdcli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def sdcli_run(*words: str) -> tuple[int, str, str]:
    return ended(start(*words))


@pytest.fixture
def server(tmp_path, tiny_folder):
    """A server on s.sock with the tiny model; it ends with the test."""
    process = start("serve", "--socket", "s.sock", "--model", str(tiny_folder), "--queue", "1")
    assert process.stderr.readline() == "listening on s.sock\n"
    yield process
    if process.poll() is None:
        process.terminate()
    process.communicate(timeout=60)
    assert not Path("s.sock").exists()


def test_a_server_does_what_a_process_does(server, tmp_path, tiny_folder):
    """Bit for bit, line for line, code for code; its own folder and environment stay what they were."""
    assert stat.S_IMODE(os.stat("s.sock").st_mode) == 0o600
    (tmp_path / "sub").mkdir()
    model = ("-m", str(tiny_folder))
    assert sdcli_run("generate", "a cat", *model, *QUICK, "-o", "own.png")[0] == 0
    words = ("generate", "a cat", *model, *QUICK, "-o", "theirs.png", "--json", "--socket")
    process = subprocess.run(
        [sys.executable, "-m", "sdcli", *words, "../s.sock"], cwd="sub", capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout)["path"] == "theirs.png"
    assert (tmp_path / "sub" / "theirs.png").read_bytes() == Path("own.png").read_bytes()
    code, out, err = sdcli_run("generate", "a cat", *model, *QUICK, "-o", "own.png", "--socket", "s.sock")
    assert (code, out, err.splitlines()[0]) == (1, "", "error: own.png is already there")
    code, _, err = sdcli_run("generate", "a cat", *model, "-W", "20", "--socket", "s.sock")
    assert code == 1 and "--width" in err
    jobs = "".join(json.dumps({"prompt": "a cat", "output": f"{i}.png"}) + "\n" for i in range(2))
    flags = (*model, *QUICK, "-o", "jobs/", "--socket=s.sock")
    piped = [sys.executable, "-m", "sdcli", "generate", "--jobs", "-", *flags]
    done = subprocess.run(piped, input=jobs, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["jobs/0.png", "jobs/1.png"])


def test_the_environment_names_a_server_that_may_be_gone(tmp_path, tiny_folder, monkeypatch):
    """Then the model is loaded here, with a warning; a flag that names nobody is an error."""
    monkeypatch.setenv("SDCLI_SOCKET", "none.sock")
    code, _, err = sdcli_run("generate", "a cat", "-m", str(tiny_folder), *QUICK, "-o", "a.png")
    assert code == 0 and err.startswith("warning: nobody listens on $SDCLI_SOCKET")
    code, _, err = sdcli_run("generate", "a cat", "--socket", "other.sock")
    assert code == 1 and err.startswith("error: nobody listens on other.sock")


def waits(process: subprocess.Popen) -> None:
    """Until a client has its first picture."""
    assert process.stdout.readline()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_client_that_ends_frees_its_place(server, tiny_folder, number, code):
    """Its pictures stay whole, and the next command is served; a full queue refuses more."""
    many = ("generate", "a cat", "-n", "5000", "-m", str(tiny_folder), "--steps", "8", "--progress", "none")
    first = start(*many, "-o", "many/", "--socket", "s.sock")
    waits(first)
    words = ("generate", "a", "-m", str(tiny_folder), *QUICK, "--socket", "s.sock", "-o")
    others = [start(*words, name) for name in ("b.png", "c.png")]
    while all(each.poll() is None for each in others):  # one waits, and the queue is full for the other
        time.sleep(0.05)
    refused, second = sorted(others, key=lambda each: each.poll() is None)
    code_of_refused, _, err = ended(refused)
    assert code_of_refused == 1 and err.startswith("error: the server on ") and "is busy: 1 wait" in err
    first.send_signal(number)
    assert ended(first)[0] == code
    assert ended(second)[:2] == (0, f"{second.args[-1]}\n")
    assert not list(Path("many").glob(".*"))


def test_a_server_that_is_ended_ends_its_command(server, tiny_folder):
    """Both with the code of the signal; what is done stays, the socket goes."""
    many = ("generate", "a cat", "-n", "5000", "-m", str(tiny_folder), "--steps", "8", "--progress", "none")
    client = start(*many, "-o", "many/", "--socket", "s.sock")
    waits(client)
    server.terminate()
    assert server.wait(timeout=60) == 143
    assert ended(client)[0] == 143
    assert not Path("s.sock").exists() and not list(Path("many").glob(".*"))


def test_a_server_ends_when_nobody_comes(tmp_path):
    """And takes its socket away."""
    code, out, err = sdcli_run("serve", "--socket", "s.sock", "--idle-timeout", "0.1")
    assert (code, out, err) == (0, "", "listening on s.sock\n")
    assert not Path("s.sock").exists()


def test_a_path_that_is_taken_is_told(tmp_path):
    """By a server, by a file; what a killed server left is replaced."""
    path = tmp_path / "s.sock"
    listener = listen(path)
    with pytest.raises(SdcliError, match="a server listens on"):
        listen(path)
    listener.close()
    listen(path).close()
    (tmp_path / "file").touch()
    with pytest.raises(SdcliError, match="cannot use the socket|no socket"):
        listen(tmp_path / "file")
    with pytest.raises(SdcliError, match="cannot make the socket"):
        listen(tmp_path / "none" / "s.sock")


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"GET / HTTP/1.1\r\n\r\n"])
def test_nonsense_is_hung_up_on(tmp_path, content):
    """And the server goes on."""
    server = Server(tmp_path / "s.sock", run=lambda arguments: 0, waiting=1, idle_timeout_s=60)
    try:
        here, there = socket.socketpair()
        with here:
            here.sendall(content)
            here.shutdown(socket.SHUT_WR)
            server._greet(there)
            try:
                assert receive_reply(here) is None
            except ConnectionResetError:  # it did not even read all of it
                pass
        assert server.jobs.empty()
    finally:
        server.close()
    assert connect(tmp_path / "s.sock") is None


def test_the_socket_is_not_part_of_what_is_sent():
    """In both spellings, and a prompt that looks like it stays."""
    words = ["generate", "--socket", "s", "a", "--socket=t", "-n", "2", "--", "--socket", "b"]
    assert without_socket(words) == ["generate", "a", "-n", "2", "--", "--socket", "b"]
