"""Models of the hub: fetched once, found in the cache after, and every refusal told; the hub is a server of our own."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from sdcli import hub
from sdcli.checkpoints import load_pipeline, sha256_of
from sdcli.checkpoints.folder import ON_CPU
from sdcli.cli import run
from sdcli.errors import SdcliError
from sdcli.hub import HubModel, cached, fetch, weights_to_fetch
from sdcli.images import load_image, read_text
from sdcli.registry import find_loadable, find_model, load_registry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as its library needs to fetch a repository."""

    folder: Path  # of the only model, owner/tiny
    asked: list[str]

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        refusals = {"gated": ("GatedRepo", 403), "missing": ("RepoNotFound", 401)}
        for name, (code, status) in refusals.items():
            if f"owner/{name}" in path:
                return self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": code}, body)
        if "/revision/" in path and not path.endswith(("/main", COMMIT)):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        if path.startswith("/api/models/owner/tiny"):
            siblings = [{"rfilename": name} for name in self.files()]
            about = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            tree = [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40}
                for name in self.files()
            ]
            return self.send(200, json.dumps(tree if "/tree/" in path else about).encode(), {}, body)
        name = path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1]
        if name not in self.files():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        content = (self.folder / name).read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def fake_hub(tiny_folder, tmp_path, monkeypatch):
    """A hub that has one model, and an empty cache."""
    handler = type("Handler", (FakeHub,), {"folder": tiny_folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    import huggingface_hub.hf_api

    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    yield handler
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/tiny", HubModel("owner/tiny")),
        ("owner/tiny@v1.0", HubModel("owner/tiny", "v1.0")),
        ("owner/tiny@refs/pr/3", HubModel("owner/tiny", "refs/pr/3")),
        ("tiny", None),
        ("a/b/c", None),
        ("../tiny", None),
        ("owner/tiny@", None),
    ],
)
def test_what_a_hub_id_looks_like(name, expected):
    assert HubModel.parse(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:owner/tiny:a.safetensors", HubModel("owner/tiny", file="a.safetensors")),
        ("hf:owner/tiny@v1.0:loras/a.safetensors", HubModel("owner/tiny", "v1.0", file="loras/a.safetensors")),
        ("hf:owner/tiny", None),
        ("hf:owner/tiny:../a.safetensors", None),
        ("owner/tiny:a.safetensors", None),
        ("a.safetensors", None),
    ],
)
def test_what_a_file_of_the_hub_looks_like(name, expected):
    assert HubModel.parse_file(name) == expected


def test_a_model_and_its_lora_are_fetched_together(fake_hub, tiny_folder, tmp_path):
    """Whichever of them is not there yet."""
    fake_hub.folder = Path(shutil.copytree(tiny_folder, tmp_path / "repository"))
    (fake_hub.folder / "fast.safetensors").write_bytes(b"beside the model, and no part of it")
    path = tmp_path / "models.toml"
    path.write_text('[models.fast]\nhub = "owner/tiny"\nlora = "hf:owner/tiny:fast.safetensors"\n')
    assert not load_registry(path).models["fast"].on_disk
    spec = find_loadable("fast", path)
    assert spec.on_disk and spec.lora == spec.path / "fast.safetensors"
    spec.lora.unlink()
    assert not load_registry(path).models["fast"].on_disk
    assert find_loadable("fast", path).on_disk


def test_a_model_is_fetched_once_and_found_after(fake_hub, tiny_folder, monkeypatch):
    """Without pickles; the second time nothing is asked, and offline works too."""
    assert not find_model("owner/tiny").on_disk
    spec = find_loadable("owner/tiny")
    assert spec.on_disk and spec.path.name == COMMIT
    assert (spec.defaults.width, spec.defaults.height) == (16, 16)
    fetched = {path.relative_to(spec.path).as_posix() for path in spec.path.rglob("*") if path.is_file()}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"} <= fetched
    fake_hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_loadable("owner/tiny").path == spec.path
    assert fake_hub.asked == []


def snapshot(folder: Path, model: Path, commit: str, *names: str) -> Path:
    """A revision of owner/tiny in the hub's cache, as its library lays it out."""
    repo = folder / "models--owner--tiny"
    for name in names:
        (repo / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / name).write_text(commit)
    shutil.copytree(model, repo / "snapshots" / commit)
    return repo / "snapshots" / commit


@pytest.mark.parametrize("pinned", ["v1.0", "refs/pr/3", COMMIT])
def test_a_revision_in_models_toml_is_the_one_that_is_run(pinned, tiny_folder, tmp_path, monkeypatch, capsys):
    """A tag, a branch or a commit, from the cache, offline; not what main is, and an error where it is not there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    old = snapshot(tmp_path / "hub", tiny_folder, COMMIT, "v1.0", "refs/pr/3")
    new = snapshot(tmp_path / "hub", tiny_folder, COMMIT[::-1], "main")
    weights = new / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(weights).items()}, weights)
    entries = {"pinned": pinned, "newest": "main", "gone": "v9"}
    lines = [f'[models.{name}]\nhub = "owner/tiny"\nrevision = "{revision}"\n' for name, revision in entries.items()]
    (tmp_path / "models.toml").write_text("".join(lines))
    pictures = {}
    for name in ("pinned", "newest", f"owner/tiny@{pinned}", str(old), str(new)):
        command = ["generate", "a cat", "-m", name, "-s", "1", "--steps", "2", "--device", "cpu", "--progress", "none"]
        assert run([*command, "--offline", "--if-exists", "overwrite", "-o", "it.png"]) == 0, name
        pictures[name] = numpy.asarray(load_image(Path("it.png"))).tolist()
    assert pictures["pinned"] == pictures[f"owner/tiny@{pinned}"] == pictures[str(old)]
    assert pictures["newest"] == pictures[str(new)] != pictures["pinned"]
    about = json.loads(read_text(Path("it.png"))[0]["sdcli"])
    assert sha256_of(weights) in about["weights"].values()
    capsys.readouterr()
    assert run(["generate", "a cat", "-m", "gone", "--offline", "-o", "gone.png"]) == 1
    assert "error: owner/tiny@v9 is not in the hub's cache" in capsys.readouterr().err


def test_offline_and_not_there_is_told(fake_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SdcliError, match="owner/tiny is not in the hub's cache"):
        find_loadable("owner/tiny")
    assert fake_hub.asked == []


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("owner/gated", "owner/gated on the hub is gated", "hf auth login"),
        ("owner/missing", "the hub has no model owner/missing", "hf auth login"),
        ("owner/tiny@v9", "owner/tiny on the hub has no revision v9", "without"),
        ("owner--of/tiny", "owner--of/tiny is no name of a model on the hub", "OWNER/NAME"),
        ("-owner/tiny", "-owner/tiny is no name of a model on the hub", "OWNER/NAME"),
        ("owner/tiny.git", "owner/tiny.git is no name of a model on the hub", "OWNER/NAME"),
    ],
)
def test_refusals_of_the_hub_are_told(fake_hub, name, message, hint):
    with pytest.raises(SdcliError, match=message) as caught:
        find_loadable(name)
    assert hint in caught.value.hint


@pytest.mark.slow  # the hub's library tries for 20 seconds
def test_a_hub_that_cannot_be_reached_is_told(tmp_path, monkeypatch):
    import huggingface_hub.hf_api

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SdcliError, match="cannot fetch owner/tiny from the hub"):
        fetch(HubModel("owner/tiny"))


def test_of_each_component_one_variant_is_fetched_and_no_pickle():
    files = [
        "model_index.json",
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.fp16-00001-of-00001.safetensors",
    ]
    plain = [files[2], files[5], files[7], files[8]]
    assert sorted(weights_to_fetch(files, "")) == sorted(plain)
    assert sorted(weights_to_fetch(files, "fp16")) == sorted([files[3], files[5], files[9]])


def test_an_entry_may_name_a_model_or_a_file_of_the_hub(fake_hub, tmp_path):
    """With defaults of its own, whether it has been fetched or not."""
    path = tmp_path / "models.toml"
    text = '[models.tiny]\nhub = "owner/tiny"\nsteps = 4\ntimestep_spacing = "trailing"\nguidance_scale = 1.0\n'
    text += '[models.one]\nhub = "owner/tiny"\nfile = "model_index.json"\n'
    path.write_text(text)
    spec = load_registry(path).models["tiny"]
    assert not spec.on_disk and spec.defaults.num_inference_steps == 4
    spec = find_loadable("tiny", path)
    assert spec.on_disk and spec.defaults.width == 16
    assert (spec.defaults.timestep_spacing, spec.defaults.guidance_scale) == ("trailing", 1.0)
    assert cached(HubModel("owner/tiny", file="model_index.json")).name == "model_index.json"
    with pytest.raises(SdcliError, match="owner/tiny on the hub has no other.safetensors"):
        fetch(HubModel("owner/tiny", file="other.safetensors"))


def test_a_model_in_pickles_is_fetched_where_that_is_allowed(fake_hub, tiny_folder, tmp_path):
    """A component that has nothing else; what has both comes as safetensors."""
    fake_hub.folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, fake_hub.folder)
    unet, vae = (fake_hub.folder / name / "diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    vae.with_suffix(".bin").write_bytes(b"not to be fetched")
    (unet.parent / "openvino_model.bin").write_bytes(b"neither")
    with pytest.raises(SdcliError, match="has only a pickle of unet/diffusion_pytorch_model.bin") as caught:
        find_loadable("owner/tiny")
    assert "--allow-pickle" in caught.value.hint
    spec = find_loadable("owner/tiny", allow_pickle=True)
    assert [path.name for path in spec.path.rglob("*.bin")] == ["diffusion_pytorch_model.bin"]
    assert load_pipeline(spec, ON_CPU).unet.config.in_channels == 4
    with pytest.raises(SdcliError, match="is a pickle"):
        load_pipeline(find_loadable("owner/tiny"), ON_CPU)


def test_a_download_that_was_cut_off_does_not_count(fake_hub):
    fetch(HubModel("owner/tiny"))
    (hub.snapshot_folder(HubModel("owner/tiny")) / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert cached(HubModel("owner/tiny")) is None
