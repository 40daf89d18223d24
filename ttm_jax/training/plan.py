"""What a training step is run with so that it fits the memory. Knows neither JAX nor PyTorch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


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
    remat: str | None = None
    device: str | None = None

    def describe(self, batch_size: int, num_devices: int = 1) -> str:
        """Say it in words: "4 micro-batches of 16", of several devices "4 micro-batches of 8 on each of 2 devices"."""
        size = batch_size // (self.micro_batches * num_devices)
        parts = [f"{self.micro_batches} micro-batches of {size}" if self.micro_batches > 1 else f"batches of {size}"]
        if num_devices > 1:
            parts[0] += f" on each of {num_devices} devices"
        if self.remat is not None:
            parts.append(f'rematerialisation "{self.remat}"')
        if self.device is not None:
            parts.append(f"on the {self.device.upper()}")
        return ", ".join(parts)


def make_plans(
    share: int, micro_batches: int = 1, remats: Sequence[str] = (), device: str | None = None
) -> Iterator[StepPlan]:
    """Give the plans of one device, each of which takes less memory than the one before.

    Micro-batches of half the size, then stronger rematerialisation. All take one optimiser step on the same batch.

    Args:
        share: a device's examples of the batch, which micro-batches divide.
        micro_batches: of the first plan.
        remats: the policies that keep less than the config's, the strongest last.
        device: of all plans.
    """
    yield StepPlan(micro_batches, device=device)
    for n in range(micro_batches + 1, share + 1):
        if share % n == 0 and n >= 2 * micro_batches:
            micro_batches = n
            yield StepPlan(n, device=device)
    for remat in remats:
        yield StepPlan(micro_batches, remat, device)
