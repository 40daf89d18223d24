"""What a training step is run with so that it fits the memory, and what comes next where it does not.

Micro-batches of half the size, then stronger rematerialisation, then the CPU, where the order begins anew. All of them
take one optimiser step on the same batch. Knows neither JAX nor PyTorch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ttm_jax.training.config import RematName


class OutOfMemory(RuntimeError):
    """Memory ran out, and there is nothing left to fall back to; the message is one line for the user."""


@dataclass(frozen=True)
class StepPlan:
    """How a training step is computed; to rounding, its result is the same.

    But for dropout, of which each micro-batch draws its own.

    Attributes:
        micro_batches: equal parts of the batch, or of a device's share of it, one after the other, whose gradients are
            added up.
        remat: what a machine step keeps for the backward pass; what the config says where None.
        device: "cpu"; the default device where None.
    """

    micro_batches: int = 1
    remat: RematName | None = None
    device: str | None = None

    def next(self, batch_size: int, remats: Sequence[RematName] = (), cpu: bool = False) -> "StepPlan | None":
        """The plan that takes less memory than this one; None where there is none.

        Args:
            batch_size: B, or a device's share of it, which micro-batches divide.
            remats: the policies that keep less than the config's, the strongest last.
            cpu: whether there is a CPU besides the default device.
        """
        for micro_batches in range(2 * self.micro_batches, batch_size + 1):
            if batch_size % micro_batches == 0:
                return StepPlan(micro_batches, self.remat, self.device)
        tried = 0 if self.remat is None else remats.index(self.remat) + 1
        if tried < len(remats):
            return StepPlan(self.micro_batches, remats[tried], self.device)
        return StepPlan(device="cpu") if cpu and self.device is None else None

    def describe(self, batch_size: int, num_devices: int = 1) -> str:
        """In words: "4 micro-batches of 16", of several devices "4 micro-batches of 8 on each of 2 devices"."""
        size = batch_size // (self.micro_batches * num_devices)
        parts = [f"{self.micro_batches} micro-batches of {size}" if self.micro_batches > 1 else f"batches of {size}"]
        if num_devices > 1:
            parts[0] += f" on each of {num_devices} devices"
        if self.remat is not None:
            parts.append(f'rematerialisation "{self.remat}"')
        if self.device is not None:
            parts.append(f"on the {self.device.upper()}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
