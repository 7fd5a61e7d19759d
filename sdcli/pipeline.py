"""From a prompt to pixel values: encode_prompt, prepare_latents, denoise (the one loop), decode.

Knows no file names, no terminal, no models.toml. Makes the picture that diffusers' StableDiffusionPipeline makes from
the same weights, settings and CPU generators; its safety checker has no counterpart here.

Latents, guidance and the scheduler's arithmetic are float32 whatever the networks' precision: a step adds small
differences to large latents, which is where half precision loses most. Stock keeps latents in the networks' dtype, so
under fp16 and bf16 pictures agree with its own only to the rounding of that dtype.

B images, C latent channels (4), h w rows and columns of latents, H W of pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

# By name, on purpose: diffusers looks this name up *in this module* when it reloads a saved pipeline.
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdcli.components.canvas import Canvas
from sdcli.components.clip_guidance import LEAST_SIGNAL, ClipGuidance
from sdcli.components.conditioning import Conditioning
from sdcli.components.control import Control, residuals
from sdcli.components.guidance import follow_gradient, guidance_embedding, guide
from sdcli.components.schedule import to_original_sample
from sdcli.device import Placement
from sdcli.errors import EXIT_NOT_A_NUMBER, SdcliError
from sdcli.images import to_image
from sdcli.prompts import PromptEncoder, Reader
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
        text_encoder_2: of a model with two of them (SDXL), or with this one alone (its refiner).
        tokenizer_2: text to its tokens.
        force_zeros_for_empty_prompt: whether an empty negative prompt is told as zeros (SDXL).
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"  # in this order they take turns on a GPU
    _optional_components = ["vae", "text_encoder", "tokenizer", "image_encoder", "text_encoder_2", "tokenizer_2"]

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        image_encoder=None,
        text_encoder_2=None,
        tokenizer_2=None,
        force_zeros_for_empty_prompt: bool = False,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
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
        eta: float | None = None,
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

        height, width = _either(height, self.defaults.height), _either(width, self.defaults.width)
        guided = settings.guidance_scale > 1
        wanted, unwanted = self.encode_prompt(prompts, negative_prompts, (height, width), clip_skip, guided)
        if num_images_per_prompt > 1:
            wanted, unwanted = (each and each.repeated(num_images_per_prompt) for each in (wanted, unwanted))
        count = len(prompts) * num_images_per_prompt
        if latents is None:
            latents = self.prepare_latents(generator, height, width, count)
        elif latents.shape != self.latents_shape(count, height, width):
            expected = self.latents_shape(count, height, width)
            raise ValueError(f"latents must be {expected}, got {tuple(latents.shape)}")
        latents = self.denoise(latents, wanted, unwanted, settings, generator, on_step)

        images = latents if output_type == "latent" else _as_output(self.decode(latents), output_type)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, None) if return_dict else (images, None)

    def _settings(self, num_inference_steps, guidance_scale, guidance_rescale, eta) -> DenoiseSettings:
        """The arguments, with this model's defaults where they are None."""
        return DenoiseSettings(
            num_inference_steps=_either(num_inference_steps, self.defaults.num_inference_steps),
            guidance_scale=_either(guidance_scale, self.defaults.guidance_scale),
            guidance_rescale=guidance_rescale,
            eta=_either(eta, self.defaults.eta),
        )

    @property
    def readers(self) -> list[Reader]:
        """Tokenizers with their text encoders; none of a model without text."""
        pairs = ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        return [Reader(*pair, before_last=self.tokenizer_2 is not None) for pair in pairs if pair[1] is not None]

    @torch.no_grad()  # not inference_mode: what comes out may go into training
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        guided: bool = True,
    ) -> tuple[Conditioning, Conditioning | None]:
        """What the UNet is told of prompts and negative prompts; see `PromptEncoder.encode`.

        Args:
            prompts: B texts.
            negative_prompts: B texts; '' is the unconditional prompt.
            size: height and width in pixels, of a model that is told; None is its own.
            clip_skip: last layers to leave out.
            guided: whether negative prompts are wanted.
        """
        zeros = self.config.force_zeros_for_empty_prompt
        encoder = PromptEncoder(self.readers, self.unet, self.class_names, zeros_for_empty=zeros)
        size = size or (self.defaults.height, self.defaults.width)
        return encoder.encode(prompts, negative_prompts, size, clip_skip or 0, guided)

    def count_chunks(self, texts: Sequence[str]) -> int:
        """Chunks of the longest of several texts; 0 for a model without text."""
        return max((len(reader.chunks(text)) for reader in self.readers for text in texts), default=0)

    def count_calls(self, settings: DenoiseSettings) -> int:
        """How often `denoise` will call the UNet."""
        return len(self._begin(settings))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens (B, L) of texts, padded and cut off to the text encoder's number of them; for training.

        Those of two text encoders lie side by side, (B, 2 * L).
        """
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        read = [each.tokenizer(list(texts), max_length=each.length, **options).input_ids for each in self.readers]
        return torch.cat(read, dim=1)

    def latents_shape(self, count: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(B, C, h, w) of `count` images of that many pixels.

        Raises:
            ValueError: the VAE cannot divide such a side.
        """
        stride = self.vae_scale_factor
        if min(height, width) < stride or height % stride or width % stride:
            raise ValueError(f"height and width must be positive multiples of {stride}, got {height} and {width}")
        channels = self.unet.config.in_channels if self.vae is None else self.vae.config.latent_channels
        return count, channels, height // stride, width // stride

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

    @torch.no_grad()
    def prepare_canvas(
        self, pixel_values: Tensor, mask: Tensor | None, generators: Generators, strength: float = 1.0
    ) -> tuple[Tensor, Canvas]:
        """Noise, and a picture to begin from; the generators are drawn from in stock's order.

        Args:
            pixel_values: of the picture, (B, 3, H, W) in [-1, 1].
            mask: 1 where something new is to come, (B, 1, H, W) of zeros and ones; None is new everywhere.
            generators: as for `prepare_latents`.
            strength: see DenoiseSettings.

        Returns:
            Standard normal noise (B, C, h, w), and the picture.
        """
        height, width = pixel_values.shape[2:]
        shown_mask = self.inpaints
        # A UNet that is shown the rest of the picture, and begins from noise alone, needs no more of it.
        clean = None if shown_mask and strength >= 1 else self.encode(pixel_values, generators)
        noise = self.prepare_latents(generators, height, width, len(pixel_values))
        if mask is None:
            return noise, Canvas(clean)
        masked = None
        if shown_mask:
            masked = self.encode(pixel_values * (mask < 0.5), generators)
        else:
            self.prepare_latents(generators, height, width, len(pixel_values))  # stock draws it, and has no use for it
        small = torch.nn.functional.interpolate(mask, size=noise.shape[2:])
        return noise, Canvas(noise if clean is None else clean, small.to(noise), masked)

    @property
    def inpaints(self) -> bool:
        """Whether the UNet is shown the mask and the rest of the picture: one for inpainting, with 2C + 1 channels."""
        return self.vae is not None and self.unet.config.in_channels == 2 * self.vae.config.latent_channels + 1

    @torch.no_grad()  # not inference_mode, whose tensors guidance by a gradient could not use
    def denoise(
        self,
        noise: Tensor,
        wanted: Conditioning,
        unwanted: Conditioning | None,
        settings: DenoiseSettings,
        generators: Generators = None,
        on_step: OnStep | None = None,
        canvas: Canvas | None = None,
        controls: Sequence[Control] = (),
        clip_guidance: ClipGuidance | None = None,
    ) -> Tensor:
        """Turn noise into the latents of a picture. This is where sampling happens.

        Args:
            noise: standard normal, (B, C, h, w).
            wanted: what to show, of B pictures.
            unwanted: what to steer away from; None without guidance.
            settings: steps, guidance, eta, and how much of a picture to begin from is made anew.
            generators: those that `prepare_latents` has drawn from already; a sampler's own noise comes after.
            on_step: told of every step.
            canvas: a picture to begin from; None begins from noise alone.
            controls: what else has a say.
            clip_guidance: the text that the gradient of CLIP's similarity leads to; not within torch.inference_mode.

        Returns:
            Clean latents, scaled, (B, C, h, w) float32.

        Raises:
            SdcliError: the UNet's output is not a number.
            ValueError: what is needed is missing, or so little is to be made anew that there is no step.

        Reference: Ho and Salimans 2022 (arXiv:2207.12598), eq. 6, with guidance_scale = 1 + w.
        """
        generators = list(generators) if isinstance(generators, Sequence) else generators
        guided = settings.guidance_scale > 1 and not wanted.empty and not self.knows_guidance
        if guided and unwanted is None:
            raise ValueError("what to steer away from is needed where guidance_scale is above 1")
        if self.inpaints and (canvas is None or canvas.masked_latents is None):
            raise ValueError("this UNet is for inpainting: it needs a picture and a mask")
        told = unwanted.joined(wanted) if guided else wanted
        conditions = told.arguments(self.unet) | self.guidance_condition(len(noise), settings.guidance_scale)
        shown = None
        if self.inpaints:
            shown = torch.cat([canvas.mask, canvas.masked_latents], dim=1)  # (B, 1 + C, h, w)
            shown = shown.to(self._execution_device, self.unet.dtype).repeat(1 + guided, 1, 1, 1)
        timesteps = self._begin(settings)
        latents = self._first_latents(noise, timesteps, settings, canvas)

        def evaluate(visible: Tensor, step: int) -> Tensor:
            """The model output for noisy latents of unit variance, (B, C, h, w), at a step counted from 1."""
            timestep = timesteps[step - 1]
            model_input = torch.cat([visible, visible]) if guided else visible  # (2B or B, C, h, w)
            model_input = model_input.to(self.unet.dtype)
            added = residuals(controls, model_input, timestep, told, (step - 1, len(timesteps)))
            if shown is not None:
                model_input = torch.cat([model_input, shown], dim=1)  # (2B or B, 2C + 1, h, w)
            model_output = self.unet(model_input, timestep, **conditions, **added).float()
            if guided:
                model_output = guide(*model_output.chunk(2), settings.guidance_scale, settings.guidance_rescale)
            return model_output

        for step, timestep in enumerate(timesteps, start=1):
            visible = self.scheduler.scale_model_input(latents, timestep)
            if clip_guidance is None:
                model_output = evaluate(visible, step)
            else:
                model_output = self._clip_guided(partial(evaluate, step=step), visible, timestep, clip_guidance)
            taken = self.scheduler.step(model_output, timestep, latents, eta=settings.eta, generator=generators)
            latents = taken.prev_sample
            if canvas is not None and canvas.mask is not None and shown is None:
                kept = canvas.latents
                if step < len(timesteps):
                    kept = self.scheduler.add_noise(kept, noise.to(kept), timesteps[step : step + 1])
                latents = (1 - canvas.mask) * kept + canvas.mask * latents
            if on_step is not None:
                on_step(step, len(timesteps), latents, getattr(taken, "pred_original_sample", None))
        return require_finite(latents, "UNet", self.unet.dtype)

    def _clip_guided(
        self, evaluate: Callable[[Tensor], Tensor], visible: Tensor, timestep: Tensor, guidance: ClipGuidance
    ) -> Tensor:
        """The model output, moved by the gradient of CLIP's similarity of the decoded x_0 that it stands for.

        The gradient is that of the whole way from the noisy latents: through the UNet, the VAE and CLIP.

        Args:
            evaluate: noisy latents of unit variance to the model output.
            visible: such latents, (B, C, h, w).
            timestep: of all of them.
            guidance: the text.

        Raises:
            SdcliError: the gradient is not a number.
        """
        alpha_bar = self.scheduler.signal_left(timestep)
        if alpha_bar < LEAST_SIGNAL:
            return evaluate(visible)
        prediction_type, channels = self.scheduler.config.get("prediction_type", "epsilon"), visible.shape[1]
        with torch.enable_grad():
            visible = visible.detach().requires_grad_()
            model_output = evaluate(visible)
            prediction, variance = model_output.split([channels, model_output.shape[1] - channels], dim=1)
            original = to_original_sample(prediction, visible, alpha_bar, prediction_type)
            logits = guidance.logits(self._pixels(original).clamp(-1, 1))
            (gradient,) = torch.autograd.grad(logits.sum(), visible)
        gradient = require_finite(guidance.scale * gradient, "CLIP guidance", self.unet.dtype)
        moved = follow_gradient(prediction.detach(), gradient, alpha_bar, prediction_type)
        return torch.cat([moved, variance.detach()], dim=1)

    def _begin(self, settings: DenoiseSettings) -> Tensor:
        """Plan the steps, and give the timesteps of those that are taken.

        Raises:
            ValueError: there is none.
        """
        self.scheduler.set_timesteps(settings.num_inference_steps, device=self._execution_device)
        taken = min(int(settings.num_inference_steps * settings.strength), settings.num_inference_steps)
        if taken < 1:
            raise ValueError(f"strength {settings.strength} of {settings.num_inference_steps} steps is not one step")
        first = (settings.num_inference_steps - taken) * self.scheduler.order
        self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:]

    def _first_latents(
        self, noise: Tensor, timesteps: Tensor, settings: DenoiseSettings, canvas: Canvas | None
    ) -> Tensor:
        """What the first step begins from: noise, or a picture with so much noise on it as that step expects."""
        noise = noise.to(self._execution_device, torch.float32)
        if canvas is None or (canvas.mask is not None and settings.strength >= 1):
            return noise * self.scheduler.init_noise_sigma
        return self.scheduler.add_noise(canvas.latents, noise, timesteps[:1].expand(len(noise)))

    @property
    def knows_guidance(self) -> bool:
        """Whether guidance is distilled into the UNet, which is told its scale (LCM), so that one pass is enough."""
        return self.unet.config.get("time_cond_proj_dim") is not None

    def guidance_condition(self, count: int, guidance_scale: float) -> dict[str, Tensor]:
        """What such a UNet is told."""
        if not self.knows_guidance:
            return {}
        embedding = guidance_embedding(guidance_scale, self.unet.config.time_cond_proj_dim)
        return {"timestep_cond": embedding.expand(count, -1).to(self._execution_device, self.unet.dtype)}

    @torch.no_grad()
    def encode(self, pixel_values: Tensor, generators: Generators = None) -> Tensor:
        """Pictures to latents.

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1].
            generators: one for each image to sample the posterior with, or one for all; None takes its mean.

        Returns:
            Latents multiplied by `scaling_factor`, (B, C, h, w) float32; of a model of pixels its pixels, C = 1 or 3.
        """
        if self.vae is None:
            return to_grey(pixel_values.float()) if self.unet.config.in_channels == 1 else pixel_values.float()
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
        network = ("UNet", self.unet) if self.vae is None else ("VAE", self.vae)
        return require_finite(self._pixels(latents), network[0], network[1].dtype).clamp(-1, 1)

    def _pixels(self, latents: Tensor) -> Tensor:
        """What `decode` gives before it is looked at and clamped."""
        if self.vae is None:
            return latents.float().expand(-1, 3, -1, -1)
        unscaled = latents.to(self._execution_device) / self.vae.config.scaling_factor
        return self.vae.decode(unscaled.to(self.vae.dtype)).float()

    @classmethod
    def from_pretrained(cls, folder: str, torch_dtype: torch.dtype = torch.float32) -> "SdPipeline":
        """The pipeline of a model folder, on the CPU; `sdcli.load_pipeline` also takes names and devices."""
        from sdcli.checkpoints import load_pipeline  # upwards, as below: diffusers' names for what lives there

        return load_pipeline(find_model(str(folder)), Placement(torch.device("cpu"), torch_dtype, "no"))

    def save_pretrained(self, save_directory: str, **options) -> None:
        """Write the standard folder, which diffusers loads; options are those of `save_pipeline`."""
        from sdcli.checkpoints import save_pipeline

        save_pipeline(self, save_directory, **options)


def to_grey(pixel_values: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as grey ones of 256 levels, (B, 1, H, W); grey ones stay as they are.

    Reference: ITU-R BT.601, section 2.5.1: the weights of PIL's mode L.
    """
    weights = pixel_values.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    grey = (pixel_values * weights).sum(1, keepdim=True)
    return ((grey + 1) * 127.5).round() / 127.5 - 1


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
