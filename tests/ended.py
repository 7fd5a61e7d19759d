"""Training runs that are asked to end."""

from sdcli.training.events import Event, Interrupted, Stepped
from sdcli.training.settings import TrainSettings
from sdcli.training.stages import train


def train_until(updates: int, settings: TrainSettings) -> list[Event]:
    """What happens in a run that is asked to end after so many updates, and does."""
    events: list[Event] = []
    for event in train(settings, stop=lambda: sum(isinstance(each, Stepped) for each in events) == updates):
        events.append(event)
    assert events[-1] == Interrupted(updates)
    return events
