"""The UNet learns to tell what noise was added to the latents of a picture, given its caption."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.checkpoints.saving import NAMES
from sdcli.components.clip import normalize_for_clip
from sdcli.components.schedule import add_noise, to_original_sample, velocity
from sdcli.data.pictures import Pictures, Shown
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.pipeline import SdPipeline
from sdcli.prompts import AESTHETIC_SCORES, takes_score
from sdcli.settings import DenoiseSettings, GenerationDefaults
from sdcli.training.assembly import Model
from sdcli.training.masks import draw_masks
from sdcli.training.objectives import by_timestep, denoising_loss, min_snr_weights, perceptual_error
from sdcli.training.parts.base import SHOWN, Batch, Part, in_batches, same_size, sheet
from sdcli.training.parts.captions import (
    TEXT_ENCODERS,
    CaptionFeatures,
    ReadingUnet,
    hash_of_weights,
    text_arguments,
    weights_read,
)
from sdcli.training.settings import TrainSettings

OF_NEW = GenerationDefaults(num_inference_steps=20, guidance_scale=4.0)  # what samples of a new model are made with
KEPT_BYTES = 2 * 2**30  # latents that stay in memory once computed
LEVELS = 4  # timesteps at which a batch that is held out is looked at


class UnetPart(Part):
    """Noise is added to latents that were encoded once; text features are computed once for each caption."""

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings, store: Store):
        super().__init__(model, data, settings)
        components = {name: model.components.get(name) for name in NAMES}
        # SDXL is told an empty text as zeros, its refiner is not, as is said in the folders that are saved.
        zeros = components["text_encoder"] is not None and components["text_encoder_2"] is not None
        self.pipeline = SdPipeline(**components, force_zeros_for_empty_prompt=zeros)
        self.pipeline.class_names = model.class_names
        self.network = self._network()
        self.scheduler = self.pipeline.scheduler
        self.prediction_type = self.scheduler.config.prediction_type
        self.store = store
        self.reads_captions = bool(self.pipeline.readers)
        self._vae_hash = "" if self.pipeline.vae is None else hash_of_weights(self.pipeline.vae)
        self._captions = CaptionFeatures(self.pipeline, store, data.known and not settings.caption_filler)
        self._latents: dict[Shown, Tensor] = {}
        if settings.loss == "perceptual" and self.pipeline.image_encoder is None:
            raise SdcliError(
                "--loss perceptual needs the image tower of a CLIP, and the model has none",
                hint="`sdcli train --part clip` makes one; or take --loss mse",
            )

    def _network(self) -> nn.Module:
        """The UNet alone, or with the text encoders where these learn too."""
        if self.settings.text_encoder_lr is None:
            return self.pipeline.unet
        if not self.pipeline.readers:
            raise SdcliError("--text-encoder-lr: the model has no text encoder", hint="leave it out")
        return ReadingUnet(self.pipeline.readers, self.pipeline.unet)

    def parameters(self) -> list[nn.Parameter]:
        """The weights that are trained: the UNet's, then those of text encoders that learn too."""
        return [*self.pipeline.unet.parameters(), *self._of_text()]

    def groups(self) -> list[dict[str, Any]]:
        """The same, those of text encoders with their own learning rate."""
        if not self._of_text():
            return super().groups()
        of_text = {"params": self._of_text(), "lr": self.settings.text_encoder_lr}
        return [{"params": list(self.pipeline.unet.parameters())}, of_text]

    def _of_text(self) -> list[nn.Parameter]:
        if self.settings.text_encoder_lr is None:
            return []
        return [weight for reader in self.pipeline.readers for weight in weights_read(reader)]

    def take(self, model: Model) -> None:
        """Take the UNet of another model, and its text encoders where these learn too."""
        learning = [self.settings.part]
        if self.settings.text_encoder_lr is not None:
            learning += [name for name in TEXT_ENCODERS if getattr(self.pipeline, name) is not None]
        for name in learning:
            getattr(self.pipeline, name).load_state_dict(model.components[name].state_dict())

    @property
    def cached(self) -> bool:
        """Whether latents are computed once: there is a VAE, and pictures come again, always cut alike."""
        return self.pipeline.vae is not None and self.data.known and self.data.framing.comes_again

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Encode every picture once in each way that it is shown, unless its latents are kept from before."""
        if not self.cached:
            return
        wanted = [shown for index in range(len(self.data)) for shown in self.data.all_at_rest(index)]
        done = 0
        for shown in in_batches(wanted):
            self._moments(self.data, shown)
            done += len(shown)
            yield done, len(wanted)

    def batch(self, data: Pictures, number: int, validating: bool = False) -> Batch:
        """Moments of latents, or pictures where they are not cached, noise, timesteps and tokens of captions."""
        shown = data.batch(number)
        generator = data.generator(number)
        if self.cached:
            batch = {"moments": self._moments(data, shown)}  # (B, 2C, h, w)
            shape = (len(shown), batch["moments"].shape[1] // 2, *batch["moments"].shape[2:])
        else:
            batch = {"pixel_values": data.pixel_values(shown)}
            shape = self.sizes(batch["pixel_values"])
        batch["drawn"] = torch.randn(shape, generator=generator)
        steps = self.scheduler.num_train_timesteps
        if validating:
            levels = (torch.arange(len(shown)) + number) % LEVELS
            batch["timesteps"] = ((levels + 0.5) * steps / LEVELS).long()
        else:
            batch["timesteps"] = torch.randint(steps, (len(shown),), generator=generator)
        batch["noise"] = torch.randn(shape, generator=generator)
        if self.settings.noise_offset and not validating:
            offset = torch.randn(*shape[:2], 1, 1, generator=generator)
            batch["noise"] = batch["noise"] + self.settings.noise_offset * offset
        dropped = torch.rand(len(shown), generator=generator) < (0 if validating else self.settings.caption_dropout)
        if self.reads_captions:
            captions = data.captions(shown, number)
            captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
            batch["input_ids"] = self.pipeline.tokenize(captions)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            batch["kept"] = ~dropped
        if self.pipeline.unet.config.addition_embed_type is not None:
            batch["time_ids"] = self._time_ids(data, shown)
        if self.model.class_names:
            batch["class_labels"] = self._classes(data, shown) * ~dropped
        if self.pipeline.inpaints:
            if self.cached:
                batch["pixel_values"] = data.pixel_values(shown)
            batch["mask"] = draw_masks(len(shown), shown[0].size, generator)
            batch["drawn_masked"] = torch.randn(shape, generator=generator)
        return batch

    def losses(self, network: nn.Module, batch: Batch) -> Batch:
        """The error of the prediction at each image's own timestep."""
        scheduler, timesteps = self.scheduler, batch["timesteps"]
        latents = self._drawn_latents(batch)
        noisy_latents = add_noise(latents, batch["noise"], timesteps, scheduler.alphas_cumprod)
        told = self._told(batch)
        if "class_labels" in batch:
            told["class_labels"] = batch["class_labels"]
        shown = self._shown(batch, latents) if "mask" in batch else []
        model_output = network(torch.cat([noisy_latents, *shown], dim=1), timesteps, **told)
        if self.settings.loss == "perceptual":
            per_image = self._perceptual(model_output, noisy_latents, latents, timesteps)
        else:
            targets = {
                "epsilon": lambda: batch["noise"],
                "v_prediction": lambda: velocity(latents, batch["noise"], timesteps, scheduler.alphas_cumprod),
                "sample": lambda: latents,
            }
            gamma = self.settings.snr_gamma
            weights = min_snr_weights(scheduler.alphas_cumprod, timesteps, gamma, self.prediction_type)
            target = targets[self.prediction_type]()
            per_image = denoising_loss(model_output, target, weights, self.settings.loss or "mse")
        told_apart = by_timestep(per_image, timesteps, scheduler.num_train_timesteps)
        return {"loss": per_image.mean(), "by_timestep": told_apart}

    def sample(self) -> Tensor:
        """The sample prompts as pictures, always from the same noise."""
        shown = same_size(self.data.spread(SHOWN))
        prompts = list(self.settings.sample_prompts) or self.data.captions(shown, 0)
        width, height = shown[0].size
        negative_prompts = [""] * len(prompts)
        told = self.pipeline.encode_prompt(prompts, negative_prompts, (height, width))
        generators = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
        canvas = None
        if self.pipeline.inpaints:
            pixel_values = self.data.pixel_values([shown[number % len(shown)] for number in range(len(prompts))])
            masks = draw_masks(len(prompts), (width, height), torch.Generator().manual_seed(0))
            noise, canvas = self.pipeline.prepare_canvas(pixel_values, masks, generators)
        else:
            noise = self.pipeline.prepare_latents(generators, height, width)
        used = OF_NEW if self.settings.config is not None else GenerationDefaults(**self.model.defaults)
        how = DenoiseSettings(num_inference_steps=used.num_inference_steps, guidance_scale=used.guidance_scale)
        latents = self.pipeline.denoise(noise, *told, how, generators, canvas=canvas)
        return sheet(self.pipeline.decode(latents), columns=4)

    def _classes(self, data: Pictures, shown: Sequence[Shown]) -> Tensor:
        """Class of each picture, (B,) int64; 0 of one without a label."""
        labels = [data.example(each.index).label for each in shown]
        if unknown := set(labels) - {None, *self.model.class_names}:  # further on in a stream
            raise SdcliError(f"the model has no class {unknown.pop()!r}", hint="the first pictures must name all")
        return torch.tensor([0 if label is None else 1 + self.model.class_names.index(label) for label in labels])

    def _perceptual(self, model_output: Tensor, noisy_latents: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """How differently CLIP sees the picture that the prediction means and the true one, (B,)."""
        alpha_bar = self.scheduler.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
        predicted = to_original_sample(model_output.float(), noisy_latents, alpha_bar, self.prediction_type)
        return perceptual_error(self._features(predicted), self._features(latents))

    def _features(self, latents: Tensor) -> list[Tensor]:
        """What every layer of CLIP's image tower makes of the pictures of latents."""
        if self.pipeline.vae is None:
            pixel_values = latents.expand(-1, 3, -1, -1)  # grey ones too
        else:
            pixel_values = self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor)
        tower = self.pipeline.image_encoder.vision_model
        return list(tower(normalize_for_clip(pixel_values, tower.config.image_size)).hidden_states[1:])

    @torch.no_grad()
    def _drawn_latents(self, batch: Batch) -> Tensor:
        """Latents as the VAE's posterior draws them, scaled, (B, C, h, w)."""
        if self.pipeline.vae is None:
            return self.pipeline.encode(batch["pixel_values"])
        moments = batch["moments"] if "moments" in batch else self._encode(batch["pixel_values"])
        return self._draw(moments, batch["drawn"])

    def _draw(self, moments: Tensor, drawn: Tensor) -> Tensor:
        """Latents of moments (B, 2C, h, w) and standard normal numbers (B, C, h, w), scaled."""
        mean, deviation = moments.to(drawn.device).chunk(2, dim=1)
        return (mean + deviation * drawn) * self.pipeline.vae.config.scaling_factor

    @torch.no_grad()
    def _shown(self, batch: Batch, latents: Tensor) -> list[Tensor]:
        """What a UNet for inpainting is shown beside noisy latents: the mask, and the latents of what is not under it.

        Masks are (B, 1, h, w).
        """
        mask = batch["mask"]
        masked = self._draw(self._encode(batch["pixel_values"] * (mask < 0.5)), batch["drawn_masked"])
        return [nn.functional.interpolate(mask, size=latents.shape[2:]), masked]

    def _time_ids(self, data: Pictures, shown: Sequence[Shown]) -> Tensor:
        """What a UNet of SDXL is told of the sizes of pictures, (B, 6); of the refiner, with a score, (B, 5)."""
        told = torch.tensor([data.sizes_told(each) for each in shown])
        if takes_score(self.pipeline.unet.config, self.pipeline.text_encoder_2.config.projection_dim):
            return torch.cat([told[:, :4].float(), torch.full((len(shown), 1), AESTHETIC_SCORES[0])], dim=1)
        return told

    @torch.no_grad()
    def _encode(self, pixel_values: Tensor) -> Tensor:
        """Mean and standard deviation of the latents of pictures, (B, 2C, h, w) in float32 on the CPU."""
        posterior = self.pipeline.vae.encode(pixel_values.to(self.pipeline.vae.device))
        return torch.cat([posterior.mean, (0.5 * posterior.log_variance).exp()], dim=1).float().cpu()

    def _moments(self, data: Pictures, shown: Sequence[Shown]) -> Tensor:
        """What `_encode` gives for pictures, from memory, from the cache, or computed now."""
        found: dict[Shown, Tensor] = {}
        for each in shown:
            known = self._latents.get((data, each))
            if known is None and each.composition is None:
                kept = self.store.get_array(self._key(data, each))
                known = None if kept is None else torch.from_numpy(kept)
            if known is not None:
                found[each] = known
        missing = [each for each in dict.fromkeys(shown) if each not in found]
        if missing:
            fresh = dict(zip(missing, self._encode(data.pixel_values(missing)), strict=True))
            self.store.put_arrays(
                (self._key(data, each), moments.numpy()) for each, moments in fresh.items() if each.composition is None
            )
            found |= fresh
        for each, moments in found.items():
            if len(self._latents) * moments.nbytes < KEPT_BYTES:
                self._latents[data, each] = moments
        return torch.stack([found[each] for each in shown])

    def _key(self, data: Pictures, shown: Shown) -> str:
        """Everything that the latents of a picture follow from."""
        sha256 = data.pictures[shown.index].sha256
        return f"latents 1 {sha256} {data.crop(shown)} {shown.size} {shown.flipped} {self._vae_hash}"

    def _told(self, batch: Batch) -> dict[str, Any]:
        """What the network is told of the captions: arguments of `UNet.forward`."""
        if "input_ids" not in batch:
            return {}
        if isinstance(self.network, ReadingUnet):  # reads them itself, so that gradients reach what reads
            return {name: batch[name] for name in ("input_ids", "time_ids", "kept") if name in batch}
        features, pooled = self._captions.features(batch["input_ids"])
        return text_arguments(features, pooled, batch.get("time_ids"), batch.get("kept"))
