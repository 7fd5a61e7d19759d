"""Files and folders that appear whole or not at all: written beside their place, flushed to the disk, renamed."""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sdcli.errors import SdcliError

BESIDE = r"^\.(.+)\.[0-9a-f]{8}$"  # what a file or folder is called until it is finished


def beside_of(path: Path) -> Path:
    """A name in the same folder that nothing has yet; hidden, and matched by `BESIDE`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there at the end takes the place of `path`.

    Raises:
        SdcliError: it cannot be written (no permission, a full disk); what was there before is still there.
    """
    beside = beside_of(path)
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path, mark: str) -> Iterator[Path]:
    """A folder beside `folder` to write to, which takes its place at the end.

    A folder that was there is replaced, between two renames. It is not lost when something fails.

    Args:
        folder: where it is to appear.
        mark: a file that a folder which may be replaced must hold, so that no other folder is ever deleted.

    Raises:
        SdcliError: it cannot be written, or what is there is something else.
    """
    if folder.exists() and not (folder / mark).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SdcliError(f"{folder} is already there and holds no {mark}", hint="name a new or an empty folder")
    beside = beside_of(folder)
    try:
        beside.mkdir(parents=True)
        yield beside
        _put_in_place(beside, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put_in_place(beside: Path, folder: Path) -> None:
    """Rename a finished folder to its name; the one that had the name is deleted after."""
    for path in (*beside.rglob("*"), beside):
        if not path.is_symlink():
            _flush(path)
    before = beside_of(folder)
    if folder.exists():
        os.rename(folder, before)
    try:
        os.rename(beside, folder)
    except OSError:
        if before.exists():
            os.rename(before, folder)
        raise
    _flush(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all; it says that PyTorch wrote it, as stock readers demand."""
    with whole_file(path) as beside:
        beside.touch()
        permissions = stat.S_IMODE(beside.stat().st_mode)
        save_file(dict(tensors), beside, metadata={"format": "pt", **metadata})
        beside.chmod(permissions)  # safetensors lets nobody but the owner read


def to_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, name: str) -> dict[str, Tensor]:
    """Tensors ready to be written: contiguous, on the CPU, floating ones in `dtype` (None keeps each one's own).

    Raises:
        SdcliError: a finite weight is too large for `dtype`.
    """
    ready = {}
    for key, tensor in tensors.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        ready[key] = tensor.detach().to("cpu", target).contiguous()
        if target == torch.float16 and tensor.isfinite().all() and not ready[key].isfinite().all():
            raise SdcliError(f"{name}: {key} has values too large for fp16", hint="save it in fp32 or bf16")
    return ready


def cannot_write(path: Path, error: Exception) -> SdcliError:
    """The error for a file or folder that the system refuses to write."""
    reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
    final = Path(*(re.sub(BESIDE, r"\1", part) for part in path.parts))
    return SdcliError(f"cannot write {final}: {reason}", hint="is there space, and may you write there?")


def _flush(path: Path) -> None:
    """Have the system put a file's contents, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
