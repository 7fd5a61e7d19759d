"""From a prompt to pixel values: encode_prompt, prepare_latents, denoise (the one loop), decode.

Knows no file names, no terminal, no models.toml. Makes the picture that diffusers' StableDiffusionPipeline makes from
the same weights, settings and CPU generators; its safety checker has no counterpart here.

Latents, guidance and the scheduler's arithmetic are float32 whatever the networks' precision: a step adds small
differences to large latents, which is where half precision loses most. Stock keeps latents in the networks' dtype, so
under fp16 and bf16 pictures agree with its own only to the rounding of that dtype.

B images, C latent channels (4), h w rows and columns of latents, H W of pixels, L tokens (77), D width of text.
"""

import re
from collections.abc import Callable, Sequence

import torch

# By name, on purpose: diffusers looks this name up *in this module* when it reloads a saved pipeline.
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdcli.components.guidance import guidance_embedding, guide
from sdcli.device import Placement
from sdcli.errors import EXIT_NOT_A_NUMBER, SdcliError
from sdcli.images import to_image
from sdcli.registry import find_model
from sdcli.settings import DenoiseSettings, GenerationDefaults

Generators = torch.Generator | Sequence[torch.Generator] | None
OnStep = Callable[[int, int, Tensor, Tensor | None], None]
"""Called after each step with (step from 1, total, latents, pred_original_sample)."""


class SdPipeline(DiffusionPipeline):
    """A text-to-image model: prompt to latents to picture.

    Args:
        vae: image to latents and back; None for a model that denoises pixels.
        text_encoder: tokens to text features; None for a model without text.
        tokenizer: text to tokens.
        unet: noisy latents to model output.
        scheduler: the noise schedule and the sampler.
        image_encoder: CLIP's image tower, which generation itself does not use.
    """

    _optional_components = ["vae", "text_encoder", "tokenizer", "image_encoder"]

    def __init__(self, vae, text_encoder, tokenizer, unet, scheduler, image_encoder=None):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
        )
        self.defaults = GenerationDefaults(**self._native_size())
        self.class_names: tuple[str, ...] = ()  # of a class-conditional UNet, from number 1 on

    def _native_size(self) -> dict[str, int]:
        """Pixels that the UNet was made for, as far as there is one."""
        sample_size = None if self.unet is None else self.unet.config.sample_size
        if sample_size is None:
            return {}
        rows, columns = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return {"height": rows * self.vae_scale_factor, "width": columns * self.vae_scale_factor}

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, each way."""
        return 1 if self.vae is None else self.vae.stride

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        eta: float = 0.0,
        clip_skip: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        on_step: OnStep | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Pictures for one or several prompts. Arguments left at None are the model's own `defaults`.

        Args:
            prompt: what to show; several make a batch.
            negative_prompt: what to steer away from; one for all prompts, or one for each.
            height: pixels.
            width: pixels.
            num_inference_steps: see DenoiseSettings.
            guidance_scale: 1 or less is no guidance.
            guidance_rescale: see `rescale_guidance`.
            eta: noise of DDIM's steps, 0 to 1.
            clip_skip: last layers of the text encoder to leave out.
            generator: one on the CPU for all images, or a list with one for each (then no image depends on the others).
            latents: noise to start from, (B, C, h, w) of unit variance, instead of the generator's.
            num_images_per_prompt: images of one prompt lie together.
            output_type: `pil`; `pt` (B, 3, H, W) or `np` (B, H, W, 3), both in [0, 1]; `latent` (B, C, h, w).
            return_dict: False for a plain tuple.
            on_step: told of every step.

        Raises:
            SdcliError: the networks gave values that are no numbers.
            ValueError: sizes or counts do not fit each other.
        """
        if output_type not in ("pil", "pt", "np", "latent"):
            raise ValueError(f"output_type must be pil, pt, np or latent, got {output_type!r}")
        prompts, negative_prompts = _as_batch(prompt, negative_prompt)
        settings = self._settings(num_inference_steps, guidance_scale, guidance_rescale, eta)
        clip_skip = _either(clip_skip, self.defaults.clip_skip)

        guided = settings.guidance_scale > 1
        embeds = self.encode_prompt(prompts, negative_prompts, clip_skip, guided)
        classes = self.encode_classes(prompts, negative_prompts, guided)
        conditions = [
            each if each is None else each.repeat_interleave(num_images_per_prompt, dim=0)
            for each in (*embeds, *classes)
        ]
        count = len(prompts) * num_images_per_prompt
        height, width = _either(height, self.defaults.height), _either(width, self.defaults.width)
        if latents is None:
            latents = self.prepare_latents(generator, height, width, count)
        elif latents.shape != self.latents_shape(count, height, width):
            expected = self.latents_shape(count, height, width)
            raise ValueError(f"latents must be {expected}, got {tuple(latents.shape)}")
        latents = self.denoise(latents, *conditions[:2], settings, generator, on_step, classes=conditions[2:])

        images = latents if output_type == "latent" else _as_output(self.decode(latents), output_type)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, None) if return_dict else (images, None)

    def _settings(self, num_inference_steps, guidance_scale, guidance_rescale, eta) -> DenoiseSettings:
        """The arguments, with this model's defaults where they are None."""
        return DenoiseSettings(
            num_inference_steps=_either(num_inference_steps, self.defaults.num_inference_steps),
            guidance_scale=_either(guidance_scale, self.defaults.guidance_scale),
            guidance_rescale=guidance_rescale,
            eta=eta,
        )

    @torch.no_grad()  # not inference_mode: what comes out may go into training
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        clip_skip: int | None = None,
        guided: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Text features of prompts and negative prompts, cut off after the text encoder's L tokens.

        Args:
            prompts: B texts.
            negative_prompts: B texts; '' is the unconditional prompt.
            clip_skip: last layers to leave out, for the prompts only: stock leaves none out for the negative prompt,
                and its pictures are the reference.
            guided: whether negative prompts are wanted.

        Returns:
            (B, L, D) each; the second is None when not guided, both are None for a model without text.
        """
        if self.text_encoder is None:
            return None, None
        texts = [*prompts, *negative_prompts] if guided else list(prompts)
        input_ids = self.tokenize(texts)  # (B or 2B, L)
        output = self.text_encoder(input_ids.to(self._execution_device))
        prompt_embeds = output.last_hidden_state[: len(prompts)]
        if clip_skip:
            prompt_embeds = self.text_encoder.skip_layers(output, clip_skip)[: len(prompts)]
        return prompt_embeds, output.last_hidden_state[len(prompts) :] if guided else None

    def encode_classes(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], guided: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """Classes that prompts and negative prompts name, (B,) int64 each; None as for `encode_prompt`.

        The class of a text is the one whose name is in it as a word, the longest of several; 0, no class, where none
        is.
        """
        if self.unet.config.get("num_class_embeds") is None:
            return None, None
        longest_first = sorted(enumerate(self.class_names, start=1), key=lambda each: -len(each[1]))

        def class_of(text: str) -> int:
            spelled = ((number, rf"(?<!\w){re.escape(name)}(?!\w)") for number, name in longest_first)
            return next((number for number, name in spelled if re.search(name, text, re.IGNORECASE)), 0)

        def labels(texts: Sequence[str]) -> Tensor:
            return torch.tensor([class_of(text) for text in texts], device=self._execution_device)

        return labels(prompts), labels(negative_prompts) if guided else None

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens (B, L) of texts, padded and cut off to the text encoder's number of them."""
        options = {"max_length": self._text_length, "padding": "max_length", "truncation": True}
        return self.tokenizer(list(texts), return_tensors="pt", **options).input_ids

    @property
    def _text_length(self) -> int:
        """L. Some tokenizers on the hub do not say how many tokens their text encoder takes."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def truncated_text(self, prompt: str) -> str:
        """What of a prompt lies beyond the text encoder's last token; '' when all fits."""
        if self.text_encoder is None:
            return ""
        input_ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        return self.tokenizer.decode(input_ids[self._text_length - 1 : -1]).strip()

    def latents_shape(self, count: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(B, C, h, w) of `count` images of that many pixels.

        Raises:
            ValueError: the VAE cannot divide such a side.
        """
        stride = self.vae_scale_factor
        if min(height, width) < stride or height % stride or width % stride:
            raise ValueError(f"height and width must be positive multiples of {stride}, got {height} and {width}")
        return count, self.unet.config.in_channels, height // stride, width // stride

    def prepare_latents(self, generators: Generators, height: int, width: int, count: int | None = None) -> Tensor:
        """Noise to start from; `denoise` brings it to the variance that its sampler starts at.

        Args:
            generators: one for each image, or one that draws all of them together, on the CPU; None is torch's own.
            height: pixels.
            width: pixels.
            count: images; needed unless there is a generator for each.

        Returns:
            Standard normal, (B, C, h, w) float32 on the pipeline's device.
        """
        one_each = isinstance(generators, Sequence)
        count = len(generators) if one_each and count is None else count or 1
        if one_each and len(generators) != count:
            raise ValueError(f"there must be one generator or one for each of {count} images, got {len(generators)}")
        generators = list(generators) if one_each else generators
        shape = self.latents_shape(count, height, width)
        return randn_tensor(shape, generator=generators, device=self._execution_device, dtype=torch.float32)

    @torch.inference_mode()
    def denoise(
        self,
        latents: Tensor,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        settings: DenoiseSettings,
        generators: Generators = None,
        on_step: OnStep | None = None,
        classes: Sequence[Tensor | None] = (None, None),
    ) -> Tensor:
        """Turn noise into the latents of a picture. This is where sampling happens.

        Args:
            latents: standard normal noise, (B, C, h, w).
            prompt_embeds: text features, (B, L, D); None for a model without text.
            negative_prompt_embeds: what to steer away from, (B, L, D); None without guidance.
            settings: steps, guidance, eta.
            generators: those that `prepare_latents` has drawn from already; a sampler's own noise comes after.
            on_step: told of every step.
            classes: what to show and what to steer away from, (B,) each, of a class-conditional UNet.

        Returns:
            Clean latents, scaled, (B, C, h, w) float32.

        Raises:
            SdcliError: the UNet's output is not a number.

        Reference: Ho and Salimans 2022 (arXiv:2207.12598), eq. 6, with guidance_scale = 1 + w.
        """
        generators = list(generators) if isinstance(generators, Sequence) else generators
        conditioned = prompt_embeds is not None or classes[0] is not None
        guided = settings.guidance_scale > 1 and conditioned and not self._knows_guidance
        if guided and (negative_prompt_embeds is None) != (prompt_embeds is None):
            raise ValueError("negative_prompt_embeds are needed where guidance_scale is above 1")
        embeds = _stacked(prompt_embeds, negative_prompt_embeds, guided)  # (2B or B, L, D)
        conditions = self._conditions(embeds, _stacked(*classes, guided), len(latents), settings.guidance_scale)
        self.scheduler.set_timesteps(settings.num_inference_steps, device=self._execution_device)
        timesteps = self.scheduler.timesteps

        latents = latents.to(self._execution_device, torch.float32) * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(timesteps, start=1):
            model_input = torch.cat([latents, latents]) if guided else latents  # (2B or B, C, h, w)
            model_input = self.scheduler.scale_model_input(model_input, timestep).to(self.unet.dtype)
            model_output = self.unet(model_input, timestep, **conditions).float()
            if guided:
                model_output = guide(*model_output.chunk(2), settings.guidance_scale, settings.guidance_rescale)
            taken = self.scheduler.step(model_output, timestep, latents, eta=settings.eta, generator=generators)
            latents = taken.prev_sample
            if on_step is not None:
                on_step(step, len(timesteps), latents, taken.pred_original_sample)
        return require_finite(latents, "UNet", self.unet.dtype)

    @property
    def _knows_guidance(self) -> bool:
        """Whether guidance is distilled into the UNet, which is told its scale (LCM), so that one pass is enough."""
        return self.unet.config.get("time_cond_proj_dim") is not None

    def _conditions(
        self, embeds: Tensor | None, class_labels: Tensor | None, count: int, guidance_scale: float
    ) -> dict[str, object]:
        """What the UNet is told besides noisy latents and time; the same at every step, so text is projected once."""
        conditions = {}
        if embeds is not None:
            conditions["text_keys_values"] = self.unet.project_text(embeds.to(self.unet.dtype))
        if class_labels is not None:
            conditions["class_labels"] = class_labels
        if self._knows_guidance:
            embedding = guidance_embedding(guidance_scale, self.unet.config.time_cond_proj_dim)
            conditions["timestep_cond"] = embedding.expand(count, -1).to(self._execution_device, self.unet.dtype)
        return conditions

    @torch.no_grad()
    def encode(self, pixel_values: Tensor, generators: Generators = None) -> Tensor:
        """Pictures to latents.

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1].
            generators: one for each image to sample the posterior with, or one for all; None takes its mean.

        Returns:
            Latents multiplied by `scaling_factor`, (B, C, h, w) float32.
        """
        if self.vae is None:
            return pixel_values.float()
        posterior = self.vae.encode(pixel_values.to(self._execution_device, self.vae.dtype))
        if generators is None:
            latents = posterior.mean
        else:
            generators = list(generators) if isinstance(generators, Sequence) else generators
            noise = randn_tensor(posterior.mean.shape, generator=generators, device=posterior.mean.device)
            latents = posterior.sample(noise.to(posterior.mean.dtype))
        return require_finite(latents.float(), "VAE", self.vae.dtype) * self.vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures.

        Args:
            latents: scaled, (B, C, h, w).

        Returns:
            pixel_values, (B, 3, H, W) float32, clamped to [-1, 1].

        Raises:
            SdcliError: the VAE's output is not a number.
        """
        if self.vae is None:
            return require_finite(latents.float(), "UNet", self.unet.dtype).clamp(-1, 1)
        unscaled = latents.to(self._execution_device) / self.vae.config.scaling_factor
        pixel_values = self.vae.decode(unscaled.to(self.vae.dtype)).float()
        return require_finite(pixel_values, "VAE", self.vae.dtype).clamp(-1, 1)

    @classmethod
    def from_pretrained(cls, folder: str, torch_dtype: torch.dtype = torch.float32) -> "SdPipeline":
        """The pipeline of a model folder, on the CPU; `sdcli.load_pipeline` also takes names and devices."""
        from sdcli.checkpoints import load_pipeline  # upwards, as below: diffusers' names for what lives there

        return load_pipeline(find_model(str(folder)), Placement(torch.device("cpu"), torch_dtype, "no"))

    def save_pretrained(self, save_directory: str, **options) -> None:
        """Write the standard folder, which diffusers loads; options are those of `save_pipeline`."""
        from sdcli.checkpoints import save_pipeline

        save_pipeline(self, save_directory, **options)


def require_finite(values: Tensor, network: str, dtype: torch.dtype) -> Tensor:
    """The same values, where all of them are numbers.

    Raises:
        SdcliError: one is infinite or not a number; it names the network that gave it.
    """
    if values.isfinite().all():
        return values
    half = dtype in (torch.float16, torch.bfloat16)
    hint = "try --precision fp32" if half else "its weights may be damaged, or their training has diverged"
    raise SdcliError(f"the {network}'s output is not a number", hint=hint, exit_code=EXIT_NOT_A_NUMBER)


def _stacked(wanted: Tensor | None, unwanted: Tensor | None, guided: bool) -> Tensor | None:
    """What a batch is told, with what it is to be steered away from in front where there is guidance."""
    return torch.cat([unwanted, wanted]) if guided and wanted is not None else wanted


def _either(given, default):
    """The argument, unless it was left at None."""
    return default if given is None else given


def _as_batch(prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    """B prompts and B negative prompts."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negative_prompt = "" if negative_prompt is None else negative_prompt
    negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
    if len(negatives) != len(prompts):
        raise ValueError(f"there must be one negative prompt, or one for each of {len(prompts)}, got {len(negatives)}")
    return prompts, negatives


def _as_output(pixel_values: Tensor, output_type: str):
    """(B, 3, H, W) in [-1, 1] as a list of PIL images, or in [0, 1] as a tensor or an array with channels last."""
    if output_type == "pil":
        return [to_image(each[None]) for each in pixel_values]
    unit = (pixel_values / 2 + 0.5).cpu()
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).numpy()
