"""Pictures as other programs write them: the same chunks and fields, the same order, the same words."""

import json
from io import BytesIO

from PIL import Image, PngImagePlugin

A1111 = (
    "a cat, <lora:snow:0.7>\nin the (snow:1.2)\nNegative prompt: a dog,\nblurry\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
    'Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, VAE: "a, b.safetensors", '
    'Denoising strength: 0.4, Clip skip: 2, Hires upscale: 2, Hires upscaler: Latent, TI hashes: "bad: c74b4e810b03", '
    'Lora hashes: "snow: 3bb1c6ee0d2f", Version: v1.10.1'
)
SD_CPP_LINE = (
    "Steps: 30, CFG scale: 5.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 1375127038, Size: 512x512, "
    "Model: v1-5-pruned-emaonly.safetensors, RNG: cuda, Sampler: dpm++2m karras, Clip skip: 2, "
    "Version: stable-diffusion.cpp"
)
SD_CPP = f"A sunflower field\nNegative prompt: Blue sky\n{SD_CPP_LINE}"
SD_CPP_JSON = {
    "schema": "sdcpp.image.params/v1",
    "generator": {"name": "stable-diffusion.cpp", "version": "master", "commit": "b290693"},
    "seed": 1375127038,
    "prompt": {"positive": "A sunflower field\nNegative prompt: is a part of this one", "negative": "Blue sky"},
    "sampling": {"steps": 30, "method": "dpm++2m", "scheduler": "karras", "guidance": {"txt_cfg": 5}},
    "loras": [{"name": "sun", "multiplier": 0.5}],
}


def comfy_node(kind: str, **inputs) -> dict:
    return {"inputs": inputs, "class_type": kind, "_meta": {"title": kind}}


COMFY = {
    "3": comfy_node(
        "KSampler",
        seed=156680208700286,
        steps=20,
        cfg=8,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        denoise=1,
        model=["10", 0],
        positive=["6", 0],
        negative=["7", 0],
        latent_image=["5", 0],
    ),
    "4": comfy_node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly.safetensors"),
    "5": comfy_node("EmptyLatentImage", width=512, height=768, batch_size=1),
    "6": comfy_node("CLIPTextEncode", text="a cat [in] snow", clip=["11", 0]),
    "7": comfy_node("CLIPTextEncode", text="a dog", clip=["11", 0]),
    "8": comfy_node("VAEDecode", samples=["3", 0], vae=["4", 2]),
    "9": comfy_node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    "10": comfy_node(
        "LoraLoader",
        lora_name="two.safetensors",
        strength_model=0.8,
        strength_clip=0.8,
        model=["12", 0],
        clip=["12", 1],
    ),
    "11": comfy_node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1]),
    "12": comfy_node(
        "LoraLoader", lora_name="one.safetensors", strength_model=1, strength_clip=0.5, model=["4", 0], clip=["4", 1]
    ),
}
WORKFLOW = {
    "last_node_id": 12,
    "nodes": [{"id": 3, "type": "KSampler", "widgets_values": [1, "fixed", 20]}],
    "links": [],
}
INVOKEAI = {
    "app_version": "5.6.0",
    "generation_mode": "txt2img",
    "positive_prompt": "a cat",
    "negative_prompt": "a dog",
    "width": 768,
    "height": 432,
    "seed": 356120443,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "cfg_rescale_multiplier": 0.7,
    "steps": 50,
    "scheduler": "dpmpp_2m_sde_k",
    "clip_skip": 1,
    "model": {"key": "a1b2", "hash": "blake3:0", "name": "dreamshaper", "base": "sd-1", "type": "main"},
    "loras": [{"model": {"key": "c3", "name": "snow", "type": "lora"}, "weight": 0.75}],
    "controlnets": [],
}
INVOKEAI_LEGACY = {
    "model": "stable diffusion",
    "model_weights": "stable-diffusion-1.5",
    "model_hash": "cc6cb271",
    "app_id": "invoke-ai/InvokeAI",
    "app_version": "2.3.0",
    "image": {
        "prompt": [{"prompt": "an owl [a dog] at night", "weight": 1}],
        "steps": 30,
        "cfg_scale": 7.5,
        "threshold": 0,
        "sampler": "k_lms",
        "width": 512,
        "height": 512,
        "seed": 7,
        "type": "txt2img",
    },
}
SD_SCRIPTS = {
    "prompt": "a cat",
    "seed": "4",
    "sampler": "k_euler_a",
    "steps": "50",
    "scale": "7.5",
    "negative-prompt": "a dog",
    "negative-scale": "3.0",
}
MFLUX = {
    "mflux_version": "0.11.1",
    "model": "dev",
    "base_model": "None",
    "seed": 2,
    "steps": 25,
    "guidance": 4.0,
    "height": 512,
    "width": 1024,
    "precision": "mlx.core.bfloat16",
    "quantize": 8,
    "lora_paths": ["a.safetensors", "b.safetensors"],
    "lora_scales": [0.5, 1.0],
    "image_path": "cat.png",
    "image_strength": 0.4,
    "controlnet_strength": None,
    "prompt": "a cat (asleep)",
    "negative_prompt": None,
}

IMAGE = Image.new("RGB", (8, 8), "red")


def png(texts: dict[str, str], kind: str = "tEXt") -> bytes:
    """A PNG with text chunks of a kind: tEXt, zTXt or iTXt."""
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        if kind == "iTXt":
            chunks.add_itxt(name, text, zip=True)
        else:
            chunks.add_text(name, text, zip=kind == "zTXt")
    content = BytesIO()
    IMAGE.save(content, "PNG", pnginfo=chunks)
    return content.getvalue()


def with_exif(file_format: str, comment: bytes | None = None, **fields: str) -> bytes:
    """A JPEG or WebP with a user comment and fields by their hexadecimal numbers, such as x0110."""
    exif = Image.Exif()
    for number, value in fields.items():
        exif[int(number[1:], 16)] = value
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    content = BytesIO()
    IMAGE.save(content, file_format, exif=exif.tobytes())
    return content.getvalue()


def comfy_webp() -> bytes:
    """ComfyUI has no field of its own in EXIF: the graph goes into the camera's model, the workflow into its make."""
    return with_exif("WEBP", x0110=f"prompt:{json.dumps(COMFY)}", x010F=f"workflow:{json.dumps(WORKFLOW)}")
