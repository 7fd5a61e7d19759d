"""How a model's name is found: files in their order, folders, runs, and mistakes with file and line."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdcli import registry
from sdcli.errors import SdcliError
from sdcli.model_config import native_size
from sdcli.registry import find_loadable, find_model, load_registry, models_files, shipped_models_file


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """No models.toml but the shipped one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SDCLI_MODELS", raising=False)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def entry(name: str, description: str = "", more: str = "") -> str:
    return f'[models.{name}]\npath = "{name}"\ndescription = "{description}"\n{more}'


def test_the_shipped_file_parses_and_its_default_is_in_it():
    """Every entry is a complete model, and `--model` may be left out."""
    shipped = registry.read_models_file(shipped_models_file())
    assert shipped.default in shipped.models
    for spec in shipped.models.values():
        assert spec.licence and spec.description
        assert spec.hub is not None or spec.path.is_absolute()


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("name", "steps", "sampler", "eta", "spacing"),
    [
        ("lcm-{}", 4, "lcm", 0.0, None),
        ("tcd-{}", 4, "tcd", 0.3, None),
        ("hyper-{}", 4, "ddim", 0.0, "trailing"),
        ("hyper-{}-1step", 1, "tcd", 1.0, None),
    ],
)
def test_models_of_few_steps_are_their_base_and_a_lora(name, steps, sampler, eta, spacing, base):
    """With the steps, the sampler and the noise that their authors' cards say; guidance is off."""
    models = registry.read_models_file(shipped_models_file()).models
    spec = models[name.format(base)]
    assert (spec.hub, spec.defaults.width) == (models[base].hub, models[base].defaults.width)
    assert spec.lora_hub.file.endswith(".safetensors") and spec.lora_hub.repo.count("/") == 1
    defaults = spec.defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (steps, 1.0)
    assert (defaults.sampler, defaults.eta, defaults.timestep_spacing) == (sampler, eta, spacing)


def test_a_model_whose_lora_is_missing_is_not_on_disk(empty_home, tiny_folder):
    """It is told apart from a model that is missing itself."""
    text = f'[models.a]\npath = "{tiny_folder}"\nlora = "fast.safetensors"\n'
    path = write(empty_home / "mine.toml", text)
    assert find_model("a", path).lora == empty_home / "fast.safetensors" and not find_model("a", path).on_disk
    with pytest.raises(SdcliError, match="the LoRA of model a is not on disk: .*mine.toml says .*fast.safetensors"):
        find_loadable("a", path)
    write(empty_home / "fast.safetensors", "anything")
    assert find_loadable("a", path).on_disk


def test_without_a_name_it_is_the_default():
    """The built-in model, with its own size and steps."""
    spec = find_model()
    assert spec.name == "emoji"
    assert (spec.defaults.width, spec.defaults.height) == (128, 128)


def test_the_files_win_in_the_documented_order(empty_home, monkeypatch):
    """--models-file, $SDCLI_MODELS, ./models.toml, ~/.config/sdcli/models.toml, the shipped one."""
    write(empty_home / "config" / "sdcli" / "models.toml", entry("a", "home") + entry("b", "home") + entry("c", "home"))
    write(empty_home / "models.toml", 'default = "b"\n' + entry("a", "here") + entry("b", "here"))
    monkeypatch.setenv("SDCLI_MODELS", str(write(empty_home / "env.toml", entry("a", "env"))))
    assert [find_model(name).description for name in "abc"] == ["env", "here", "home"]
    assert find_model().name == "b"
    asked = write(empty_home / "asked.toml", 'default = "a"\n' + entry("a", "asked"))
    assert find_model("a", asked).description == "asked"
    assert find_model(None, asked).name == "a"
    assert [path.name for path in models_files(asked)] == ["asked.toml", "env.toml", "models.toml", "models.toml"] + [
        "models.toml"
    ]
    assert find_model("emoji").description


def test_paths_are_relative_to_their_file(empty_home):
    """An entry works from whatever folder the command runs in."""
    path = write(empty_home / "deep" / "models.toml", entry("cats"))
    assert find_model("cats", path).path == empty_home / "deep" / "cats"


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (entry("a") + "widht = 64", 4, "unknown key 'widht'", "did you mean width"),
        (entry("a") + "width = 65", 4, "width must be a positive multiple of 8, got 65", "64 or 72"),
        (entry("a") + 'steps = "20"', 4, "steps must be a number, got '20'", "number"),
        (entry("a") + "steps = true", 4, "steps must be a number, got True", "number"),
        (entry("a") + "licence = 3", 4, "licence must be a text in quotes, got 3", "text"),
        (entry("a") + "eta = 1.5", 4, "eta must be from 0 to 1, got 1.5", "try eta 0"),
        (entry("a") + 'lora = "hf:owner/name"', 4, "lora must be a file, got 'hf:owner/name'", "hf:OWNER/NAME:FILE"),
        (entry("a") + "lora = 3", 4, "lora must be a text in quotes, got 3", "text"),
        (entry("a") + 'sampler = "eular"', 4, "sampler knows no 'eular'", "did you mean euler"),
        ('[models.a]\nhub = "owner"\n', 2, "hub must be OWNER/NAME, got 'owner'", "revision"),
        ('[models.a]\nhub = "../a/b"\n', 2, "hub must be OWNER/NAME, got '../a/b'", "revision"),
        ('[models.a]\nfile = "x"\nhub = "a/b@v1"\n', 3, "hub must be OWNER/NAME, got 'a/b@v1'", "revision"),
        ("# words\n[model.a]\npath = '.'\n", 2, "unknown key 'model'", "did you mean models"),
        ("\n[models.a]\nwidth = 64\n", 2, "a needs one of path, builtin and hub", "path"),
        ("[models]\na = 3\n", 2, "a must be a table", "[models.a]"),
        ("models = 3\n", 1, "models must be tables", "[models.NAME]"),
        ("default = 3\n", 1, "default must be the name of a model", "NAME"),
        (entry("b") + entry("a") + "[models.a.extra]\nx = 1\n", 7, "unknown key 'extra'", "known"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(empty_home, text, line, message, hint):
    """File, line, what is wrong, what is allowed."""
    path = write(empty_home / "mine.toml", text)
    with pytest.raises(SdcliError) as raised:
        load_registry(path)
    assert str(raised.value).startswith(f"{path}, line {line}: ")
    assert message in str(raised.value)
    assert hint in raised.value.hint


def test_a_file_that_is_no_toml_is_told_with_its_line(empty_home):
    """The parser's own place is passed on."""
    path = write(empty_home / "mine.toml", 'default = "a"\nwidth == 3\n')
    with pytest.raises(SdcliError, match="line 2"):
        load_registry(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b""])
def test_a_file_of_other_bytes_is_an_error_or_empty(empty_home, content):
    """Bytes that are not UTF-8 are told; an empty file names no model."""
    (empty_home / "mine.toml").write_bytes(content)
    if content:
        with pytest.raises(SdcliError, match="cannot read"):
            load_registry(empty_home / "mine.toml")
    else:
        assert load_registry(empty_home / "mine.toml").default == "emoji"


def test_a_file_that_was_asked_for_must_exist(empty_home, monkeypatch):
    """Neither --models-file nor $SDCLI_MODELS is passed over in silence."""
    with pytest.raises(SdcliError, match="--models-file"):
        find_model("emoji", empty_home / "none.toml")
    monkeypatch.setenv("SDCLI_MODELS", str(empty_home / "none.toml"))
    with pytest.raises(SdcliError, match="SDCLI_MODELS"):
        find_model("emoji")


def test_a_default_that_is_no_model_is_refused(empty_home):
    """With the near names."""
    with pytest.raises(SdcliError, match="default is 'emoij'") as raised:
        load_registry(write(empty_home / "mine.toml", 'default = "emoij"'))
    assert "did you mean emoji" in raised.value.hint


def test_an_unknown_name_gets_near_names():
    """A typo is answered with the name."""
    with pytest.raises(SdcliError, match="no model named 'emoij'") as raised:
        find_model("emoij")
    assert "did you mean emoji" in raised.value.hint


@pytest.mark.parametrize("name", ["", "a" * 5000, "models/../sd15"])
def test_a_name_that_no_file_system_takes_is_just_unknown(name):
    """No traceback for odd names."""
    with pytest.raises(SdcliError, match="no model named"):
        find_model(name)


def test_a_folder_is_a_model_with_the_size_it_was_made_for(tiny_folder):
    """Size from the UNet's sample_size and the VAE's stride; no sampler but its own."""
    spec = find_model(str(tiny_folder))
    assert spec.on_disk and spec.path == tiny_folder
    assert (spec.defaults.width, spec.defaults.height, spec.defaults.sampler) == (16, 16, None)


def test_a_training_run_is_a_model(tiny_folder, empty_home):
    """RUN/model is what `--model RUN` means."""
    run = empty_home / "run"
    run.mkdir()
    (run / "model").symlink_to(tiny_folder)
    assert find_model("run").path == Path("run") / "model"
    assert find_model("a", write(empty_home / "mine.toml", '[models.a]\npath = "run"\n')).on_disk


def test_a_folder_or_file_that_is_no_model_is_refused(empty_home):
    """With what makes a folder a model."""
    (empty_home / "photos").mkdir()
    with pytest.raises(SdcliError, match="photos is no model") as raised:
        find_model("photos")
    assert "diffusers" in raised.value.hint
    write(empty_home / "model.safetensors", "x")
    with pytest.raises(SdcliError, match="is no safetensors file"):
        find_model("model.safetensors")


def test_a_model_that_is_not_on_disk_is_found_but_not_loadable(empty_home):
    """`models show` shows it, the commands that load refuse it before torch."""
    path = write(empty_home / "mine.toml", entry("gone"))
    assert not find_model("gone", path).on_disk
    with pytest.raises(SdcliError, match="model gone is not on disk: .*mine.toml says"):
        find_loadable("gone", path)


def test_a_damaged_configuration_is_refused(empty_home):
    """A config.json that is no JSON object."""
    for text in ("{", "[]"):
        write(empty_home / "m" / "vae" / "config.json", text)
        with pytest.raises(SdcliError, match="config.json"):
            native_size(empty_home / "m")


@pytest.mark.parametrize("sample_size", ['"x"', "[32]", "[32, 32, 32]", '[32, "x"]', "-4", "1.5", "true", "{}"])
def test_a_size_that_is_none_is_refused(empty_home, sample_size):
    """Of a UNet and of a transformer, with the file."""
    for part in ("unet", "transformer"):
        file = write(empty_home / part / part / "config.json", f'{{"sample_size": {sample_size}}}')
        with pytest.raises(SdcliError, match="sample_size must be") as raised:
            native_size(empty_home / part)
        assert str(file) in str(raised.value) and raised.value.hint


def test_rows_and_columns_may_differ(empty_home):
    """A UNet's sample_size of two numbers is rows, columns."""
    write(empty_home / "m" / "unet" / "config.json", '{"sample_size": [32, 64]}')
    write(empty_home / "m" / "vae" / "config.json", '{"block_out_channels": [8, 8, 8]}')
    assert native_size(empty_home / "m") == (256, 128)


def test_the_shipped_file_is_found_in_a_checkout_and_when_installed(empty_home, monkeypatch):
    """Beside the package in a checkout, inside it in a wheel."""
    package = empty_home / "site" / "sdcli"
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", package)
    outside = write(empty_home / "site" / "models.toml", entry("checkout"))
    assert shipped_models_file() == outside
    inside = write(package / "models.toml", '[models.wheel]\nbuiltin = "wheel"\n')
    assert shipped_models_file() == inside
    assert find_model("wheel").path == package / "builtin" / "wheel"


def test_finding_a_model_loads_no_torch():
    """A mistaken name is answered at once."""
    code = "import sys; from sdcli.registry import find_model; find_model(); print('torch' in sys.modules)"
    root = Path(registry.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "False"
