"""Whether the files of a model are whole."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sdcli.checkpoints.weights import open_weights, sha256_of, weight_files
from sdcli.errors import SdcliError

SHA256 = re.compile(r"[0-9a-f]{64}")  # how the hub's cache calls the content of a large file


def verify(path: Path, *others: Path) -> Iterator[dict[str, Any]]:
    """Read every weight file to its end.

    Args:
        path: of a model folder or a single file.
        others: files that belong to it and lie elsewhere.

    Yields:
        For each: file, bytes, sha256, dtypes, tensors, and the problem, which is empty where there is none.
    """
    for file in [*([path] if path.is_file() else weight_files(path)), *others]:
        name = file.relative_to(path).as_posix() if file.is_relative_to(path) and file != path else file.name
        digest = sha256_of(file)
        found = {"file": name, "sha256": digest, "bytes": file.stat().st_size}
        yield {**found, **content_of(file), "problem": problem_of(file, digest)}


def content_of(file: Path) -> dict[str, Any]:
    """How many tensors a file has, and of which dtypes."""
    try:
        with open_weights(file) as opened:
            dtypes = sorted({opened.get_slice(key).get_dtype() for key in opened.keys()})
            return {"tensors": len(list(opened.keys())), "dtypes": dtypes}
    except SdcliError:
        return {"tensors": 0, "dtypes": []}


def problem_of(file: Path, digest: str) -> str:
    """What is wrong with a file: damaged, not what the hub gave, or with weights that are no numbers."""
    stored = file.resolve().name
    if SHA256.fullmatch(stored) and stored != digest:
        return "is not what the hub gave"
    try:
        with open_weights(file) as opened:
            for key in opened.keys():
                tensor = opened.get_tensor(key)
                if tensor.is_floating_point() and not tensor.float().isfinite().all():
                    return f"{key} has values that are no numbers"
    except SdcliError as error:
        return str(error).removeprefix(f"{file} ")
    except SafetensorError as error:
        return f"is damaged: {error}"
    return ""
