"""Where a trajectory stands: which call comes next, and what the calls before left behind."""

import torch
from torch import Tensor


class Trajectory:
    """The state between the calls of `step`.

    Attributes:
        timesteps: what the model is told, one per call, as a tensor on the device that was asked for.
        levels: noise over signal of the sample at each call, and after the last.
        step_index: the call that comes next; None before the first.
        begin_index: the call to begin with, if that was set.
        memory: what the sampler kept from the calls before.
    """

    def __init__(self, timesteps: Tensor, levels: list[float], device: str | torch.device | None = None):
        self._told: list[float] = timesteps.tolist()  # read here once, so that no step has to wait for the device
        self.timesteps = timesteps.to(device)
        self.levels = levels
        self.step_index: int | None = None
        self.begin_index: int | None = None
        self.memory: tuple = ()

    def index_for_timestep(self, timestep: Tensor | float) -> int:
        """The call that begins at a timestep.

        Where two calls are told the same it is the second, which begins a step (the first ends one); but the very first
        timestep always is call 0.

        Raises:
            ValueError: no call is told that timestep.
        """
        told = float(timestep)
        if told == self._told[0]:
            return 0
        calls = [call for call, other in enumerate(self._told) if other == told][:2]
        if not calls:
            raise ValueError(f"timestep {told:g} is not one of this scheduler's {len(self._told)} timesteps")
        return calls[-1]

    def locate(self, timestep: Tensor | float | None) -> int:
        """Which call this is; a timestep out of turn begins a trajectory there, with nothing remembered.

        A timestep on another device is believed to be the next one: looking at it would make the device wait.
        """
        index = self.step_index
        if index is not None and index < len(self._told):
            if timestep is None or isinstance(timestep, Tensor) and timestep.device.type != "cpu":
                return index
            if float(timestep) == self._told[index]:
                return index
            index = self.index_for_timestep(timestep)
        elif self.begin_index is not None:
            index = self.begin_index
        else:
            index = 0 if timestep is None else self.index_for_timestep(timestep)
        self.step_index, self.memory = index, ()
        return index

    def levels_of(self, timesteps: Tensor) -> list[float]:
        """Noise over signal at timesteps of the plan; at the begin or the present call where those are set."""
        if self.begin_index is None:
            calls = [self.index_for_timestep(timestep) for timestep in timesteps.flatten().tolist()]
        else:
            calls = [self.begin_index if self.step_index is None else self.step_index] * timesteps.numel()
        return [self.levels[call] for call in calls]

    def advance(self, index: int, memory: tuple) -> None:
        """Call `index` is done."""
        self.step_index, self.memory = index + 1, memory
