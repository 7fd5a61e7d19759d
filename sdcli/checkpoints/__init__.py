"""Folders, latents files and weights on disk to components and back: the only home of safetensors.

What lies on disk is the standard diffusers folder with stock class names; `stock` holds the table between those and
our classes.
"""

from sdcli.checkpoints.clip import load_clip, save_clip
from sdcli.checkpoints.folder import load_component, load_components, load_pipeline
from sdcli.checkpoints.latents import load_latents, save_latents
from sdcli.checkpoints.saving import save_component, save_components, save_pipeline
from sdcli.checkpoints.weights import sha256_of, weight_files

__all__ = [
    "load_clip",
    "load_component",
    "load_components",
    "load_latents",
    "load_pipeline",
    "save_clip",
    "save_component",
    "save_components",
    "save_latents",
    "save_pipeline",
    "sha256_of",
    "weight_files",
]
