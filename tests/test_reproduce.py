"""Pictures made again: to the bit, from where their files are now, with what is not as it was said aloud."""

import gc
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import seeded
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from foreign_pictures import A1111, png
from lora_files import as_kohya, matrices
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli import load_pipeline
from sdcli.checkpoints import fingerprints, sha256_of
from sdcli.cli import run
from sdcli.images import encode_image, load_image, read_text

QUICK = ("--steps", "2", "-s", "1", "-g", "3", "--device", "cpu", "--progress", "none")
UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Error and hint, without what was warned of before."""
        assert "Traceback" not in self.err
        return "\n".join(line for line in self.err.splitlines() if line.startswith(("error: ", "hint:  ")))

    @property
    def warnings(self) -> list[str]:
        return [line[9:] for line in self.err.splitlines() if line.startswith("warning: ")]


@pytest.fixture(scope="module", autouse=True)
def libraries_stay():
    """The garbage collector, which runs whenever a model is loaded, need not walk through torch each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def command(capsys, tmp_path, monkeypatch) -> Callable[..., Ended]:
    """Run a command in an empty folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def ended(*arguments: object) -> Ended:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return ended


@pytest.fixture
def reproduce(command) -> Callable[..., Ended]:
    """Run `sdcli reproduce`, quietly."""
    return lambda *arguments: command("reproduce", *arguments, "--progress", "none")


@pytest.fixture
def model(command, tiny_folder) -> Path:
    """The tiny model, which may be moved and changed."""
    shutil.copytree(tiny_folder, "model")
    return Path("model")


@pytest.fixture
def make(command) -> Callable[..., Path]:
    """A picture of the model that is called `model`."""

    def made(output: str, *flags: object, prompt: str = "a red cat") -> Path:
        assert command("generate", prompt, "-m", "model", *QUICK, *flags, "-o", output).code == 0
        return Path(output)

    return made


def photo(path: str, colour: str = "teal") -> str:
    """A picture of 16x16 pixels."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    image.paste(colour, (4, 4, 12, 12))
    image.save(path)
    return path


def rewrite(path: Path, change: Callable[[dict], None]) -> Path:
    """Change what is written in a PNG."""
    texts = read_text(path)[0]
    content = json.loads(texts["sdcli"])
    change(content)
    path.write_bytes(encode_image(load_image(path), "png", {**texts, "sdcli": json.dumps(content)}))
    return path


def another_unet(folder: Path) -> None:
    """Give a model other weights."""
    file = folder / UNET
    save_file({name: tensor * 1.05 for name, tensor in load_file(file).items()}, file)


# To the bit


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_is_made_again_to_the_bit(model, make, reproduce, suffix):
    """And nothing is written by --check, nor said of an environment that is the same."""
    picture = make(f"a.{suffix}")
    before = sorted(Path().rglob("*"))
    ended = reproduce(picture, "--check")
    assert (ended.code, ended.out, ended.err) == (0, f"a.{suffix}: bitwise equal\n", "")
    assert sorted(Path().rglob("*")) == before
    ended = reproduce(picture)
    assert (ended.code, ended.out, ended.err) == (0, f"outputs/a-again.{suffix}\n", "")
    assert Path(f"outputs/a-again.{suffix}").read_bytes() == picture.read_bytes()
    assert "outputs/a-again" in reproduce(picture).error  # is there already


@pytest.mark.parametrize(
    "flags",
    [
        ("--sampler", "dpmpp_2m_sde", "--schedule", "karras"),
        ("--sampler", "ddim", "--eta", "0.5", "--timestep-spacing", "trailing", "--clip-skip", "1"),
        ("--init-image", "photo.png", "--strength", "0.7", "--mask", "mask.png"),
        ("--sampler", "diffusers.DPMSolverSinglestepScheduler"),
        ("--tile-vae",),
        ("-n", "2"),
    ],
)
def test_whatever_it_was_made_with(model, make, reproduce, flags):
    """Samplers, pictures to begin from, tiles, and one of several."""
    photo("photo.png")
    Image.new("L", (16, 16), 255).save("mask.png")
    make("out/", *flags)
    ended = reproduce(*sorted(Path("out").iterdir()), "--check", "--json")
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 0 and ended.err == ""
    assert [each["equal"] for each in found] == [True] * len(found)
    assert [each["environment"] for each in found] == [{}] * len(found)


def test_a_lora_that_fitted_in_part_does_so_again(model, make, reproduce):
    """With the same warning; a picture says so of itself."""
    pipeline = load_pipeline("model")
    tensors = as_kohya(matrices(pipeline), pipeline)
    save_file({**tensors, "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2)}, "mixed.safetensors")
    picture = make("a.png", "--lora", "mixed.safetensors", "--lenient")
    assert json.loads(read_text(picture)[0]["sdcli"])["computed"] == {"lenient": True}
    ended = reproduce(picture, "--check")
    assert (ended.code, ended.out) == (0, "a.png: bitwise equal\n")
    assert len(ended.warnings) == 1 and "1 of" in ended.warnings[0] and "were left out" in ended.warnings[0]


def test_several_pictures_get_several_names(model, make, reproduce):
    """In a folder, by a template; one name for all is refused."""
    pictures = [make("a.png"), make("b.c.jpg")]
    assert reproduce(*pictures, "-o", "new/").out == "new/a-again.png\nnew/b.c-again.jpg\n"
    assert reproduce(*pictures, "-o", "{index}-{name}-{seed}.webp").out == "0-a-1.webp\n1-b-c-1.webp\n"
    assert "2 files would all be same.png" in reproduce(*pictures, "-o", "same.png").error
    assert "for one picture" in reproduce(*pictures, "-o", "-").error
    assert reproduce(*pictures, "-o", "new/", "--if-exists", "skip").out == ""
    ended = reproduce(pictures[0], "-o", "b.png", "--check", "--json")
    about = json.loads(ended.out)
    assert (about["image"], about["path"], about["equal"]) == ("a.png", "b.png", True)
    assert Path("b.png").read_bytes() == pictures[0].read_bytes()


def test_a_picture_goes_into_a_pipe(model, make, reproduce, monkeypatch):
    """As a PNG, and nothing beside it."""
    piped = []
    monkeypatch.setattr("sdcli.cli.options.print_bytes", piped.append)
    picture = make("a.png")
    assert reproduce(picture, "-o", "-", "--json").out == "" and piped == [picture.read_bytes()]


def test_progress_tells_of_every_picture(model, make, command):
    """Under the name of its file."""
    ended = command("reproduce", make("a.png"), "--progress", "json", "--check")
    events = [json.loads(line) for line in ended.err.splitlines()]
    assert [each["path"] for each in events if each["event"] == "image"] == ["a.png"]
    assert events[-1]["event"] == "done" and events[-1]["images"] == 1


# What has moved


def into_models_toml(model: Path, monkeypatch) -> tuple:
    Path("../elsewhere").mkdir()
    model.rename("../elsewhere/other")
    Path("models.toml").write_text('[models.mine]\npath = "../elsewhere/other"\n')
    return ()


def beside_the_picture(model: Path, monkeypatch) -> tuple:
    model.rename("pictures/other")
    return ()


def into_the_working_folder(model: Path, monkeypatch) -> tuple:
    model.rename("other")
    return ()


def into_a_training_run(model: Path, monkeypatch) -> tuple:
    Path("run").mkdir()
    model.rename("run/model")
    return ()


def into_a_search(model: Path, monkeypatch) -> tuple:
    Path("../deep/down").mkdir(parents=True)
    model.rename("../deep/down/other")
    return ("--search", "../deep")


def used_since(model: Path, monkeypatch) -> tuple:
    """Somewhere from where a picture was made."""
    Path("../far/away").mkdir(parents=True)
    model.rename("../far/away/other")
    monkeypatch.setattr(fingerprints, "REMEMBERED_BYTES", 0)
    assert run(["generate", "a dog", "-m", "../far/away/other", *QUICK, "-o", "dog.png"]) == 0
    return ()


PLACES = (
    into_models_toml,
    beside_the_picture,
    into_the_working_folder,
    into_a_training_run,
    into_a_search,
    used_since,
)


@pytest.mark.parametrize("move", PLACES)
def test_a_model_that_has_moved_is_found(model, make, reproduce, monkeypatch, move):
    """By its weights; a model of the old name with other weights is passed over."""
    picture = make("pictures/a.png")
    flags = move(model, monkeypatch)
    moved = next(path.parent for path in Path("..").rglob("model_index.json"))
    another_unet(Path(shutil.copytree(moved, "model")))
    ended = reproduce(picture, "--check", *flags)
    assert (ended.code, ended.out) == (0, "pictures/a.png: bitwise equal\n"), ended.err
    (warning,) = ended.warnings
    assert warning.startswith("pictures/a.png: model was found as ")
    assert reproduce(picture, *flags, "-o", "b.png").code == 0
    settings = json.loads(read_text(Path("b.png"))[0]["sdcli"])["settings"]
    assert settings["model"] in ("mine", str(Path(settings["model"]).resolve()))  # where it is now


def test_a_model_is_taken_for_another_only_if_all_of_it_is_the_same(model, make, reproduce):
    """Neither one that lacks weights, nor the same one with something put onto it."""
    picture = make("pictures/a.png")
    model.rename("z")
    Path("a").mkdir()
    shutil.copy("z/model_index.json", "a")
    Path("b").mkdir()
    Path("b/adapter.json").write_text(json.dumps({"model": "z"}))
    save_file({"lora": torch.ones(1)}, "b/it.safetensors")
    ended = reproduce(picture, "--check", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["moved"] == {"model": str(Path("z").resolve())}


def test_a_single_file_that_has_moved_is_found(make, command, reproduce, tmp_path):
    """Whatever it is called now."""
    from families import write_single_file

    single = write_single_file("sd1", tmp_path / "work" / "single")
    flags = ("-m", single.relative_to(tmp_path / "work"), *QUICK, "-W", "32", "-H", "32")
    assert command("generate", "a cat", *flags, "-o", "a.png").code == 0
    Path("../store").mkdir()
    single.rename("../store/other.safetensors")
    assert "is not here" in reproduce("a.png", "--check").error
    assert reproduce("a.png", "--check", "--search", "../store").out == "a.png: bitwise equal\n"


@pytest.fixture
def rich(model, make, tiny_pipeline) -> Path:
    """A picture that is made from everything that settings name, in folders `add` and `seen`."""
    Path("add").mkdir()
    save_file(as_kohya(matrices(tiny_pipeline), tiny_pipeline), "add/it.safetensors")
    save_file({"<thing>": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}, "add/word.safetensors")
    seeded(AutoencoderKL.from_pretrained(model / "vae"), 8).save_pretrained("add/vae")
    network = ControlNetModel.from_unet(
        UNet2DConditionModel.from_pretrained(model / "unet"), conditioning_embedding_out_channels=(16, 32)
    )
    network.config["conditioning_embedding_out_channels"] = (16, 32)
    network.save_pretrained("add/control")
    flags = ("--lora", "add/it.safetensors:0.5", "--embedding", "add/word.safetensors", "--vae", "add/vae")
    photos = ("--init-image", photo("seen/a.png"), "--mask", photo("seen/b.png", "white"))
    return make("rich.png", *flags, *photos, prompt="a <thing>")


FILES = ("add/it.safetensors", "add/word.safetensors", "add/vae", "seen/a.png", "seen/b.png")


def test_every_file_that_settings_name_is_written_down(rich):
    """With its SHA-256, under the name that settings give it."""
    about = json.loads(read_text(rich)[0]["sdcli"])
    paths = {name: Path(name) for name in FILES}
    paths["add/vae"] /= "diffusion_pytorch_model.safetensors"
    assert about["inputs"] == {name: sha256_of(path) for name, path in paths.items()}


def test_files_that_have_moved_are_found(rich, reproduce):
    """LoRA, word, VAE, pictures; under other names too, by a search or beside the picture."""
    Path("../store/more").mkdir(parents=True)
    Path("add/it.safetensors").rename("../store/more/renamed.safetensors")
    Path("add/word.safetensors").rename("../store/word.safetensors")
    Path("add/vae").rename("better-vae")
    Path("seen/a.png").rename("a-photo.png")
    Path("seen/b.png").rename("../store/more/b.png")
    ended = reproduce(rich, "--check", "--search", "../store", "--json")
    assert ended.code == 0, ended.err
    about = json.loads(ended.out)
    assert about["equal"] and about["moved"].keys() == set(FILES)
    assert about["moved"]["add/vae"] == str(Path("better-vae").resolve())
    assert reproduce(rich, "--search", "../store", "-o", "new.png").code == 0
    settings = json.loads(read_text(Path("new.png"))[0]["sdcli"])["settings"]
    assert settings["lora"] == [f"{Path('../store/more/renamed.safetensors').resolve()}:0.5"]
    assert settings["init_image"] == str(Path("a-photo.png").resolve())


@pytest.mark.parametrize("name", ["add/it.safetensors", "seen/a.png"])
def test_a_file_of_that_name_and_other_content_is_not_taken(rich, reproduce, name):
    """But by --check, which says so."""
    old = Path(name)
    digest = sha256_of(old)
    if old.suffix == ".png":
        photo(name, "red")
    else:
        save_file({key: tensor * 2 for key, tensor in load_file(old).items()}, old)
    ended = reproduce(rich)
    assert ended.code == 1 and ended.out == ""
    assert f"{name} has changed" in ended.error and digest[:12] in ended.error and "--check" in ended.error
    ended = reproduce(rich, "--check")
    assert ended.code == 6 and ended.out.startswith("rich.png: differs, PSNR ")
    assert ended.warnings == [f"rich.png: {name} was {digest[:12]}, here it is {sha256_of(old)[:12]}"]


def test_a_vae_is_found_in_a_model(model, make, reproduce):
    """Of models.toml, under whatever name."""
    Path("add").mkdir()
    AutoencoderKL.from_pretrained(model / "vae").save_pretrained("add/vae")
    shutil.copytree(model, "../store/other")
    shutil.copytree("add/vae", "../store/other/vae", dirs_exist_ok=True)
    another_unet(Path("../store/other"))
    picture = make("a.png", "--vae", "add/vae")
    shutil.rmtree("add")
    Path("models.toml").write_text('[models.other]\npath = "../store/other"\n')
    ended = reproduce(picture, "--check", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["moved"] == {"add/vae": str(Path("../store/other/vae").resolve())}


def test_a_controlnet_that_has_moved_is_found(rich, make, reproduce):
    """It is a folder."""
    picture = make("c.png", "--controlnet", "add/control", "--control-image", "seen/a.png")
    Path("add/control").rename("moved")
    ended = reproduce(picture, "--check", "--json")
    assert ended.code == 0 and json.loads(ended.out)["moved"] == {"add/control": str(Path("moved").resolve())}


# What is not there


@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_a_model_that_is_gone_is_one_error(model, make, reproduce, flags):
    """It says what is missing, where that was searched, and how to search elsewhere."""
    picture, digest = make("a.png"), sha256_of(model / UNET)
    shutil.rmtree(model)
    ended = reproduce(picture, *flags)
    assert (ended.code, ended.out) == (1, "")
    assert f"model is not here: its {UNET} is to have SHA-256 {digest[:12]}" in ended.error
    assert "--search FOLDER" in ended.error and "models.toml" in ended.error
    assert "--search nowhere is no folder" in reproduce(picture, "--search", "nowhere").error


def test_a_picture_to_begin_from_that_is_gone_is_one_error(rich, reproduce):
    """With its SHA-256."""
    digest = sha256_of(Path("seen/a.png"))
    Path("seen/a.png").unlink()
    ended = reproduce(rich, "--check")
    assert ended.code == 1 and "seen/a.png is not here" in ended.error and digest[:12] in ended.error


def test_nothing_is_fetched_because_a_picture_names_it(model, make, reproduce, monkeypatch):
    """A stranger's picture decides no download."""
    picture = rewrite(make("a.png"), lambda content: content["settings"].update(model="someone/something"))
    shutil.rmtree(model)
    fetched = []
    monkeypatch.setattr("sdcli.registry.fetch", fetched.append)
    assert "someone/something is not here" in reproduce(picture).error
    assert fetched == []


def test_no_module_is_imported_because_a_picture_names_it(model, make, reproduce, tmp_path, monkeypatch):
    """Schedulers of diffusers are known, others are not."""
    (tmp_path / "work" / "strange.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(str(tmp_path / "work"))
    picture = rewrite(make("a.png"), lambda content: content["settings"].update(sampler="strange.Scheduler"))
    assert "names a scheduler of another package, strange.Scheduler" in reproduce(picture).error
    assert "strange" not in sys.modules


# What differs


def test_other_weights_make_another_picture(model, make, reproduce):
    """Refused, but for --check, which says how far it comes and which file it is."""
    picture, digest = make("a.png"), sha256_of(model / UNET)
    another_unet(model)
    ended = reproduce(picture)
    assert ended.code == 1 and f"has changed: its {UNET} is to have SHA-256 {digest[:12]}" in ended.error
    ended = reproduce(picture, "--check", "--json")
    about = json.loads(ended.out)
    assert ended.code == 6 and not about["equal"] and 0 < about["psnr_db"] < 60
    assert about["environment"] == {UNET: {"recorded": digest, "here": sha256_of(model / UNET)}}
    assert "1 of 1 pictures differ" in ended.error and "the warnings say" in ended.error


def test_a_pixel_that_was_changed_is_seen(model, make, reproduce):
    """With its size, in figures; other pictures are compared all the same."""
    picture, other = make("a.png"), make("b.png", "-s", "2")
    image = load_image(picture)
    red, green, blue = image.getpixel((3, 5))
    image.putpixel((3, 5), (red + 3 if red < 128 else red - 3, green, blue))
    picture.write_bytes(encode_image(image, "png", read_text(picture)[0]))
    ended = reproduce(picture, other, "--check")
    psnr = 67.4411  # 10 log10(255² / (3² / 768))
    assert ended.code == 6
    assert ended.out.splitlines() == [
        f"a.png: differs, PSNR {psnr:.1f} dB, largest difference 3 of 255 in 0.13 % of the values",
        "b.png: bitwise equal",
    ]
    assert "1 of 2 pictures differ" in ended.error
    about = [json.loads(line) for line in reproduce(picture, other, "--check", "--json").out.splitlines()]
    assert about[0]["psnr_db"] == pytest.approx(psnr, abs=1e-3) and about[1]["psnr_db"] is None
    assert about[0]["differing_share"] == 1 / 768


def test_a_picture_that_was_cut_differs(model, make, reproduce):
    """By its size."""
    picture = make("a.png")
    picture.write_bytes(encode_image(load_image(picture).crop((0, 0, 8, 16)), "png", read_text(picture)[0]))
    ended = reproduce(picture, "--check")
    assert (ended.code, ended.out) == (6, "a.png: differs, 8x16 where 16x16 is made\n")


def test_what_differs_in_the_environment_is_said(model, make, reproduce):
    """Versions, device, precision and how it was computed; the picture is made with what there is."""

    def elsewhere(content: dict) -> None:
        content["versions"] |= {"torch": "1.0", "xformers": "0.1"}
        content |= {"device": "cuda:3", "precision": "fp16", "computed": {"attention": "flash"}}

    picture = rewrite(make("a.png"), elsewhere)
    ended = reproduce(picture, "--check")
    assert (ended.code, ended.out) == (0, "a.png: bitwise equal\n")
    said = "\n".join(ended.warnings)
    assert f"a.png: torch was 1.0, here it is {torch.__version__}" in said
    assert "device was cuda:3, here it is cpu" in said and "precision was fp16, here it is fp32" in said
    assert "xformers was 0.1, here it is not there" in said and "attention was flash" in said
    about = json.loads(reproduce(picture, "--json").out)
    assert about["path"] == "outputs/a-again.png"
    assert about["environment"]["device"] == {"recorded": "cuda:3", "here": "cpu"}
    assert about["environment"].keys() == {"torch", "xformers", "device", "precision", "attention"}


def test_a_device_that_is_asked_for_has_to_be_there(model, make, reproduce):
    """Only that of the picture gives way."""
    picture = make("a.png")
    assert "--device cuda:77" in reproduce(picture, "--device", "cuda:77").error
    ended = reproduce(picture, "--precision", "bf16", "--check")
    assert "a.png: precision was fp32, here it is bf16" in ended.warnings and ended.code == 6


# Pictures of others, and damaged ones


def test_pictures_of_others_are_refused(command, reproduce):
    """And the way to what they say is told."""
    Path("a.png").write_bytes(png({"parameters": A1111}, "iTXt"))
    ended = reproduce("a.png")
    assert ended.code == 1 and "a.png was made by A1111" in ended.error and "generate --from a.png" in ended.error
    assert "does not say how it was made" in reproduce(photo("b.png")).error
    assert command("add-noise", "b.png", "-t", "500", "--seed", "1", "-o", "noised.png").code == 0
    assert "no picture can be made from" in reproduce("noised.png").error
    assert "there is no file c.png" in reproduce("c.png", "--check").error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("weights"), "has no weights"),
        (lambda content: content.update(weights=["a"]), "weights in its sdcli block"),
        (lambda content: content.update(inputs={"a": 1}), "inputs in its sdcli block"),
        (lambda content: content.update(device=None), "device in its sdcli block"),
        (lambda content: content["settings"].pop("prompt"), "its settings lack prompt"),
        (lambda content: content["settings"].update(width="wide"), "width must be a whole number"),
        (lambda content: content.update(device="; rm", settings={**content["settings"], "steps": 0}), "steps"),
    ],
)
def test_a_damaged_picture_is_one_error(model, make, reproduce, change, message):
    """With what is wrong."""
    ended = reproduce(rewrite(make("a.png"), change))
    assert ended.code == 1 and message in ended.error


def test_a_picture_from_before_inputs_were_written_down(rich, reproduce):
    """What it names is taken as it is, and is not mistaken for a part of the model."""
    picture = rewrite(rich, lambda content: content.pop("inputs"))
    ended = reproduce(picture, "--check")
    assert (ended.code, ended.err) == (0, "")
    Path("add/it.safetensors").rename("it.safetensors")
    assert "the picture does not say what its lora was" in reproduce(picture).error
