"""The devices of a training step: a mesh of those that divide the batch and those that divide the parameters."""

import contextlib
import os
import re
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

DATA_AXIS, MODEL_AXIS = "data", "model"  # of a mesh: the batch is divided over one, parameters over the other
MIN_EXAMPLES = 8  # of a batch: a device of the processor has so many at least, and takes no fewer at a time


@dataclass(frozen=True)
class Placement:
    """Where a training step is computed.

    Attributes:
        devices: [data, model] of the mesh, row by row.
        share: how many examples of a batch those of one place of the data axis have.
        micro_batches: parts in which a share is taken, one after the other, where no more are asked for.
        num_model: how many devices divide the parameters.
    """

    devices: tuple[jax.Device, ...]
    share: int
    micro_batches: int
    num_model: int = 1

    @cached_property
    def mesh(self) -> Mesh:
        """The devices as a mesh of the axes "data" and "model"."""
        grid = np.array(self.devices).reshape(-1, self.num_model)
        return Mesh(grid, (DATA_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))

    @property
    def step_mesh(self) -> Mesh | None:
        """What `train_step` takes: the mesh, where it has several devices."""
        return self.mesh if len(self.devices) > 1 else None

    @property
    def batch_sharding(self) -> NamedSharding:
        """Divided over the data axis by the first axis."""
        return NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))

    def replicate(self, tree: Any) -> Any:
        """Put arrays on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def divide(self, batch: Any) -> Any:
        """Put arrays on the devices, divided over the data axis by their first axis."""
        return jax.device_put(batch, self.batch_sharding)


def place(
    batch_size: int, platform: str | None = None, num_devices: int | None = None, num_model: int = 1
) -> Placement:
    """Choose where steps on batches of so many examples are computed.

    On the processor, where no number is given, on as many devices as JAX sees of it and divide the batch, but with at
    least 8 examples each; on one accelerator. One device, where it is not asked for by platform, is the default one.

    Args:
        batch_size: B.
        platform: "cpu", "gpu", ...; that of the default device where None.
        num_devices: how many divide the batch.
        num_model: how many divide the parameters, at each place of the batch.

    Raises:
        ConfigError: if there are not so many devices, or they don't divide the batch.
    """
    (default,) = jnp.zeros(()).devices()
    devices = jax.local_devices(backend=platform or default.platform)
    if platform is None:
        devices = [default, *(device for device in devices if device != default)]
    on_processor = devices[0].platform == "cpu"
    if num_devices is None:
        most = min(len(devices) // num_model, batch_size // MIN_EXAMPLES) if on_processor else 1
        num_devices = _largest_divisor(batch_size, most)
    if num_devices * num_model > len(devices):
        asked = f"--devices {num_devices}" + (f" x {num_model}" if num_model > 1 else "")
        raise ConfigError(f"{asked}: JAX sees {len(devices)} of the kind {devices[0].platform}")
    if batch_size % num_devices:
        raise ConfigError(f"--devices {num_devices} does not divide data.batch_size {batch_size}")
    share = batch_size // num_devices
    micro_batches = _largest_divisor(share, share // MIN_EXAMPLES) if on_processor and num_devices > 1 else 1
    return Placement(tuple(devices[: num_devices * num_model]), share, micro_batches, num_model)


def shardings_of(tree: Any, mesh: Mesh, rules: tuple[tuple[str, PartitionSpec], ...]) -> Any:
    """Give the sharding of each array of a tree, or of its shapes, by the end of its path.

    The first rule that matches counts; an array that its axes don't divide is replicated, as are those without a rule.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.search(f"(^|/){pattern}$", name):
                return NamedSharding(mesh, spec if _divides(mesh, spec, leaf.shape) else PartitionSpec())
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _divides(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> bool:
    if len(spec) > len(shape):
        return False
    sizes = [1 if axis is None else mesh.shape[axis] for axis in spec]
    return all(length % size == 0 for length, size in zip(shape, sizes, strict=False))


def add_over_devices(tree: Any, mesh: Mesh) -> Any:
    """Add arrays up over the data axis of a mesh; for use in `divide_by_data`.

    Where parameters are whole, all are added up as one array: a hundred small sums take as long as a tenth of a step
    of configs/multiplication/quick.toml.
    """
    if mesh.shape[MODEL_AXIS] > 1:
        return jax.tree.map(lambda x: jax.lax.psum(x, DATA_AXIS), tree)
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.psum(flat, DATA_AXIS))


def divide_by_data(function: Callable[..., Any], mesh: Mesh, num_whole: int = 1) -> Callable[..., Any]:
    """Have each place of the data axis compute `function(*whole, share)` on its share.

    `num_whole` arguments are the same everywhere, the last is divided by its first axis. The first result is the same
    everywhere, as of `add_over_devices`, the second divided as the batch is.
    """
    everywhere, divided = PartitionSpec(), PartitionSpec(DATA_AXIS)
    # The partitioner takes care of parameters that are divided; where none are, nothing is left to it.
    axes = {DATA_AXIS} if mesh.shape[MODEL_AXIS] > 1 else {DATA_AXIS, MODEL_AXIS}
    # Were it tracked what varies over the devices, each step of the backward scan would add gradients up over them.
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(*[everywhere] * num_whole, divided),
        out_specs=(everywhere, divided),
        axis_names=axes,
        check_vma=False,
    )


def divide_processor(num_devices: int | None = None) -> None:
    """Make the processor several devices to JAX: one a core that may be used, where no number is given.

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
