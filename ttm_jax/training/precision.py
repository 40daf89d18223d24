"""Dynamic loss scaling, for gradients in types of a narrow range (Micikevicius et al., arXiv 1710.03740)."""

import jax
import jax.numpy as jnp
from flax import struct


class LossScale(struct.PyTreeNode):
    """The factor of the loss whose gradients are computed; the step divides by it again.

    A step with a gradient that is not finite is skipped and halves the factor; `interval` good ones in a row double it.
    """

    value: jax.Array
    good_steps: jax.Array
    interval: int = struct.field(pytree_node=False, default=2000)

    @classmethod
    def create(cls, value: float = 2.0**15, interval: int = 2000) -> "LossScale":
        """Make the scale of a fresh state."""
        return cls(jnp.float32(value), jnp.int32(0), interval)

    def update(self, finite: jax.Array) -> "LossScale":
        """Give the scale of the next step, after one whose gradients were finite or not."""
        good_steps = jnp.where(finite, self.good_steps + 1, 0)
        doubles = good_steps == self.interval
        value = self.value * jnp.where(finite, jnp.where(doubles, 2.0, 1.0), 0.5)
        return self.replace(value=jnp.clip(value, 1.0, 2.0**24), good_steps=jnp.where(doubles, 0, good_steps))
