"""A training run up to its first batch, to look at what it does there."""

from sdcli.data.pictures import Pictures
from sdcli.data.store import Store
from sdcli.training.assembly import start_model
from sdcli.training.material import Material, gather
from sdcli.training.parts import make_part
from sdcli.training.parts.base import Part
from sdcli.training.settings import TrainSettings


def part_of(run: TrainSettings) -> tuple[Part, Pictures]:
    """The part that a run trains, before its first update, and the pictures."""
    material = next(item for item in gather(run, Store(None)) if isinstance(item, Material))
    model = start_model(run, material.captions)
    data, _ = material.shown(run, model)
    return make_part(model, data, run, Store(None)), data
