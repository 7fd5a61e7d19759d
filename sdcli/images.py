"""Picture files, PIL images and tensors in [-1, 1]. The only place that knows PIL, file formats and 0…255."""

from __future__ import annotations

import contextlib
import math
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from sdcli.errors import SdcliError
from sdcli.exif import EXIF_IFD, IMAGE_DESCRIPTION, USER_COMMENT, encode_comment, texts_of
from sdcli.files import read_bytes, write_whole

if TYPE_CHECKING:
    import torch

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # PIL knows more, some of which run other programs
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
PICTURES = (*SUFFIXES, ".gif", ".bmp", ".tif", ".tiff")  # suffixes of files that can be read
ORIENTATION = 0x0112  # of EXIF
GET_AGAIN = "the file is cut off or altered; get it again"
# By all of these PIL tells of damage, the last ones in EXIF.
DAMAGE = (OSError, SyntaxError, ValueError, struct.error, KeyError, TypeError, IndexError, AttributeError)


def load_image(source: Path | bytes, name: str = "") -> Image.Image:
    """Read a picture as RGB: EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Args:
        source: a file, or its content.
        name: what to call content in an error.

    Raises:
        SdcliError: the file is missing, empty, no picture, damaged, or unreasonably large.
    """
    return to_rgb(open_upright(source, name or str(source)))


def load_sized(flag: str, file: str, size: tuple[int, int]) -> Image.Image:
    """Read a picture that has to have a size, width and height; see `load_image`.

    Raises:
        SdcliError: the file is bad, or has another size.
    """
    image = load_image(Path(file).expanduser())
    if image.size != size:
        sizes = f"is {image.width}x{image.height}, the picture is to be {size[0]}x{size[1]}"
        raise SdcliError(f"{flag} {file} {sizes}", hint="scale or cut it first, or give its size by -W and -H")
    return image


def load_drawing(source: Path | bytes, name: str = "") -> Image.Image:
    """Read a picture as RGBA, for a ground that is to be chosen; arguments and errors as for `load_image`."""
    return open_upright(source, name or str(source)).convert("RGBA")


def open_upright(source: Path | bytes, name: str) -> Image.Image:
    """A picture as its file has it, decoded, and turned as its EXIF says."""
    image = open_image(source if isinstance(source, bytes) else read_bytes(source), name)
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise SdcliError(f"{name} is damaged: {error}", hint=GET_AGAIN) from error


def open_image(content: bytes, name: str) -> Image.Image:
    """A picture as its file has it, decoded.

    Raises:
        SdcliError: it is empty, no picture, damaged, or unreasonably large.
    """
    if not content:
        raise SdcliError(f"{name} is empty (0 bytes)", hint="give a picture file, such as a PNG, JPEG or WebP")
    limit = f"make it smaller first: {Image.MAX_IMAGE_PIXELS // 1_000_000} million pixels are read at most"
    try:
        image = Image.open(BytesIO(content), formats=READABLE)
        if math.prod(image.size) > Image.MAX_IMAGE_PIXELS:  # up to twice as many PIL itself only warns of
            raise SdcliError(f"{name} is too large: {image.width}x{image.height} pixels", hint=limit)
        image.load()
        return image
    except Image.DecompressionBombError as error:
        pixels = int(re.search(r"\d+", str(error))[0])  # nothing else tells the size of what PIL refuses to open
        raise SdcliError(f"{name} is too large: {pixels / 1e6:.0f} million pixels", hint=limit) from error
    except UnidentifiedImageError as error:
        raise SdcliError(f"{name} is not a picture", hint="give a picture file, such as a PNG, JPEG or WebP") from error
    except (OSError, SyntaxError, ValueError) as error:  # PIL tells of damage by all three
        raise SdcliError(f"{name} is damaged: {error}", hint=GET_AGAIN) from error


@dataclass(frozen=True)
class PictureFacts:
    """What a training run has to know of a picture file."""

    width: int  # pixels, after the rotation that EXIF asks for
    height: int
    mode: str  # PIL's name of what a pixel is, such as RGB
    rotated: bool  # by EXIF
    transparent: bool
    outline: str  # see `difference_hash`; pictures that look alike differ in few of its bits
    colours: str  # of 4x4 pixels, RGB, as hex


def describe_picture(content: bytes, name: str) -> PictureFacts:
    """Decode a picture and tell what it is.

    Raises:
        SdcliError: it is no picture, damaged, too large, or moves.
    """
    image = open_image(content, name)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise SdcliError(f"{name} is an animation of {frames} pictures", hint="save the one that is meant by itself")
    try:
        upright = ImageOps.exif_transpose(image)
        plain = to_rgb(upright)
    except (OSError, SyntaxError, ValueError) as error:
        raise SdcliError(f"{name} is damaged: {error}", hint=GET_AGAIN) from error
    return PictureFacts(
        *upright.size,
        mode=image.mode,
        rotated=image.getexif().get(ORIENTATION, 1) != 1,
        transparent=image.has_transparency_data,
        outline=difference_hash(plain),
        colours=plain.resize((4, 4), Image.Resampling.BOX).tobytes().hex(),
    )


def difference_hash(image: Image.Image) -> str:
    """256 bits, as hex, that say where a picture of 17x16 grey pixels gets brighter from left to right.

    Reference: Krawetz 2013, "Kind of Like That" (dHash).
    """
    import numpy

    grey = numpy.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=numpy.int16)
    return numpy.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


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


def crop_box(size: tuple[int, int], target: tuple[int, int], place: tuple[float, float]) -> tuple[int, int, int, int]:
    """What to cut from a picture so that it has the aspect ratio of another size.

    Args:
        size: of the picture, width and height.
        target: the other size.
        place: of the cut within what is left over: (0, 0) left and top, (0.5, 0.5) the middle, (1, 1) right and bottom.

    Returns:
        Left, top, right and bottom in pixels.
    """
    factor = min(size[0] / target[0], size[1] / target[1])
    width, height = (min(side, round(factor * wanted)) for side, wanted in zip(size, target, strict=True))
    left, top = round((size[0] - width) * place[0]), round((size[1] - height) * place[1])
    return left, top, left + width, top + height


def scale_and_cut(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A part of a picture, scaled to a size; a picture that is as wanted stays as it is."""
    if image.size == size and box == (0, 0, *size):
        return image
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def to_pixel_values(image: Image.Image) -> torch.Tensor:
    """An RGB image as (1, 3, H, W) float32 in [-1, 1]: 0 becomes -1, 255 becomes 1."""
    import numpy
    import torch

    pixels = torch.from_numpy(numpy.array(image.convert("RGB")))  # (H, W, 3) uint8
    return (pixels.permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()


def to_mask(image: Image.Image) -> torch.Tensor:
    """A picture as (1, 1, H, W) of zeros and ones: one where it is nearer to white than to black."""
    import numpy
    import torch

    grey = torch.from_numpy(numpy.array(image.convert("L")))  # (H, W) uint8
    return (grey[None, None].float() / 255 >= 0.5).float()


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
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = encode_comment(text["parameters"])
    options = {"subsampling": 0} if file_format == "jpg" else {}
    image.save(content, FORMATS[file_format], quality=95, exif=exif, **options)
    return content.getvalue()


def read_text(path: Path) -> tuple[dict[str, str], tuple[int, int], str]:
    """The texts inside a picture, its width and height, and its format.

    Texts of PNG have the names that they have there, those of EXIF see `exif.texts_of`; XMP is `xmp`, unread.

    Raises:
        SdcliError: the file is missing, no picture, or holds more text than can be meant.
    """
    with opened(read_bytes(path), path) as image:
        exif = image.getexif()
        text = texts_of(dict(exif), exif.get_ifd(EXIF_IFD).get(USER_COMMENT))
        if isinstance(image, PngImagePlugin.PngImageFile):
            text |= {name: str(value) for name, value in image.text.items()}
        elif isinstance(xmp := image.info.get("xmp"), bytes):
            text["xmp"] = xmp.decode("utf-8", errors="replace")
        return text, image.size, image.format or ""


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, turned as its EXIF says.

    Raises:
        SdcliError: the file is missing or no picture.
    """
    with opened(read_bytes(path), path) as image:
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


@contextlib.contextmanager
def opened(content: bytes, path: Path) -> Iterator[Image.Image]:
    """A picture of which only what stands beside its pixels is read.

    Raises:
        SdcliError: it is no picture, what is read of it is damaged, or it holds more text than can be meant.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large picture, or an odd field in its EXIF
            yield Image.open(BytesIO(content), formats=READABLE)
    except Image.DecompressionBombError as error:
        raise SdcliError(f"{path} is too large to be a picture: {error}", hint=GET_AGAIN) from error
    except DAMAGE as error:
        if "MAX_TEXT" in str(error):  # PIL's limits, by which a small file cannot fill the memory
            raise SdcliError(f"{path} holds a text that is too large: {error}", hint=GET_AGAIN) from error
        raise SdcliError(f"{path} is not a picture, or a damaged one", hint="get the file again") from error


def save_png(image: Image.Image, path: Path, text: dict[str, str] | None = None) -> None:
    """Write a PNG with text blocks, whole or not at all; a file of that name is replaced."""
    write_whole(encode_image(image, "png", text), path)
