"""Pictures to latents files and back, and the forward process on both. Prints nothing.

N pictures in a file, C latent channels, H W rows and columns of pixels, h w of latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import torch
from torch import Tensor

from sdcli.checkpoints import load_component, load_latents, save_latents
from sdcli.checkpoints.fingerprints import Fingerprints
from sdcli.components import schedule
from sdcli.components.vae import VAE
from sdcli.device import Placement, explain_out_of_memory
from sdcli.errors import SdcliError
from sdcli.images import Image, to_image, to_pixel_values
from sdcli.model_config import vae_stride
from sdcli.pipeline import SdPipeline
from sdcli.registry import ModelSpec
from sdcli.settings import LARGEST_SEED, check_range


@dataclass(frozen=True)
class LatentsFile:
    """Content of a latents file.

    Args:
        latents: scaled by the VAE's factor, (N, C, h, w) float32.
        metadata: at least scaling_factor; our own files also say model, vae_sha256, width and height.
    """

    latents: Tensor
    metadata: dict[str, str]

    @classmethod
    def parse(cls, content: bytes, name: str) -> LatentsFile:
        """Read the content of a file, our own or ComfyUI's.

        Raises:
            SdcliError: it is damaged, or holds no latents.
        """
        stream = BytesIO(content)
        stream.name = name  # what an error calls it
        latents, metadata = load_latents(stream)
        try:
            usable = 0 < float(metadata["scaling_factor"]) < math.inf
        except ValueError:
            usable = False
        if not usable:
            message = f"{name}: scaling_factor is {metadata['scaling_factor']!r}, no positive number"
            raise SdcliError(message, hint="encode the picture again with `sdcli encode`")
        return cls(latents, metadata)

    def to_bytes(self) -> bytes:
        """The content of a file of our own form."""
        stream = BytesIO()
        save_latents(stream, self.latents, self.metadata)
        return stream.getvalue()


def encode(pictures: Sequence[tuple[str, Image.Image]], model: ModelSpec, placement: Placement) -> LatentsFile:
    """The mean latents of pictures of one size.

    Args:
        pictures: names, for errors, and RGB images.
        model: whose VAE encodes.
        placement: where.

    Raises:
        SdcliError: sizes differ or do not suit the VAE, the VAE does not load, or memory runs out.
    """
    stride = vae_stride(model.path)
    first_name, first = pictures[0]
    for name, image in pictures:
        if image.size != first.size:
            sizes = f"{first_name} is {size_text(first)}, {name} is {size_text(image)}"
            raise SdcliError(f"{sizes}: a latents file holds one size", hint="encode them into files of their own")
        if image.width % stride or image.height % stride:
            lower = f"{image.width // stride * stride}x{image.height // stride * stride}"
            hint = f"cut or scale it first, to {lower} for example"
            raise SdcliError(f"{name} is {size_text(image)}, no multiple of {stride}", hint=hint)
    with explain_out_of_memory(f"at {size_text(first)}", "make the pictures smaller"):
        vae_pipeline = load_vae(model, placement)
        latents = torch.cat([vae_pipeline.encode(to_pixel_values(image)).cpu() for _, image in pictures])
    return latents_file(latents, model, vae_pipeline.vae)


def latents_file(latents: Tensor, model: ModelSpec, vae: VAE) -> LatentsFile:
    """Latents (N, C, h, w) of a model's VAE with what is known of them."""
    metadata = {
        "model": model.name,
        "scaling_factor": str(vae.config.scaling_factor),
        "vae_sha256": vae_sha256(model),
        "width": str(latents.shape[3] * vae.stride),
        "height": str(latents.shape[2] * vae.stride),
    }
    return LatentsFile(latents.cpu(), metadata)


def decode(file: LatentsFile, model: ModelSpec, placement: Placement) -> list[Image.Image]:
    """Pictures of latents.

    Raises:
        SdcliError: the model's VAE does not load or is for other latents, or memory runs out.
    """
    vae_pipeline = load_vae(model, placement)
    config = vae_pipeline.vae.config
    channels = file.latents.shape[1]
    if channels != config.latent_channels:
        raise SdcliError(
            f"the latents have {channels} channels, the VAE of {model.name} takes {config.latent_channels}",
            hint="name the model that they were encoded with: --model",
        )
    latents = file.latents * (config.scaling_factor / float(file.metadata["scaling_factor"]))
    with explain_out_of_memory(f"while decoding latents {tuple(latents.shape)}", "try --precision bf16 or fp16"):
        return [to_image(vae_pipeline.decode(each[None])) for each in latents]


def load_vae(model: ModelSpec, placement: Placement) -> SdPipeline:
    """A pipeline with nothing but its VAE, for the one place that scales latents."""
    vae = load_component(model.path, "vae", placement)
    return SdPipeline(vae=vae, text_encoder=None, tokenizer=None, unet=None, scheduler=None)


def vae_sha256(model: ModelSpec) -> str:
    """SHA-256 of the VAE's weights; of several files, all of them."""
    return " ".join(Fingerprints(model.path, ("vae",)).get().values())


def size_text(image: Image.Image) -> str:
    """Width and height as people write them."""
    return f"{image.width}x{image.height}"


class ForwardProcess:
    """q(x_t | x_0): noise at a timestep, the same noise for every timestep.

    Args:
        model: whose noise schedule counts; None is Stable Diffusion's, scaled_linear over 1000 timesteps.
        seed: of the noise; picture i of a file takes seed + i.

    Raises:
        SdcliError: the model's scheduler does not load.

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 4.
    """

    def __init__(self, model: ModelSpec | None, seed: int):
        if model is None:
            self.alphas_cumprod = schedule.alphas_cumprod(schedule.make_betas("scaled_linear"))
        else:
            self.alphas_cumprod = load_component(model.path, "scheduler").alphas_cumprod
        self.alphas_cumprod = self.alphas_cumprod.float()
        self.model_name = "" if model is None else model.name
        self.seed = seed

    def check(self, timesteps: Sequence[int]) -> None:
        """Refuse timesteps that the schedule does not have.

        Raises:
            SdcliError: one lies outside.
        """
        last = len(self.alphas_cumprod) - 1
        for timestep in timesteps:
            if not 0 <= timestep <= last:
                hint = f"timesteps go from 0, almost clean, to {last}, almost all noise"
                raise SdcliError(f"there is no timestep {timestep}", hint=hint)

    def noised(self, clean: Tensor, timestep: int) -> Tensor:
        """Clean pixel values or latents, (N, C, H, W), noised to the level of a timestep."""
        check_range("--seed", self.seed + len(clean) - 1, 0, LARGEST_SEED)
        generators = [torch.Generator("cpu").manual_seed(self.seed + place) for place in range(len(clean))]
        noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in generators])
        return schedule.add_noise(clean, noise, torch.full((len(clean),), timestep), self.alphas_cumprod)

    def noised_picture(self, image: Image.Image, timestep: int) -> Image.Image:
        """A picture with noise on its pixels; values beyond black and white are clipped."""
        return to_image(self.noised(to_pixel_values(image), timestep))

    def noised_file(self, file: LatentsFile, timestep: int) -> LatentsFile:
        """Latents with noise on them; the metadata says so.

        Raises:
            SdcliError: they have noise on them already.
        """
        if "timestep" in file.metadata:
            before = file.metadata["timestep"]
            raise SdcliError(f"these latents are already noised, to timestep {before}", hint="start from clean ones")
        rows, columns = file.latents.shape[2:]
        # ComfyUI's files do not say these.
        guessed = {"model": self.model_name, "vae_sha256": "", "width": str(8 * columns), "height": str(8 * rows)}
        noise = {"timestep": str(timestep), "seed": str(self.seed)}
        return LatentsFile(self.noised(file.latents, timestep), {**guessed, **file.metadata, **noise})
