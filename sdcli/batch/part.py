"""The pictures of a run that one model makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sdcli.batch.checks import Schedulers, resolved
from sdcli.device import Placement
from sdcli.keys import Keys
from sdcli.metadata import Provenance
from sdcli.output import Picture
from sdcli.registry import ModelSpec
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings


@dataclass(frozen=True)
class Part:
    """The pictures of one model."""

    model: ModelSpec
    pictures: list[Picture]
    schedulers: Schedulers
    keys: Keys

    @property
    def is_foreign(self) -> bool:
        """Whether the model is of a family that we have no components for; its schedulers are not ours to choose."""
        return not self.schedulers

    def resolved(self, picture: Picture) -> Picture:
        """A picture with the settings that are really used."""
        return replace(picture, settings=resolved(picture.settings, self.schedulers))

    def key(self, picture: Picture) -> str:
        """The key of a picture, of whose settings it does not matter whether they are resolved."""
        return self.keys.of(resolved(picture.settings, self.schedulers))

    def provenance(self, settings: GenerateSettings, placement: Placement, how: RunSettings) -> Provenance:
        """What makes a picture of resolved settings."""
        fingerprints = self.keys.fingerprints(settings)
        return Provenance(
            model_name=Path(settings.model).name,
            device=str(placement.device),
            precision=placement.precision,
            weights=fingerprints.get(),
            training=fingerprints.training,
            key=self.keys.of(settings),
            computed=how.computed,
            inputs=self.keys.inputs(settings),
        )
