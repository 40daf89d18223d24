"""The devices of a training step: one, or several that divide its batch between them."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttm_jax.config import ConfigError
from ttm_jax.hardware import usable_cpus

DATA_AXIS = "data"  # of a mesh, over which a batch is divided
EXAMPLES = 8  # of a batch, that a device of the processor has at least, and that it takes at a time


@dataclass(frozen=True)
class Placement:
    """Where a training step is computed.

    Attributes:
        devices: the batch is divided between them; each has the whole state.
        micro_batches: parts in which each of several takes its share, one after the other.
        committed: whether arrays go to the device by name; one device that JAX would choose needs no name.
    """

    devices: tuple[jax.Device, ...]
    micro_batches: int
    committed: bool

    @property
    def mesh(self) -> Mesh | None:
        """What `train_step` takes; None of one device."""
        return Mesh(np.array(self.devices), (DATA_AXIS,)) if len(self.devices) > 1 else None

    def replicate(self, tree: Any) -> Any:
        """Arrays on every device."""
        return self._put(tree, PartitionSpec())

    def divide(self, batch: Any) -> Any:
        """Arrays divided between the devices by their first axis."""
        return self._put(batch, PartitionSpec(DATA_AXIS))

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        if (mesh := self.mesh) is not None:
            return jax.device_put(tree, NamedSharding(mesh, spec))
        return jax.device_put(tree, self.devices[0] if self.committed else None)


def place(batch_size: int, platform: str | None = None, num_devices: int | None = None) -> Placement:
    """Where steps on batches of so many examples are computed.

    On the processor, where no number is given, on as many devices as JAX sees of it that divide the batch, but with at
    least 8 examples each; on one accelerator.

    Args:
        batch_size: B.
        platform: "cpu", "gpu", ...; that of the default device where None.
        num_devices: how many divide the batch.

    Raises:
        ConfigError: if there are not so many devices, or they don't divide the batch.
    """
    (default,) = jnp.zeros(()).devices()
    devices = jax.local_devices(backend=platform or default.platform)
    on_processor = devices[0].platform == "cpu"
    if num_devices is None:
        most = min(len(devices), batch_size // EXAMPLES) if on_processor else 1
        num_devices = _largest_divisor(batch_size, most)
    if num_devices > len(devices):
        raise ConfigError(f"--devices {num_devices}: JAX sees {len(devices)} of the kind {devices[0].platform}")
    if batch_size % num_devices:
        raise ConfigError(f"--devices {num_devices} does not divide data.batch_size {batch_size}")
    share = batch_size // num_devices
    micro_batches = _largest_divisor(share, share // EXAMPLES) if on_processor and num_devices > 1 else 1
    return Placement(tuple(devices[:num_devices]), micro_batches, committed=platform is not None)


def mean_over_devices(tree: Any, axis: str, weight: jax.Array) -> Any:
    """The mean of arrays over the devices of a mesh's axis, by the weight of each; for use in `jax.shard_map`.

    All are added up as one array: a hundred small sums take as long as a tenth of the default config's step.
    """
    flat, unravel = ravel_pytree(tree)
    total = jax.lax.psum(weight.astype(flat.dtype) * jnp.append(flat, 1), axis)
    return unravel(total[:-1] / total[-1])


def divide_gradients(gradients: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`gradients(everywhere, batch)` computed by each device of a mesh on its share of the batch.

    Its first result is the same everywhere, as of `mean_over_devices`, its second divided as the batch is.
    """
    (axis,) = mesh.axis_names
    everywhere, divided = PartitionSpec(), PartitionSpec(axis)
    # Were it tracked what varies over the devices, each step of the backward scan would add gradients up over them.
    return jax.shard_map(
        gradients, mesh=mesh, in_specs=(everywhere, divided), out_specs=(everywhere, divided), check_vma=False
    )


def divide_processor(num_devices: int | None = None) -> None:
    """Makes the processor several devices to JAX: one a usable core where no number is given.

    To be called before JAX is first used; does nothing afterwards, or where JAX was told a number of them otherwise.
    A core that has a share of the batch to itself does not wait for the others at each operation.
    """
    told = jax.config.values["jax_num_cpu_devices"] > 0
    told = told or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if num_devices is None and told:
        return
    with contextlib.suppress(RuntimeError):  # JAX is in use already
        jax.config.update("jax_num_cpu_devices", num_devices or usable_cpus() or 1)


def _largest_divisor(number: int, most: int) -> int:
    """Of `number`, at most `most`, at least 1."""
    return max(divisor for divisor in range(1, max(1, most) + 1) if number % divisor == 0)
