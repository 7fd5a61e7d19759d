"""Imports point downwards, libraries stay at home, nothing prints, files stay short.

The sources are read, not imported, so an import inside a function or under TYPE_CHECKING counts like any other.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sdcli"

# A module may import modules of lower rows only. A package counts as one module; inside it, imports are free.
LEVELS = [
    {"errors", "components"},
    {"pickles"},
    {"contest", "prompt_syntax", "files", "headers", "hub", "wildcards", "exif", "untrusted_json"},
    {"settings", "families"},
    {"models_file", "model_config", "run_settings", "setting_types"},
    {"device", "memory", "costs", "registry", "images", "prompts"},
    {"pipeline", "metadata", "names", "results", "sheets"},
    {"output"},
    {"foreign", "preview", "jobs", "inputs", "grid", "foreign_metadata", "comparer"},
    {"drawing", "recall", "comparison", "sweep"},
    {"record"},
    {"checkpoints", "adapters"},
    {"clip_models"},
    {"keys"},
    {"places"},
    {"locate"},
    {"data", "plots", "workbench", "latents"},
    {"batch", "training", "evaluation"},
    {"reproduction"},
    {"cli"},
]
COMPONENT_LEVELS = [
    {"layers"},
    {"schedule", "divergence", "transformer", "guidance", "unet_config", "tiling", "discriminator", "canvas"},
    {"samplers", "attention", "towers"},
    {"unet_blocks"},
    {"scheduler", "vae", "unet", "clip"},
    {"conditioning", "foreign_scheduler", "clip_guidance"},
    {"control"},
]
UPWARDS = {
    ("pipeline", "checkpoints"): "save_pretrained is diffusers' name for what checkpoints does; imported when called",
}
HOMES = {
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "PIL": {"images", "sheets", "plots"},
    "safetensors": {"checkpoints"},
    "tomllib": {"registry", "models_file", "recall"},
    "huggingface_hub": {"hub"},
    "datasets": {"data"},
    "matplotlib": {"plots"},
}
# These two are the door and the label of the house: they may name any room.
EXEMPT = {ROOT / "__init__.py", ROOT / "__main__.py"}
MAX_LINES = 300
LONG_FILES = {  # path below sdcli → why it is one idea all the same
    "pipeline.py": "one class, from the prompt to the picture in the order of execution",
    "training/loop.py": "one class, a run from its first update to its last",
    "components/scheduler.py": "one class, diffusers' whole scheduler contract",
}

SOURCES = sorted(set(ROOT.rglob("*.py")) - EXEMPT)


def imported_names(source: str) -> set[str]:
    """Dotted names of everything imported; submodules of sdcli and sdcli.components by their full name."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom) and node.module in ("sdcli", "sdcli.components"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def level_of(module: str, levels: list[set[str]]) -> int:
    for level, modules in enumerate(levels):
        if module in modules:
            return level
    raise AssertionError(f"{module} has no place in the import table of {Path(__file__).name}: give it one")


def broken_rules(parts: tuple[str, ...], source: str) -> list[str]:
    """What a file at sdcli/<parts> does that the import table forbids."""
    module, *rest = (part.removesuffix(".py") for part in parts)
    broken = []
    for name in sorted(imported_names(source)):
        library, _, path = name.partition(".")
        target, _, component = path.partition(".")
        if not library:
            broken.append(f"{'/'.join(parts)}: relative import of {name}; write 'from sdcli.x import y'")
        elif library != "sdcli":
            if module not in HOMES.get(library, {module}):
                broken.append(f"{'/'.join(parts)} must not import {library}, only {sorted(HOMES[library])} may")
        elif target.startswith("__"):
            continue  # sdcli.__version__
        elif target == module == "components" and rest != ["__init__"]:
            own, other = rest[0], component.partition(".")[0]
            if own != other and level_of(other, COMPONENT_LEVELS) >= level_of(own, COMPONENT_LEVELS):
                broken.append(f"components/{own} must not import components/{other}")
        elif target != module and (module, target) not in UPWARDS:
            if level_of(target, LEVELS) >= level_of(module, LEVELS):
                broken.append(f"{'/'.join(parts)} must not import sdcli.{target}")
    return broken


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards_and_libraries_stay_at_home(path):
    """Each file imports only from lower rows of the table, absolutely, and only the libraries it is the home of."""
    parts = path.relative_to(ROOT).parts
    level_of(parts[0].removesuffix(".py"), LEVELS)
    if parts[0] == "components" and parts[-1] != "__init__.py":
        level_of(parts[1].removesuffix(".py"), COMPONENT_LEVELS)
    assert broken_rules(parts, path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("settings.py", "from sdcli.pipeline import SdPipeline"),
        ("pipeline.py", "def later():\n    from sdcli import batch"),
        ("batch/run.py", "if TYPE_CHECKING:\n    from sdcli.cli.options import Seed"),
        ("batch/run.py", "import typer"),
        ("training/loop.py", "from sdcli.evaluation import retrieval"),
        ("training/data/folder.py", "import PIL.Image"),
        ("checkpoints/folder.py", "import tomllib"),
        ("cli/generate.py", "from . import options"),
        ("components/clip.py", "from sdcli.registry import find_model"),
        ("components/layers.py", "from sdcli.components.unet import UNet"),
        ("components/vae.py", "from sdcli.components import clip"),
        ("components/samplers/dpm.py", "from sdcli.components.scheduler import Scheduler"),
    ],
)
def test_the_table_is_enforced(path, source):
    """Each kind of forbidden import is seen where it is written."""
    assert len(broken_rules(tuple(path.split("/")), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/generate.py", "import typer\nfrom sdcli import __version__, batch\nfrom sdcli.cli import options"),
        ("checkpoints/folder.py", "import safetensors.torch\nfrom sdcli.checkpoints.weights import read_json"),
        ("components/clip.py", "import torch\nfrom sdcli.components.towers import TextEncoder"),
        ("components/samplers/dpm.py", "from sdcli.components.samplers.table import SAMPLERS"),
        ("components/__init__.py", "from sdcli.components.clip import CLIP"),
    ],
)
def test_the_table_allows_what_it_should(path, source):
    """Downward imports, imports inside a package, and libraries at home are fine."""
    assert broken_rules(tuple(path.split("/")), source) == []


def test_exceptions_to_the_table_are_in_use():
    """An upward import that is gone leaves the list of exceptions too."""
    for module, target in UPWARDS:
        files = [ROOT / f"{module}.py", *(ROOT / module).rglob("*.py")]
        names = set().union(*(imported_names(path.read_text()) for path in files if path.exists()))
        assert any(f"{name}.".startswith(f"sdcli.{target}.") for name in names), (module, target)


def test_nothing_prints():
    """Text for the terminal goes through typer in cli/, everything else through logging."""
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*SOURCES, *EXEMPT]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_files_stay_short():
    """A file beyond 300 lines holds more than one idea, or says here why not."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES and path not in LONG_FILES} == {}
