"""What the shell offers on Tab, by the protocol of Typer's scripts and in a real bash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdcli
from sdcli.cli import completion, run
from sdcli.settings import SAMPLER_NAMES, SCHEDULE_NAMES

ROOT = Path(sdcli.__file__).parent.parent
HEAVY = "{'torch', 'diffusers', 'transformers', 'PIL', 'numpy', 'safetensors', 'accelerate'}"
# `python -c` has the program's name as the entry point would; what it has imported is told at the end.
ASK = (
    "import atexit, sys\n"
    f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr))\n"
    "from sdcli.cli import main\nmain()\n"
)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A folder of its own, this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def offered(capsys, monkeypatch):
    """What is offered for the last word of a line, as bash asks for it."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        monkeypatch.setenv("_SDCLI_COMPLETE", "complete_bash")
        from sdcli.cli import program

        with pytest.raises(SystemExit) as ended:
            completion.answer_shell(program)
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sdcli tr", ["train"]),
        ("sdcli models v", ["verify"]),
        ("sdcli generate --sampler dpm", [name for name in SAMPLER_NAMES if name.startswith("dpm")]),
        ("sdcli generate --sampler=unip", ["unipc"]),
        ("sdcli generate --schedule ", list(SCHEDULE_NAMES)),
        ("sdcli generate x --steps 3 --model em", ["emoji"]),
        ("sdcli generate -m sdxl-t", ["sdxl-turbo"]),
        ("sdcli models show emo", ["emoji"]),
        ("sdcli generate --format ", ["png", "jpg", "webp"]),
        ("sdcli generate --if-exists ov", ["overwrite"]),
        ("sdcli generate --progress j", ["json"]),
        ("sdcli generate --device c", ["cpu", "cuda", "cuda:0"]),
        ("sdcli generate --guidance-r", ["--guidance-rescale"]),
        ("sdcli train --part l", ["lora"]),
        ("sdcli train --config e", ["emoji"]),
        ("sdcli train --lr-schedule const", ["constant", "constant_with_warmup"]),
        ("sdcli encode photo.p", []),  # bash goes on to files
        ("sdcli generate --sampler nothing", []),
        ("sdcli nothing --x ", []),
    ],
)
def test_names_are_offered(offered, line, expected):
    """Of commands, options, and of every value that is one of some names."""
    found = offered(line)
    assert found == expected or line.endswith("--x ")


def test_models_of_the_named_file_are_offered(offered, tmp_path):
    """Of the folder's own models.toml too; one that does not parse offers nothing, and says nothing."""
    (tmp_path / "models.toml").write_text('[models.mine]\npath = "mine"\n')
    (tmp_path / "other.toml").write_text('[models.milky]\npath = "m"\n')
    assert offered("sdcli generate --model mi") == ["mine"]
    assert offered("sdcli generate --models-file other.toml --model mi") == ["milky", "mine"]
    (tmp_path / "models.toml").write_text("[models.mine\n")
    assert offered("sdcli generate --model mi") == []
    assert offered("sdcli generate --models-file none.toml --model mi") == []


def test_a_real_bash_completes(tmp_path):
    """With the script that the program prints; nothing heavy is imported on Tab."""
    program = tmp_path / "bin" / "sdcli"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{ASK}")
    program.chmod(0o755)
    script = r"""
        source <(_SDCLI_COMPLETE=source_bash sdcli)
        tab() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _sdcli_completion sdcli; echo "${COMPREPLY[*]}"; }
        tab sdcli generate --sampler dpmpp_3
        tab sdcli tr
        tab sdcli generate '"a kitten"' --model em  # words as typed, with their quotes
    """
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines() == ["dpmpp_3m_sde", "train", "emoji"]
    assert done.stderr.splitlines() == ["[]"] * 4


def test_the_script_is_shown_and_installed(capsys, monkeypatch, tmp_path):
    """For the shell that runs the program; the start-up file gets one line, once."""
    shellingham = pytest.importorskip("shellingham")
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["--show-completion"]) == 0
    shown = capsys.readouterr().out
    assert "_SDCLI_COMPLETE=complete_bash" in shown and shown.endswith(
        "complete -o default -F _sdcli_completion sdcli\n"
    )
    for _ in range(2):
        assert run(["--install-completion"]) == 0
    assert (tmp_path / ".bashrc").read_text().count("source ") == 1
    assert (tmp_path / ".bash_completions" / "sdcli.sh").read_text() == shown.removesuffix("\n")
    assert "bash completion installed in" in capsys.readouterr().out


@pytest.mark.parametrize("found", ["tcsh", None, ModuleNotFoundError])
def test_a_shell_that_is_not_known_is_told(capsys, monkeypatch, found):
    """Nothing is written; the hint names the way that needs no guess."""
    shellingham = pytest.importorskip("shellingham")

    def detect():
        if found is None:
            raise shellingham.ShellDetectionFailure
        return found, f"/bin/{found}"

    monkeypatch.setattr(shellingham, "detect_shell", detect)
    if found is ModuleNotFoundError:
        monkeypatch.setitem(sys.modules, "shellingham", None)
    assert run(["--show-completion"]) == 1
    out, err = capsys.readouterr()
    error, hint = err.splitlines()
    assert out == "" and error.startswith("error: ") and "_SDCLI_COMPLETE=source_bash sdcli" in hint
