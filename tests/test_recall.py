"""Settings from files: ours come back whole, the peers' as far as they go, and each mistake is told with its line."""

import json
from dataclasses import asdict, fields, replace

import pytest
from foreign_pictures import A1111, COMFY, WORKFLOW, comfy_webp, png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdcli.errors import SdcliError
from sdcli.files import write_whole
from sdcli.images import encode_image
from sdcli.metadata import NOISED_SCHEMA, Provenance, complete_json, text_blocks
from sdcli.recall import KINDS, LARGEST_FILE, Recalled, recall
from sdcli.settings import GenerateSettings

OURS = GenerateSettings(
    prompt="a cat\n小猫",
    negative_prompt="a dog",
    model="models/emoji",
    seed=2**64 - 1,
    width=128,
    height=64,
    num_inference_steps=20,
    guidance_scale=7.123456789012345,
    sampler="dpmpp_2m",
    init_image="a.png",
    strength=0.5,
    lora=("snow.safetensors:0.5",),
    controlnet=("edges",),
    control_image=("b.png",),
    control_scale=(0.5,),
)
PROVENANCE = Provenance(model_name="emoji", device="cpu", precision="fp32", weights={"unet/x.safetensors": "0" * 64})


@pytest.fixture
def write(tmp_path):
    """A file of a name and content."""

    def writer(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


def mistake(path) -> tuple[str, str]:
    with pytest.raises(SdcliError) as raised:
        recall(path)
    return str(raised.value).replace(str(path), path.name), raised.value.hint


@pytest.mark.parametrize("file_format", ["png", "jpg", "webp"])
def test_our_pictures_come_back_whole(tmp_path, file_format):
    """Every setting, those that are the model's own too."""
    path = tmp_path / f"a.{file_format}"
    write_whole(encode_image(Image.new("RGB", (8, 8)), file_format, text_blocks(OURS, PROVENANCE)), path)
    recalled = recall(path)
    assert GenerateSettings(**recalled.settings) == OURS
    assert recalled.settings.keys() == asdict(OURS).keys()
    assert (recalled.maker, recalled.left_out) == ("sdcli", {})


def test_our_block_alone_is_enough(write):
    """As it stands in a picture, or with nothing but its settings."""
    whole = write("a.json", complete_json(OURS, PROVENANCE))
    assert GenerateSettings(**recall(whole).settings) == OURS
    some = write("b.json", json.dumps({"schema": "sdcli.image/1", "settings": {"prompt": "a cat", "schedule": None}}))
    assert recall(some).settings == {"prompt": "a cat", "schedule": None}


def test_pictures_of_others(write):
    """Models and LoRAs are not files here: they are told as left out, like all that was not understood."""
    recalled = recall(write("a.png", png({"parameters": A1111})))
    assert (recalled.maker, recalled.settings["seed"], recalled.settings["sampler"]) == ("A1111", 965400086, "dpmpp_2m")
    assert not recalled.settings.keys() & {"model", "lora", "vae"}
    assert recalled.left_out["model"] == "v1-5-pruned-emaonly"
    assert recalled.left_out["lora"] == ("snow:0.7",)
    assert recalled.left_out["Model hash"] == "6ce0161689"
    recalled = recall(write("a.webp", comfy_webp()))
    assert (recalled.maker, recalled.settings["width"]) == ("ComfyUI", 512)
    assert recalled.left_out["workflow"] == WORKFLOW


@pytest.mark.parametrize("name", ["a.json", "a.toml"])
def test_flat_files(write, name):
    """Flags' names are understood, whole numbers are numbers, lists are tuples."""
    values = {"prompt": "a cat", "steps": 20, "guidance-scale": 7, "lora": ["a:0.5"], "control_scale": [1, 0.5]}
    text = json.dumps(values) if name == "a.json" else "\n".join(f"{key} = {json.dumps(values[key])}" for key in values)
    recalled = recall(write(name, "\ufeff" + text))
    assert isinstance(recalled.settings["guidance_scale"], float)
    assert recalled == Recalled(
        {
            "prompt": "a cat",
            "num_inference_steps": 20,
            "guidance_scale": 7.0,
            "lora": ("a:0.5",),
            "control_scale": (1.0, 0.5),
        }
    )


def test_every_setting_can_be_in_a_file(write):
    """And comes back as it was."""
    path = write("a.json", json.dumps(asdict(OURS)))
    assert GenerateSettings(**recall(path).settings) == OURS
    assert set(KINDS) == {each.name for each in fields(GenerateSettings)}


@pytest.mark.parametrize(
    ("name", "text", "message", "hint"),
    [
        (
            "a.json",
            '{\n "prompt": "stpes:",\n "stpes": 20}',
            "a.json, line 3: unknown key 'stpes'",
            "did you mean steps?",
        ),
        ("a.json", '{\n "prompt": "a cat"\n "seed": 1}', "a.json, line 3: Expecting ',' delimiter", "JSON"),
        ("a.json", '{\n "seed": "1"}', "a.json, line 2: seed must be a whole number, got '1'", "without quotes"),
        ("a.json", '{"seed": 1.5}', "a.json, line 1: seed must be a whole number, got 1.5", "quotes"),
        ("a.json", '{"seed": true}', "a.json, line 1: seed must be a whole number, got True", "quotes"),
        ("a.json", '{"seed": null}', "a.json, line 1: seed must be a whole number, got None", "quotes"),
        ("a.json", '{"eta": NaN}', "a.json, line 1: eta must be a number, got 'NaN'", "quotes"),
        ("a.json", '{"eta": 1e999}', "a.json, line 1: eta must be a number, got inf", "quotes"),
        ("a.json", '{"sampler": 3}', "a.json, line 1: sampler must be a text or null, got 3", "quotes"),
        ("a.json", '{"lora": "a"}', "a.json, line 1: lora must be a list of texts, got 'a'", "[]"),
        ("a.json", '{"lora": [1]}', "a.json, line 1: lora must be a list of texts, got [1]", "[]"),
        ("a.json", '{"seed": 1, "seed": 2}', "a.json: 'seed' is given twice", "once"),
        ("a.json", '{"steps": 1,\n"num_inference_steps": 2}', "a.json, line 2: num_inference_steps is the same", "out"),
        ("a.json", "[1]", "a.json must hold one object of settings, not a list", "prompt"),
        ("a.json", "7", "a.json must hold one object of settings, not a whole number", "prompt"),
        ("a.json", "", "a.json, line 1: Expecting value", "JSON"),
        ("a.json", "[" * 100_000, "a.json: it is nested too deep", "JSON"),
        ("a.json", b'{\n"prompt": "\xff"}', "a.json, line 2: it is not UTF-8", "UTF-8"),
        ("a.json", " " * (LARGEST_FILE + 1), "a.json is too large for settings", "4 MiB"),
        ("a.json", '{"schema": "sdcli.image/2", "settings": {}}', "a.json is sdcli.image/2", "later version"),
        (
            "a.json",
            '{"schema": "sdcli.image/1", "settings": {\n"sed": 1}}',
            "a.json, line 2: unknown key 'sed'",
            "did you mean seed",
        ),
        ("a.toml", "prompt = 'a'\n\nstpes = 20", "a.toml, line 3: unknown key 'stpes'", "did you mean steps?"),
        (
            "a.toml",
            "prompt = 'a'\nseed = '1'",
            "a.toml, line 2: seed must be a whole number, got '1'",
            "without quotes",
        ),
        ("a.toml", "eta = nan", "a.toml, line 1: eta must be a number, got nan", "quotes"),
        ("a.toml", "prompt = a", "cannot read a.toml: Invalid value (at line 1", "TOML"),
        ("a.toml", "a = " + "[" * 100_000, "cannot read a.toml: it is nested too deep", "TOML"),
        ("a.toml", "[generate]\nseed = 1", "a.toml, line 1: unknown key 'generate'", "known"),
        ("a.txt", "a cat", "a.txt is no picture, no .json and no .toml", "settings"),
        ("a.png", b"words", "a.png is not a picture", "again"),
        ("a", png({}), "a names no settings that are understood", "sdcli info"),
        ("a.png", png({"workflow": json.dumps(WORKFLOW)}), "a.png names no settings", "sdcli info"),
        ("a.png", png({"sdcli": "{"}), "sdcli block is damaged", "again"),
        ("a.png", png({"sdcli": '{"schema": "sdcli.image/1"}'}), "a.png is damaged", "again"),
        ("a.png", png({"sdcli": json.dumps({"schema": NOISED_SCHEMA})}), f"a.png is {NOISED_SCHEMA}", "sdcli.image/1"),
        (
            "a.png",
            png({"sdcli": '{"schema": "sdcli.image/1", "settings": {"seed": "x"}}'}),
            "a.png: seed must",
            "quotes",
        ),
    ],
)
def test_mistakes(write, name, text, message, hint):
    """Each says where it is and what to do."""
    said, tried = mistake(write(name, text))
    assert message in said
    assert hint in tried


def test_files_that_are_not_there(tmp_path):
    """Of each kind."""
    for name in ("a.png", "a.json", "a.toml"):
        assert mistake(tmp_path / name)[0].startswith("there is no file")


@pytest.mark.parametrize("name", ["a.json", "a.toml", "a.png"])
@settings(max_examples=100, deadline=None)
@given(content=st.binary() | st.text().map(str.encode) | st.dictionaries(st.text(), st.integers()).map(json.dumps))
def test_any_content_is_recalled_or_refused(tmp_path_factory, name, content):
    """No traceback for any file."""
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        assert isinstance(recall(path), Recalled)
    except SdcliError as error:
        assert error.hint


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_of_a_setting_is_recalled_or_refused(tmp_path_factory, data):
    """What is recalled has the type of its field."""
    name = data.draw(st.sampled_from(sorted(KINDS)))
    value = data.draw(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.floats()))
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_text(json.dumps({name: value}))
    try:
        recalled = recall(path).settings
    except SdcliError as error:
        assert f"line 1: {name} must be" in str(error)
        return
    try:
        replace(OURS, **recalled)
    except SdcliError:
        pass  # out of range, which is told when all settings are known


def test_a_graph_is_not_recalled_as_settings(write):
    """A workflow saved as a file is no settings of ours."""
    assert "unknown key '3'" in mistake(write("a.json", json.dumps(COMFY)))[0]
