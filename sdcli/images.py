"""Picture files, PIL images and tensors in [-1, 1]. The only place that knows PIL, file formats and 0…255."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from sdcli.errors import SdcliError

if TYPE_CHECKING:
    import torch

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # PIL knows more, some of which run other programs
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
UNICODE_COMMENT = b"UNICODE\0"  # EXIF 2.3, table 9: the character code that opens a user comment; UTF-16 follows


def load_image(source: Path | bytes, name: str = "") -> Image.Image:
    """Read a picture as RGB: EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Args:
        source: a file, or its content.
        name: what to call content in an error.

    Raises:
        SdcliError: the file is missing, empty, no picture, damaged, or unreasonably large.
    """
    name = name or str(source)
    content = source if isinstance(source, bytes) else read_bytes(source)
    if not content:
        raise SdcliError(f"{name} is empty (0 bytes)", hint="give a picture file, such as a PNG, JPEG or WebP")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=READABLE)
            image.load()
        return to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS // 1_000_000
        raise SdcliError(f"{name} has more than {limit} million pixels", hint="make it smaller first") from error
    except UnidentifiedImageError as error:
        raise SdcliError(f"{name} is not a picture", hint="give a picture file, such as a PNG, JPEG or WebP") from error
    except (OSError, SyntaxError, ValueError) as error:  # PIL tells of damage by all three
        raise SdcliError(f"{name} is damaged: {error}", hint="the file is cut off or altered; get it again") from error


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """Content of a file, or the first `limit` bytes of it.

    Raises:
        SdcliError: it is missing, a folder, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except FileNotFoundError as error:
        raise SdcliError(f"there is no file {path}", hint="check the path") from error
    except IsADirectoryError as error:
        raise SdcliError(f"{path} is a folder, not a file", hint="name the files in it") from error
    except OSError as error:
        raise SdcliError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB; transparent parts become white, as on paper."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # PIL's own conversion clips 16-bit grey to 255 instead of scaling it.
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif image.mode == "F":
        image = image.convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """A picture scaled to fill a square of `side` pixels, and cut at the centre; what fits already stays as it is."""
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def to_pixel_values(image: Image.Image) -> torch.Tensor:
    """An RGB image as (1, 3, H, W) float32 in [-1, 1]: 0 becomes -1, 255 becomes 1."""
    import numpy
    import torch

    pixels = torch.from_numpy(numpy.array(image.convert("RGB")))  # (H, W, 3) uint8
    return (pixels.permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()


def to_image(pixel_values: torch.Tensor) -> Image.Image:
    """One picture, (1, 3, H, W) or (3, H, W) around [-1, 1], as an RGB image; values beyond are clipped.

    Raises:
        ValueError: more than one picture, or a value that is not a number.
    """
    if pixel_values.ndim == 4 and len(pixel_values) == 1:
        pixel_values = pixel_values[0]
    if pixel_values.ndim != 3 or len(pixel_values) != 3:
        raise ValueError(f"pixel_values must be (3, H, W) or (1, 3, H, W), got {tuple(pixel_values.shape)}")
    if not pixel_values.isfinite().all():
        raise ValueError("pixel_values hold values that are not finite")
    # Stock diffusers' order, scaled to [0, 1] first and then rounded, so that every pixel rounds the same way.
    unit = (pixel_values.detach().float().cpu() / 2 + 0.5).clamp(0, 1)
    return Image.fromarray((unit.permute(1, 2, 0).numpy() * 255).round().astype("uint8"))


def make_strip(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, from left to right."""
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height))
    for index, image in enumerate(images):
        strip.paste(image, (index * width, 0))
    return strip


def encode_image(image: Image.Image, file_format: str = "png", text: dict[str, str] | None = None) -> bytes:
    """An image as the content of a file, with named texts in it.

    Args:
        image: what to write.
        file_format: png, jpg or webp.
        text: PNG text blocks by name; in JPEG and WebP, `parameters` becomes the EXIF user comment and `sdcli` the
            EXIF image description.
    """
    text = text or {}
    content = BytesIO()
    if file_format == "png":
        blocks = PngImagePlugin.PngInfo()
        for name, value in text.items():
            blocks.add_text(name, value)
        image.save(content, "PNG", pnginfo=blocks)
        return content.getvalue()
    exif = Image.Exif()
    if "sdcli" in text:
        exif[IMAGE_DESCRIPTION] = text["sdcli"]
    if "parameters" in text:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE_COMMENT + text["parameters"].encode("utf-16-be")
    options = {"subsampling": 0} if file_format == "jpg" else {}
    image.save(content, FORMATS[file_format], quality=95, exif=exif, **options)
    return content.getvalue()


def encode_animation(images: Sequence[Image.Image], frame_s: float = 0.15, last_s: float = 1.5) -> bytes:
    """Images as a GIF that repeats for ever and rests on the last one."""
    content = BytesIO()
    durations = [round(frame_s * 1000)] * (len(images) - 1) + [round(last_s * 1000)]
    first, *others = (image.quantize(256) for image in images)
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()


def read_text(path: Path) -> tuple[dict[str, str], tuple[int, int], str]:
    """The texts inside a picture, its width and height, and its format; pixels are not decoded.

    Raises:
        SdcliError: the file is missing or no picture.
    """
    content = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=READABLE)
        text = dict(image.text) if isinstance(image, PngImagePlugin.PngImageFile) else text_of_exif(image.getexif())
        return text, image.size, image.format or ""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SdcliError(f"{path} is not a picture, or a damaged one", hint="get the file again") from error


def text_of_exif(exif: Image.Exif) -> dict[str, str]:
    """What `encode_image` wrote into JPEG or WebP."""
    text = {}
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(UNICODE_COMMENT):
        text["parameters"] = comment.removeprefix(UNICODE_COMMENT).decode("utf-16-be", errors="replace")
    description = exif.get(IMAGE_DESCRIPTION)
    if isinstance(description, str) and description.startswith("{"):
        text["sdcli"] = description
    return text


def save_png(image: Image.Image, path: Path, text: dict[str, str] | None = None) -> None:
    """Write a PNG with text blocks, whole or not at all; a file of that name is replaced."""
    write_whole(encode_image(image, "png", text), path)


def write_whole(content: bytes, path: Path, replace: bool = True) -> None:
    """Write a file whole or not at all: a temporary file in the same folder, fsync, rename.

    Raises:
        FileExistsError: there is a file of that name, and `replace` is off.
        SdcliError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        make_folder(path.parent)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path, replace)
    except FileExistsError:
        raise
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another place with --output"
        raise SdcliError(f"cannot write {path}: {error.strerror}", hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where missing.

    Raises:
        SdcliError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror
        raise SdcliError(f"cannot make the folder {folder}: {why}", hint="choose another with --output") from error


def publish(temporary: Path, path: Path, replace: bool) -> None:
    """Give a finished temporary file its name."""
    if replace:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike rename, fails when the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)
