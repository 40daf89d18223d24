"""The machine on several devices: the memory to start from is divided as the tokens are, without being passed."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from parity.fast_jit import fast_jit
from ttm_jax.machine.machine import TokenTuringMachine

B, T, N, D = 4, 2, 3, 8
SIZES = dict(memory_size=5, process_size=4, num_layers=1, mlp_dim=8, num_heads=2, processing="mlp")
MACHINE = TokenTuringMachine(read="query", write="erase_add", **SIZES)
# The axes of the mesh, with their sizes, and those that divide the batch. The tests have two devices.
MESHES = {"one axis": (dict(data=2), P("data")), "two axes": (dict(data=2, model=1), P(("data", "model")))}
on_each_mesh = pytest.mark.parametrize(("axes", "spec"), MESHES.values(), ids=MESHES)


def loss(variables, tokens, reset):
    outputs, memory = MACHINE.apply(variables, tokens, reset_BxT=reset)
    return (outputs**2).sum() + (memory**2).sum()


def make_mesh(axes, kind):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


@pytest.fixture(scope="module")
def arrays(normal, random_params):
    """Variables, tokens and resets."""
    tokens = normal(0, B, T, N, D)
    reset = np.array([[0, 0], [0, 1], [1, 0], [0, 0]], bool)
    return {"params": random_params(MACHINE, tokens)}, tokens, reset


@pytest.fixture(scope="module")
def agrees(arrays):
    """`agrees(found)`: loss and gradients are those of one device."""
    whole = fast_jit(jax.value_and_grad(loss))(*arrays)

    def compare(found):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max() + 1e-5)

    return compare


@on_each_mesh
def test_explicit_axes(axes, spec, arrays, agrees):
    mesh = make_mesh(axes, AxisType.Explicit)
    with jax.set_mesh(mesh):
        shardings = (NamedSharding(mesh, P()), *[NamedSharding(mesh, spec)] * 2)
        agrees(fast_jit(jax.value_and_grad(loss))(*jax.device_put(arrays, shardings)))


def test_four_devices_along_two_axes(arrays):
    """Traced alone, for a mesh that need not be there: gradients, outputs and memory are divided as they ought."""
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):

        def divided(array):
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, P(("data", "model"))))

        variables, tokens, reset = arrays[0], *map(divided, arrays[1:])
        value, gradients = jax.eval_shape(jax.value_and_grad(loss), variables, tokens, reset)
        assert value.shape == ()
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(gradients))
        for array in jax.eval_shape(MACHINE.apply, variables, tokens):
            assert array.sharding.spec[0] == ("data", "model")


@on_each_mesh
def test_shard_map(axes, spec, arrays, agrees):
    def of_a_device(*arrays):
        return jax.value_and_grad(lambda *arrays: jax.lax.psum(loss(*arrays), spec[0]))(*arrays)

    mesh = make_mesh(axes, AxisType.Auto)
    agrees(fast_jit(jax.shard_map(of_a_device, mesh=mesh, in_specs=(P(), spec, spec), out_specs=P()))(*arrays))


@pytest.mark.parametrize("read", ["mlp", "pooling"])
@pytest.mark.parametrize("write", ["mlp", "query", "pooling", "concat", "none"])
def test_outputs_and_memory_are_divided_as_the_tokens(read, write, arrays):
    machine = TokenTuringMachine(read=read, write=write, learned_memory=False, **SIZES)
    mesh = make_mesh(dict(data=2), AxisType.Explicit)
    with jax.set_mesh(mesh):
        tokens = jax.device_put(arrays[1], NamedSharding(mesh, P("data")))
        variables = jax.eval_shape(machine.init, jax.random.key(0), arrays[1])
        for array in jax.eval_shape(machine.apply, variables, tokens):
            assert array.sharding.spec[0] == "data"
