"""Reading and writing: token order, first in first out, erase-and-add, and the pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ttm_jax.machine.memory import (
    NUM_WRITES,
    READS,
    WRITES,
    EraseAddWrite,
    Read,
    SummaryWrite,
    add_positional_info,
    add_write_positional_info,
    concat_for_write,
    concat_memory_input,
    concat_write,
    erase_add_write,
    erase_and_add,
    make_write,
    read_operation,
    write_operation,
)
from ttm_jax.machine.summarize import token_summarize

pytestmark = pytest.mark.usefixtures("nans_are_errors")

B, M, R, N, D, HEADS, W = 3, 6, 4, 5, 12, 3, NUM_WRITES
# A softmax over tokens is invariant to these: their gradients are zero but for rounding.
INVARIANT = {"summarizer/mlp/out/bias", "summarizer/attention/key/bias", "select/out/bias"}


def read_module(kind):
    return Read(R, kind, HEADS)


def write_module(kind):
    return make_write(kind, num_heads=HEADS)


@pytest.fixture(scope="module")
def arrays(normal):
    """Memory, output, input."""
    return normal(0, B, M, D), normal(1, B, R, D), normal(2, B, N, D)


@pytest.fixture(scope="module")
def reads(arrays, random_params):
    """Parameters and jitted apply by kind."""
    memory, _, tokens = arrays

    def make(kind):
        module = read_module(kind)
        params = random_params(module, memory, tokens)
        return params, jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs))

    return {kind: make(kind) for kind in READS}


@pytest.fixture(scope="module")
def writes(arrays, random_params):
    """Parameters and jitted apply by kind."""

    def make(kind):
        module = write_module(kind)
        params = random_params(module, *arrays)
        return params, jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs))

    return {kind: make(kind) for kind in WRITES}


def test_order_of_tokens(arrays):
    memory, output, tokens = map(np.asarray, arrays)
    np.testing.assert_array_equal(concat_memory_input(*arrays[::2]), np.concatenate([memory, tokens], 1))
    np.testing.assert_array_equal(concat_for_write(*arrays), np.concatenate([memory, output, tokens], 1))


@pytest.mark.parametrize("new", [1, 4, 6, 9])
def test_concat_keeps_the_latest_tokens_in_order(new):
    queue = list(range(6))
    memory, tokens = jnp.arange(6.0).reshape(1, 6, 1), 6 + jnp.arange(float(new)).reshape(1, new, 1)
    expected = (queue + list(range(6, 6 + new)))[-6:]
    np.testing.assert_array_equal(concat_write(memory, tokens)[0, :, 0], expected)


def test_concat_keeps_memory_in_float32(arrays):
    memory, output, _ = arrays
    assert concat_write(memory, output.astype(jnp.bfloat16)).dtype == jnp.float32


def test_erase_and_add_is_a_loop_over_writes(normal):
    generator = np.random.default_rng(3)
    memory, add = normal(4, B, M, D), normal(5, B, W, D)
    weights, erase = generator.uniform(size=(B, W, M)), generator.uniform(size=(B, W, D))
    expected = np.array(memory, np.float64)
    for b in range(B):
        for m in range(M):
            for w in range(W):
                expected[b, m] *= 1 - weights[b, w, m] * erase[b, w]
            for w in range(W):
                expected[b, m] += weights[b, w, m] * np.asarray(add[b, w], np.float64)
    found = erase_and_add(memory, jnp.float32(weights), jnp.float32(erase), add)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_zero_weights_return_memory_bit_for_bit(normal):
    memory, erase, add = normal(6, B, M, D), normal(7, B, W, D), 1e6 * normal(8, B, W, D)
    found = erase_and_add(memory, jnp.zeros((B, W, M)), jax.nn.sigmoid(erase), add)
    np.testing.assert_array_equal(found, memory)


def test_full_erase_replaces_the_selected_slot_alone(normal):
    memory, add = normal(9, B, M, D), normal(10, B, 1, D)
    found = erase_and_add(memory, jnp.zeros((B, 1, M)).at[:, :, 2].set(1), jnp.ones((B, 1, D)), add)
    np.testing.assert_array_equal(found, memory.at[:, 2].set(add[:, 0]))


def zero_write(params):
    """Parameters whose add vector is zero and whose erase vector is sigmoid(-100)."""
    zero = jax.tree.map(jnp.zeros_like, params["add_channels"]["out"])
    never = zero | {"bias": zero["bias"] - 100}
    channels = dict(add_channels=zero, erase_channels=never)
    return params | {name: params[name] | {"out": out} for name, out in channels.items()}


def test_zero_write_leaves_memory_unchanged(arrays, writes):
    params, write = writes["erase_add"]
    np.testing.assert_array_equal(write(zero_write(params), *arrays), arrays[0])


def test_scenic_zero_write_adds_one(arrays, random_params):
    module = EraseAddWrite(compat="scenic")
    params = jax.tree.map(jnp.zeros_like, random_params(module, *arrays))
    np.testing.assert_array_equal(jax.jit(module.apply)({"params": params}, *arrays), arrays[0] + 1)


def test_read_is_the_summary_of_placed_memory_and_input(arrays, reads):
    memory, _, tokens = arrays
    params, read = reads["mlp"]
    placed = add_positional_info(params["positions"], memory, tokens)
    np.testing.assert_allclose(
        placed, np.concatenate([memory, tokens], 1) + np.asarray(params["positions"]["embedding"]), rtol=1e-6
    )
    expected = token_summarize(params["summarizer"], placed, R)
    np.testing.assert_allclose(read(params, memory, tokens), expected, rtol=1e-5, atol=1e-5)


def test_write_is_the_summary_of_placed_memory_output_and_input(arrays, writes):
    params, write = writes["mlp"]
    placed = add_write_positional_info(params["positions"], *arrays)
    expected = token_summarize(params["summarizer"], placed, M)
    np.testing.assert_allclose(write(params, *arrays), expected, rtol=1e-5, atol=1e-5)


def test_scenic_writes_memory_input_output(arrays, writes):
    memory, output, tokens = arrays
    params, write = writes["mlp"]
    scenic = SummaryWrite("mlp", HEADS, compat="scenic")
    ours = write(params, memory, output, tokens)
    theirs = jax.jit(scenic.apply)({"params": params}, memory, output, tokens)
    embedding = params["positions"]["embedding"]
    of_memory, of_output, of_input = jnp.split(embedding, [M, M + R], axis=1)
    exchanged = jnp.concatenate([of_memory, of_input, of_output], axis=1)
    moved = params | {"positions": {"embedding": exchanged}}
    again = jax.jit(scenic.apply)({"params": moved}, memory, output, tokens)
    np.testing.assert_allclose(again, ours, rtol=1e-5, atol=1e-5)
    assert not np.allclose(theirs, ours, rtol=1e-3)


def test_writing_nothing_and_queueing_take_no_parameters(arrays, writes):
    memory, output, _ = arrays
    for kind, expected in (("none", memory), ("concat", concat_write(memory, output))):
        params, write = writes[kind]
        assert params == {}
        np.testing.assert_array_equal(write(params, *arrays), expected)


def test_pure_functions_are_the_modules(arrays, reads, writes):
    memory, output, tokens = arrays
    for kind in READS:
        params, read = reads[kind]
        found = read_operation(params, memory, tokens, r=R, kind=kind, num_heads=HEADS)
        np.testing.assert_array_equal(found, read(params, memory, tokens))
    for kind in WRITES:
        params, write = writes[kind]
        found = write_operation(params, memory, output, tokens, kind=kind, num_heads=HEADS)
        np.testing.assert_array_equal(found, write(params, *arrays))
    params, write = writes["erase_add"]
    np.testing.assert_array_equal(erase_add_write(params, *arrays), write(params, *arrays))


def test_positions_can_be_left_out(arrays):
    memory, _, tokens = arrays
    for module, inputs in (
        (Read(R, "mlp", positions=False), (memory, tokens)),
        (make_write("mlp", positions=False), arrays),
        (make_write("erase_add", positions=False), arrays),
    ):
        params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        assert "positions" not in params


@pytest.mark.parametrize("kind", READS)
def test_rows_of_a_batch_do_not_mix_in_a_read(kind, arrays, reads, normal):
    memory, _, tokens = arrays
    params, read = reads[kind]
    noise = 100 * normal(11, N, D)
    before, after = read(params, memory, tokens), read(params, memory, tokens.at[1].add(noise))
    np.testing.assert_array_equal(before[::2], after[::2])
    assert not np.array_equal(before[1], after[1])


@pytest.mark.parametrize("kind", WRITES)
def test_rows_of_a_batch_do_not_mix_in_a_write(kind, arrays, writes, normal):
    params, write = writes[kind]
    perturbed = [x.at[1].add(100 * normal(12, *x.shape[1:])) for x in arrays]
    before, after = write(params, *arrays), write(params, *perturbed)
    np.testing.assert_array_equal(before[::2], after[::2])
    assert not np.array_equal(before[1], after[1])


@pytest.mark.parametrize("kind", ["mlp", "query", "pooling", "erase_add"])
def test_every_parameter_of_a_write_receives_gradient(kind, arrays, writes, normal):
    params, write = writes[kind]
    cotangent = normal(13, B, M, D)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(write(p, *arrays) * cotangent)))(params)
    sizes = {name: float(jnp.abs(leaf).max()) for name, leaf in flatten_dict(gradient, sep="/").items()}
    largest = max(sizes.values())
    assert {name for name, size in sizes.items() if size < 1e-5 * largest} == INVARIANT & sizes.keys()


@pytest.mark.parametrize(
    ("kind", "compat", "seen"),
    [
        ("mlp", None, (True, True, True)),
        ("query", None, (True, True, True)),
        ("pooling", None, (True, True, True)),
        ("erase_add", None, (True, True, True)),
        ("erase_add", "scenic", (True, True, False)),
        ("concat", None, (True, True, False)),
        ("none", None, (True, False, False)),
    ],
)
def test_what_a_write_sees(kind, compat, seen, arrays, writes, normal):
    """Of memory, output and input: all of them, but where the mode says otherwise."""
    params, write = writes[kind]
    if compat:
        module = make_write(kind, num_heads=HEADS, positions=False, compat=compat)
        params = jax.tree.map(jnp.copy, params)
        del params["positions"]
        for name in ("erase_tokens", "add_tokens"):
            params[name]["hidden"]["kernel"] = params[name]["hidden"]["kernel"][:R]
        write = jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs))
    before = write(params, *arrays)
    for i, expected in enumerate(seen):
        changed = list(arrays)
        changed[i] = arrays[i] + normal(14, *arrays[i].shape)
        assert np.allclose(write(params, *changed), before, atol=1e-3) != expected


@pytest.mark.parametrize("kind", sorted(set(WRITES) - {"query"}))
def test_a_write_gives_memory_of_the_same_shape_in_float32(kind, arrays):
    module = make_write(kind, num_heads=HEADS, dtype=jnp.bfloat16)
    memory, output, tokens = arrays
    half = output.astype(jnp.bfloat16), tokens.astype(jnp.bfloat16)
    written, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), memory, *half)
    assert written.shape == memory.shape
    assert written.dtype == jnp.float32


def test_unknown_write_is_refused():
    with pytest.raises(ValueError, match=r"write must be one of .*erase_add, concat, none, got 'append'"):
        make_write("append")
