"""The devices of a training step: one, or several that divide its batch between them."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ttm_jax.hardware.detect import usable_cores
from ttm_jax.training.config import ConfigError

DATA_AXIS = "data"  # of a mesh, over which a batch is divided
MIN_EXAMPLES = 8  # of a batch: a device of the processor has so many at least, and takes no fewer at a time


@dataclass(frozen=True)
class Placement:
    """Where a training step is computed.

    Attributes:
        devices: the batch is divided between them; each has the whole state.
        share: how many examples of a batch each has.
        micro_batches: parts in which a device takes its share, one after the other, where no more are asked for.
        committed: whether arrays go to the device by name; one device that JAX would choose needs no name.
    """

    devices: tuple[jax.Device, ...]
    share: int
    micro_batches: int
    committed: bool

    def at_least(self, micro_batches: int) -> int:
        """The number of micro-batches that a share is divided into, where at least so many are asked for."""
        wanted = max(micro_batches, self.micro_batches)
        return next((n for n in range(wanted, self.share) if self.share % n == 0), self.share)

    @cached_property
    def mesh(self) -> Mesh | None:
        """What `train_step` takes; None of one device."""
        if len(self.devices) == 1:
            return None
        return Mesh(np.array(self.devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))

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

    On the processor, where no number is given, on as many devices as JAX sees of it and divide the batch, but with at
    least 8 examples each; on one accelerator. One device, where it is not asked for by platform, is the default one.

    Args:
        batch_size: B.
        platform: "cpu", "gpu", ...; that of the default device where None.
        num_devices: how many divide the batch.

    Raises:
        ConfigError: if there are not so many devices, or they don't divide the batch.
    """
    (default,) = jnp.zeros(()).devices()
    devices = jax.local_devices(backend=platform or default.platform)
    if platform is None:
        devices = [default, *(device for device in devices if device != default)]
    on_processor = devices[0].platform == "cpu"
    if num_devices is None:
        most = min(len(devices), batch_size // MIN_EXAMPLES) if on_processor else 1
        num_devices = _largest_divisor(batch_size, most)
    if num_devices > len(devices):
        raise ConfigError(f"--devices {num_devices}: JAX sees {len(devices)} of the kind {devices[0].platform}")
    if batch_size % num_devices:
        raise ConfigError(f"--devices {num_devices} does not divide data.batch_size {batch_size}")
    share = batch_size // num_devices
    micro_batches = _largest_divisor(share, share // MIN_EXAMPLES) if on_processor and num_devices > 1 else 1
    return Placement(tuple(devices[:num_devices]), share, micro_batches, committed=platform is not None)


def mean_over_devices(tree: Any, axis: str, weight: jax.Array) -> Any:
    """The mean of arrays over the devices of a mesh's axis, by the weight of each; for use in `jax.shard_map`.

    All are added up as one array: a hundred small sums take as long as a tenth of a step of configs/quick.toml.
    """
    flat, unravel = ravel_pytree(tree)
    total = jax.lax.psum(weight.astype(flat.dtype) * jnp.append(flat, 1), axis)
    return unravel(total[:-1] / total[-1])


def divide_gradients(gradients: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`gradients(everywhere, batch)` computed by each device of a mesh on its share of the batch.

    Its first result is the same everywhere, as of `mean_over_devices`, its second divided as the batch is.
    """
    everywhere, divided = PartitionSpec(), PartitionSpec(*mesh.axis_names)
    # Were it tracked what varies over the devices, each step of the backward scan would add gradients up over them.
    return jax.shard_map(
        gradients, mesh=mesh, in_specs=(everywhere, divided), out_specs=(everywhere, divided), check_vma=False
    )


def divide_processor(num_devices: int | None = None) -> None:
    """Makes the processor several devices to JAX: one a core that may be used, where no number is given.

    To be called before JAX is first used; does nothing afterwards, or where JAX was told a number of them otherwise.
    A core that has a share of the batch to itself does not wait for the others at each operation.
    """
    told = jax.config.values["jax_num_cpu_devices"] > 0
    told = told or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if num_devices is None and told:
        return
    with contextlib.suppress(RuntimeError):  # JAX is in use already
        jax.config.update("jax_num_cpu_devices", num_devices or usable_cores() or 1)


def _largest_divisor(number: int, most: int) -> int:
    """Of `number`, at most `most`, at least 1."""
    return max(divisor for divisor in range(1, max(1, most) + 1) if number % divisor == 0)
