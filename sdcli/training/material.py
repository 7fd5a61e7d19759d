"""From a folder to the pictures of a run: looked at, problems refused or left out, some held out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sdcli.components.unet import UNet
from sdcli.data.folder import LAYOUTS, Example, Problem, read_contents
from sdcli.data.pictures import Framing, Pictures
from sdcli.data.scan import Picture, hash_of, refuse, scan
from sdcli.data.shards import ON_HUB, Shards, is_stream
from sdcli.data.store import Store, default_store
from sdcli.data.stream import WINDOW, Place, Reader, StreamedPictures, StreamOrder
from sdcli.errors import SdcliError
from sdcli.training.assembly import Model
from sdcli.training.events import Checking, Warned
from sdcli.training.settings import TrainSettings

TOLD = 5  # problems that are told one by one when they are left out
TOLD_EVERY = 256  # pictures between two reports of progress
SHOWN_OF_STREAM = 256  # pictures that stay at hand, for sample sheets and measurements


@dataclass(frozen=True)
class Material:
    """What a run learns from, and what is held out to measure it on."""

    training: list[Picture]  # of a stream only the beginning
    held_out: list[Picture]
    sha256: str  # of all of it; of a stream, what tells it from others
    reader: Reader | None = None  # of a stream

    @property
    def images(self) -> int | None:
        """How many pictures there are to train on; nobody knows of a stream."""
        return len(self.training) if self.reader is None else None

    @property
    def captions(self) -> list[str]:
        """All captions that are trained on."""
        return [caption for picture in self.training for caption in picture.example.captions]

    @property
    def labels(self) -> set[str]:
        """Classes of what is trained on, and of what is held out."""
        return {each.example.label for each in (*self.training, *self.held_out) if each.example.label is not None}

    def shown(self, settings: TrainSettings, model: Model, processes: int = 1) -> tuple[Pictures, Pictures | None]:
        """Batches to train on, and batches to validate with, where pictures are held out.

        Raises:
            SdcliError: not every process gets one that is held out.
        """
        framing = choose_framing(settings, model)
        if self.reader is None:
            training = Pictures(self.training, framing, settings.batch_size, settings.seed)
        else:
            order = StreamOrder(self.reader, framing, settings.batch_size, settings.seed, settings.num_workers)
            training = StreamedPictures(order, self.training[:SHOWN_OF_STREAM], framing, settings.seed)
        if not self.held_out:
            return training, None
        # Chance has nothing to do with what is held out.
        at_rest = Framing(resolution=framing.resolution, multiple=framing.multiple, buckets=framing.buckets)
        size = min(settings.batch_size, len(self.held_out) // processes * processes)
        if size == 0:
            raise SdcliError(
                f"{len(self.held_out)} pictures are held out, and there are {processes} processes",
                hint="hold out more by --validation-split, or none",
            )
        return training, Pictures(self.held_out, at_rest, size, settings.seed)


def gather(settings: TrainSettings, store: Store) -> Iterator[Checking | Warned | Material]:
    """Look at everything in the folder; the last that is given is the material.

    Raises:
        SdcliError: there is no folder or nothing in it, or something in it cannot be used and is not to be left out.
    """
    need_captions = settings.part not in ("vae", "embedding")
    if is_stream(settings.data):
        yield from gather_stream(settings, need_captions)
        return
    folder = Path(settings.data)
    contents = read_contents(folder, settings.where)
    problems, pictures = list(contents.problems), []
    for number, item in enumerate(scan(contents, store, need_captions), start=1):
        (pictures if isinstance(item, Picture) else problems).append(item)
        if number % TOLD_EVERY == 0:
            yield Checking(number, len(contents.examples))
    if settings.on_error == "stop":
        refuse(problems, folder)
    yield from left_out(problems)
    if settings.part == "embedding":
        pictures = [replace(each, example=with_word(each.example, settings.token)) for each in pictures]
    held_out = [each for each in pictures if is_held_out(each, settings.validation_split)]
    training = [each for each in pictures if not is_held_out(each, settings.validation_split)]
    if not training:
        raise SdcliError(
            f"no pictures {'to train on ' if held_out else ''}in {folder}",
            hint=f"{len(held_out)} are held out" if held_out else f"expected {LAYOUTS}",
        )
    if settings.validation_split and not held_out:
        yield Warned(f"--validation-split {settings.validation_split} of {len(pictures)} pictures is none")
    yield Material(training, held_out, hash_of(pictures, contents.folder))


def gather_stream(settings: TrainSettings, need_captions: bool) -> Iterator[Checking | Warned | Material]:
    """Look at the first window of a stream; the rest is looked at on the way, and what cannot be used left out.

    Raises:
        SdcliError: there is no such data, or nothing in it that can be used.
    """

    def with_the_word(picture: Picture) -> Picture:
        if settings.part != "embedding":
            return picture
        return replace(picture, example=with_word(picture.example, settings.token))

    def admitted(picture: Picture) -> Picture | None:
        return None if is_held_out(picture, settings.validation_split) else with_the_word(picture)

    if settings.grounds or settings.pairs or settings.where:
        hint = "leave them out for shards"
        raise SdcliError("--grounds, --pairs and --where need a folder with all pictures", hint=hint)
    shards = Shards(settings.data)
    if settings.data.startswith(ON_HUB) and "@" not in settings.data:
        yield Warned(f"{settings.data} may change between runs; name a revision: hf:OWNER/NAME@REVISION")
    yield Checking(0, WINDOW)
    looking = Reader(shards, need_captions, with_the_word, settings.seed)
    first, _ = looking.window(Place())
    held_out = [each for each in first if is_held_out(each, settings.validation_split)]
    training = [each for each in first if not is_held_out(each, settings.validation_split)]
    if not training:
        problem = f"{looking.problems[0].place} {looking.problems[0].message}; " if looking.problems else ""
        raise SdcliError(
            f"no pictures to train on among the first of {settings.data}",
            hint=f"{problem}{len(held_out)} are held out, and the columns are {', '.join(shards.columns)}",
        )
    if settings.validation_split and not held_out:
        yield Warned(f"--validation-split {settings.validation_split} of the first {len(first)} pictures is none")
    kept = [*training[:SHOWN_OF_STREAM], *(replace(each, content=None) for each in training[SHOWN_OF_STREAM:])]
    yield Material(kept, held_out, shards.sha256, Reader(shards, need_captions, admitted, settings.seed))


def too_long(captions: list[str], tokenizer: PreTrainedTokenizerBase, most: int) -> Iterator[Warned]:
    """Tell how many captions have more tokens than `most`, and are cut off, and which one is the longest."""
    lengths = [len(each) for each in tokenizer(captions, verbose=False).input_ids]
    cut = sum(length > most for length in lengths)
    if cut:
        longest = captions[lengths.index(max(lengths))]
        yield Warned(
            f"{cut} of {len(captions)} captions are longer than {most} tokens, and cut off there; the longest, of "
            f"{max(lengths)}, is: {longest[:60]}"
        )


def left_out(problems: list[Problem]) -> Iterator[Warned]:
    """Tell what is not trained on."""
    for problem in problems[:TOLD]:
        yield Warned(f"left out: {problem.place} {problem.message}")
    if len(problems) > TOLD:
        yield Warned(f"left out: {len(problems) - TOLD} more")


def is_held_out(picture: Picture, share: float) -> bool:
    """Whether a picture is for validation: its hash decides, so copies of it are on the same side, in every run."""
    return int(picture.sha256[:8], 16) < share * 2**32


def with_word(example: Example, token: str) -> Example:
    """An example whose captions say a word: those that do, or all of them with it in front."""
    saying = tuple(caption for caption in example.captions if token in caption)
    captions = saying or tuple(f"{token}, {caption}" for caption in example.captions) or (token,)
    return replace(example, captions=captions)


def choose_framing(settings: TrainSettings, model: Model) -> Framing:
    """The size of the training pictures: as asked, else what the model was made for.

    Raises:
        SdcliError: the networks cannot divide it.
    """
    components = model.components
    vae, unet = components.get("vae"), components.get("unet")
    stride = 1 if vae is None else vae.stride
    multiple = stride
    if settings.part == "clip":
        native = components["image_encoder"].config.image_size
    elif settings.part == "vae":
        native = vae.config.sample_size
    else:
        sample_size = unet.config.sample_size
        native = stride * (sample_size if isinstance(sample_size, int) else min(sample_size))
        multiple = stride * halvings(unet)
    resolution = native if settings.resolution is None else settings.resolution
    if resolution % multiple and settings.part != "clip":
        raise SdcliError(
            f"--resolution {resolution} is no multiple of {multiple}, which this model needs",
            hint=f"try {max(multiple, resolution // multiple * multiple)}",
        )
    return Framing(
        resolution=resolution,
        multiple=multiple,
        buckets=settings.buckets,
        random_crop=settings.random_crop,
        random_flip=settings.random_flip,
        random_affine=settings.random_affine,
        color_jitter=settings.color_jitter,
        grounds=settings.grounds,
        pairs=settings.pairs,
        variations=settings.variations,
        caption_filler=settings.caption_filler,
    )


def halvings(unet: UNet) -> int:
    """By what the UNet divides the sides of latents on its way down."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


def open_store(settings: TrainSettings) -> Store:
    """The cache that the settings name."""
    if settings.cache == "none":
        return Store(None)
    return Store(default_store() if settings.cache is None else Path(settings.cache))
