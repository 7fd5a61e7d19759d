"""Settings in pictures that other programs made, in our words: read only, as far as they have a counterpart here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sdcli.foreign_metadata import a1111, comfyui, invokeai, mflux, sd_scripts, stable_diffusion_cpp
from sdcli.foreign_metadata.translation import ForeignMetadata

# What each reader takes out of a picture's texts, by their names.
READERS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, str]], ForeignMetadata | None]], ...] = (
    (("invokeai_metadata",), invokeai.read),
    (("sd-metadata",), invokeai.read_legacy),
    (("prompt", "workflow"), comfyui.read),
    (("parameters", "xmp"), stable_diffusion_cpp.read),
    (("parameters",), a1111.read),
    (("UserComment",), mflux.read),
    (sd_scripts.KEYS, sd_scripts.read),
)


def read_foreign(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """What the texts inside a picture say of its making; None where no program is recognised.

    Some pictures hold the texts of two programs: nodes of ComfyUI write A1111's as well. The first that tells the
    prompt is taken.

    Args:
        texts: by name, as `images.read_text` gives them.
    """
    first = None
    for names, read in READERS:
        if found := read(texts):
            unread = {name: text for name, text in texts.items() if name not in names}
            found = ForeignMetadata(found.maker, found.settings, {**unread, **found.others})
            if "prompt" in found.settings:
                return found
            first = first or found
    return first
