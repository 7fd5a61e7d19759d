"""Picture files in and out: exact round trips, odd formats, damage, and files that appear whole or not at all."""

import random
from io import BytesIO

import numpy
import pytest
import torch
from PIL import Image

from sdcli import images
from sdcli.errors import SdcliError
from sdcli.files import write_whole
from sdcli.images import (
    encode_image,
    load_image,
    read_text,
    save_png,
    to_image,
    to_pixel_values,
)
from sdcli.sheets import encode_animation, make_grid, make_strip


@pytest.fixture
def photo() -> Image.Image:
    """Every value of every channel occurs."""
    values = numpy.arange(256, dtype="uint8").reshape(16, 16)
    return Image.fromarray(numpy.stack([values, values[::-1], values.T], axis=-1))


def content_of(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    stream = BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def test_pixels_survive_the_way_to_tensors_and_back(photo):
    """All 256 values come back exactly; the tensor is (1, 3, H, W) in [-1, 1]."""
    pixel_values = to_pixel_values(photo)
    assert pixel_values.shape == (1, 3, 16, 16)
    assert (pixel_values.min(), pixel_values.max()) == (-1, 1)
    assert to_image(pixel_values).tobytes() == photo.tobytes()
    assert to_image(pixel_values[0]).tobytes() == photo.tobytes()


def test_rounding_is_that_of_stock_diffusers():
    """A tensor becomes the very pixels that diffusers' image processor makes of it."""
    from diffusers.image_processor import VaeImageProcessor

    pixel_values = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stock = VaeImageProcessor().postprocess(pixel_values, output_type="pil")[0]
    assert to_image(pixel_values).tobytes() == stock.tobytes()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 4, 8, 8), (8, 8)])
def test_what_is_no_picture_is_not_made_one(shape):
    """A batch, latents, a matrix."""
    with pytest.raises(ValueError, match="must be"):
        to_image(torch.zeros(shape))


def test_a_value_that_is_no_number_never_becomes_a_pixel():
    """No black picture hides a NaN."""
    with pytest.raises(ValueError, match="finite"):
        to_image(torch.full((1, 3, 8, 8), torch.nan))


def test_transparency_becomes_white():
    """A transparent pixel is white, a half transparent red one is pink, in every mode that has alpha."""
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.putpixel((2, 0), (255, 0, 0, 128))
    loaded = load_image(content_of(image))
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (255, 255, 255), (255, 127, 127)]
    grey = load_image(content_of(Image.new("LA", (1, 1), (0, 0))))
    assert grey.getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (1, 1), 0)
    assert load_image(content_of(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_is_turned_upright():
    """EXIF orientation 6 means that the right edge is the top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(content_of(Image.new("RGB", (4, 2)), exif=exif)).size == (2, 4)


def test_sixteen_bits_are_scaled_not_clipped():
    """Middle grey of 16 bits is middle grey of 8; white is white."""
    values = numpy.array([[0, 32768, 65535]], dtype="uint16")
    loaded = load_image(content_of(Image.fromarray(values)))
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_print_colours_become_screen_colours():
    """CMYK without ink is white, with all cyan it is cyan."""
    image = Image.new("CMYK", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 0))
    loaded = load_image(content_of(image, "TIFF"))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 255, 255)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "photo.png is empty"),
        (b"these are words\n", "photo.png is not a picture"),
        (b"PK\x03\x04 a zip", "photo.png is not a picture"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(tmp_path, content, message):
    """Whatever its name says."""
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(SdcliError, match=message) as raised:
        load_image(path)
    assert raised.value.hint


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_picture_is_refused(photo, share, file_format):
    """A download that was cut off never becomes a half grey picture."""
    content = content_of(photo.resize((256, 256)), file_format)
    with pytest.raises(SdcliError, match="damaged|not a picture"):
        load_image(content[: int(len(content) * share)], "photo")


@pytest.mark.parametrize(("place", "value"), [(36, 2), (11, 5)])
def test_a_png_with_a_wrong_length_is_refused(photo, tmp_path, place, value):
    """PIL raises SyntaxError for a chunk of data and ValueError for the header; a user sees neither."""
    content = bytearray(content_of(photo))
    content[place] = value
    with pytest.raises(SdcliError, match="damaged"):
        load_image(bytes(content))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SdcliError, match="damaged"):
        read_text(tmp_path / "a.png")


def test_missing_files_and_folders_are_refused(tmp_path):
    """With the path."""
    with pytest.raises(SdcliError, match="there is no file .*none.png"):
        load_image(tmp_path / "none.png")
    with pytest.raises(SdcliError, match="is a folder"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(monkeypatch):
    """A small file with more pixels than any photo."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side, size in ((40, "40x40 pixels"), (6000, "36 million pixels")):  # PIL warns of the first, refuses the second
        with pytest.raises(SdcliError, match=f"is too large: {size}"):
            load_image(content_of(Image.new("1", (side, side))))


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_raise_anything_but_our_error(photo):
    """Some hundred random damages of every format: loaded, or refused."""
    rng = random.Random(0)
    originals = [content_of(photo, each) for each in images.READABLE if each != "MPO"]
    for _ in range(400):
        content = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(min(len(content), 200))] = rng.randrange(256)
        try:
            load_image(bytes(content))
        except SdcliError:
            pass


@pytest.mark.parametrize("file_format", ["png", "jpg", "webp"])
def test_texts_come_back_from_every_format(photo, tmp_path, file_format):
    """Both blocks, line breaks and letters of any script included."""
    text = {"parameters": "ein Kätzchen 小猫\nSteps: 20, Seed: 1", "sdcli": '{"schema": "sdcli.image/1"}'}
    path = tmp_path / f"a.{file_format}"
    write_whole(encode_image(photo, file_format, text), path)
    read, size, name = read_text(path)
    assert read == text
    assert size == (16, 16)
    assert name == images.FORMATS[file_format]
    assert load_image(path).size == (16, 16)


def test_png_keeps_every_pixel(photo, tmp_path):
    """And `save_png` replaces what was there."""
    path = tmp_path / "new" / "a.png"
    save_png(Image.new("RGB", (2, 2)), path)
    save_png(photo, path, {"parameters": "x"})
    assert load_image(path).tobytes() == photo.tobytes()
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_has_ordinary_permissions(photo, tmp_path):
    """Those of any file that the user makes, not a temporary file's."""
    plain = tmp_path / "plain"
    plain.touch()
    save_png(photo, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == plain.stat().st_mode


def test_a_strip_lies_side_by_side():
    """From left to right, in order."""
    strip = make_strip([Image.new("RGB", (2, 3), colour) for colour in ("red", "lime", "blue")])
    assert strip.size == (6, 3)
    assert [strip.getpixel((x, 0)) for x in (0, 2, 4)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_an_animation_has_every_frame_and_repeats():
    """The last frame stays longest."""
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    animation = Image.open(BytesIO(encode_animation(frames)))
    assert animation.n_frames == 3
    assert animation.info["loop"] == 0
    durations = []
    for frame in range(3):
        animation.seek(frame)
        durations.append(animation.info["duration"])
    assert durations[2] > durations[0] == durations[1]


def test_a_grid_has_rows_and_labels():
    """Each picture in its cell; text below it, cut off where the cell ends."""
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    plain = make_grid(iter(images), 2, ["", "", ""])
    assert plain.size == (2 * 44 + 4, 2 * 34 + 4)
    assert [plain.getpixel(at) for at in ((5, 5), (50, 5), (5, 40), (50, 40))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    labelled = make_grid(iter(images), 2, ["seed 1", "seed 2", "a label that is much too long for a cell"])
    assert labelled.height > plain.height
    below = labelled.crop((0, 34 + 4, labelled.width, labelled.height // 2))
    assert below.getextrema()[0][0] < 128  # there is black text


def test_a_grid_of_many_pictures_stays_of_a_size(monkeypatch):
    """Its cells are smaller."""
    monkeypatch.setattr("sdcli.sheets.LARGEST_SHEET", 10_000)
    sheet = make_grid((Image.new("RGB", (100, 100), "red") for _ in range(16)), 4, [""] * 16)
    assert sheet.width * sheet.height < 20_000
