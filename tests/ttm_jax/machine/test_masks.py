"""Steps and tokens that are not valid, resets, the gate, and the memory that each step read.

Gradients with NaN in the padding, and pieces that are the whole, are among the cases of parity ("masks/...").
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.fast_jit import fast_jit
from ttm_jax.machine.machine import (
    SimpleTokenTuringMachine,
    SimpleTokenTuringMachineStep,
    TokenTuringMachine,
    TokenTuringMachineStep,
)
from ttm_jax.machine.memory import EraseAddWrite
from ttm_jax.machine.summarize import SUMMARIZERS, make_summarizer

pytestmark = pytest.mark.usefixtures("nans_are_errors")

B, T, N, D, M, R = 2, 3, 5, 12, 6, 4
SIZES = dict(memory_size=M, process_size=R, processing="mlp", num_layers=1, mlp_dim=8, num_heads=3)
CASES = {
    "mlp-mlp": TokenTuringMachine(**SIZES),
    "query-query-gate": TokenTuringMachine(read="query", write="query", gate="fixed", **SIZES),
    "pooling-pooling": TokenTuringMachine(read="pooling", write="pooling", **SIZES),
    "pooling-erase_add": TokenTuringMachine(read="pooling", write="erase_add", **SIZES),
    "mlp-concat": TokenTuringMachine(write="concat", remat=True, **SIZES),
    "simple": SimpleTokenTuringMachine(**SIZES),
}
TRUE = dict(valid_BxT=np.ones((B, T), bool), valid_BxTxN=np.ones((B, T, N), bool), reset_BxT=np.zeros((B, T), bool))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def arrays(normal):
    return np.array(normal(0, B, T, N, D)), np.array(normal(1, B, M, D))


@pytest.fixture(scope="module")
def runner(arrays, random_params):
    """By case: variables, and the jitted machine with all masks, those given in place of TRUE."""

    @cache
    def make(case):
        machine = CASES[case]
        variables = {"params": random_params(machine, arrays[0])}
        jitted = fast_jit(lambda x, memory, masks: machine.apply(variables, x, memory, return_memories=True, **masks))
        return variables, lambda x, memory, **masks: jax.device_get(jitted(x, memory, TRUE | masks))

    return make


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_masks_that_hide_nothing_change_nothing(case, runner, arrays):
    variables, run = runner(case)
    plain = fast_jit(CASES[case].apply)(variables, *arrays)
    assert len(plain) == 2
    for found, expected in zip(run(*arrays), plain, strict=False):
        close(found, expected)


def test_a_step_that_is_not_valid_is_as_if_it_were_not_there(case, runner, arrays):
    """Whatever it holds; each row has its own."""
    (tokens, memory), (_, run) = arrays, runner(case)
    valid, later = np.array([[1, 0, 1], [1, 1, 1]], bool), np.array([[1, 1, 0], [1, 1, 1]], bool)
    gap, moved = tokens.copy(), tokens.copy()
    gap[0, 1], moved[0, 1], moved[0, 2] = np.nan, tokens[0, 2], np.nan
    outputs, last, memories = run(gap, memory, valid_BxT=valid)
    expected, last_expected, _ = run(moved, memory, valid_BxT=later)
    assert (outputs[0, 1] == 0).all()
    np.testing.assert_array_equal(memories[0, 2], memories[0, 1])
    close(outputs[0, [0, 2]], expected[0, :2])
    close(outputs[1], expected[1])
    close(last, last_expected)
    assert np.abs(outputs[valid]).min(axis=(1, 2)).max() > 0


def test_a_token_that_is_not_valid_has_no_effect(case, runner, arrays):
    (tokens, memory), (_, run) = arrays, runner(case)
    valid = np.random.default_rng(0).random((B, T, N)) > 0.4
    valid[0, 1] = False  # a step without any
    hidden, holes = np.where(valid[..., None], tokens, 7.0), np.where(valid[..., None], tokens, np.nan)
    before, after = (run(np.float32(x), memory, valid_BxTxN=valid) for x in (hidden, holes))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.allclose(before[0], run(tokens, memory)[0], atol=1e-3)


def test_a_reset_starts_from_the_initial_memory(case, runner, arrays):
    """In the row where it is set, be the step valid or not."""
    (tokens, memory), (variables, run) = arrays, runner(case)
    initial = CASES[case].initial_memory(variables, B)
    reset = np.array([[0, 1, 0], [0, 0, 1]], bool)
    outputs, last, memories = run(tokens, memory, reset_BxT=reset, valid_BxT=~reset | [[True], [False]])
    np.testing.assert_array_equal(memories[reset], initial)
    np.testing.assert_array_equal(last[1], initial[1])
    anew = run(np.roll(tokens, -1, axis=1), initial, valid_BxT=np.array([[1, 1, 0]] * B, bool))
    close(outputs[0, 1:], anew[0][0, :2])
    close(last[0], anew[1][0])
    close(outputs[1, :2], run(tokens, memory)[0][1, :2])


def test_the_memories_are_those_that_the_steps_read(case, runner, arrays):
    (tokens, memory), (_, run) = arrays, runner(case)
    memories = run(tokens, memory)[2]
    np.testing.assert_array_equal(memories[:, 0], memory)
    for t in range(1, T):
        valid = np.arange(T) < np.full((B, 1), t)
        close(memories[:, t], run(tokens, memory, valid_BxT=valid)[1])


@pytest.mark.parametrize("machine", [TokenTuringMachine(learned_memory=False, **SIZES), CASES["mlp-mlp"]])
def test_the_initial_memory_is_what_a_call_starts_from(machine, arrays, random_params):
    variables = {"params": random_params(machine, arrays[0])}
    memories = fast_jit(lambda x: machine.apply(variables, x, return_memories=True)[2])(arrays[0])
    initial = machine.initial_memory(variables, B)
    np.testing.assert_array_equal(initial, memories[:, 0])
    assert initial.dtype == memories.dtype
    assert bool(jnp.any(initial)) == machine.learned_memory


@pytest.mark.parametrize("kind", SUMMARIZERS)
def test_a_summary_is_of_the_valid_tokens(kind, normal, random_params):
    tokens, module = np.asarray(normal(2, 2, 6, D)), make_summarizer(kind, 2, num_heads=3)
    params = random_params(module, tokens)
    valid = np.array([[1, 0, 1, 0, 0, 1], [0] * 6], bool)
    tokens = np.where(valid[..., None], tokens, np.nan)
    found = fast_jit(module.apply)({"params": params}, tokens, valid_BxN=valid)
    if kind == "pooling":
        expected = np.stack([tokens[0, [0, 2]].mean(0), tokens[0, 5]])
    else:
        expected = fast_jit(module.apply)({"params": params}, tokens[:1, valid[0]])[0]
    close(found[0], expected)
    nothing = params["attention"]["out"]["bias"] if kind == "query" else np.zeros(D)
    close(found[1], np.stack([nothing, nothing]))


def test_erase_and_add_mixes_the_valid_tokens(normal, random_params):
    """As if the weights of the others were zeros."""
    memory, output, tokens = normal(3, B, M, D), normal(4, B, R, D), normal(5, B, N, D)
    valid, module = np.array([1, 0, 1, 1, 0], bool), EraseAddWrite()
    params = random_params(module, memory, output, tokens)
    without, apply = jax.tree.map(np.array, params), fast_jit(module.apply)
    for name in ("erase_tokens", "add_tokens"):
        without[name]["hidden"]["kernel"][R:][~valid] = 0
    expected = apply({"params": without}, memory, output, tokens)
    found = apply({"params": params}, memory, output, tokens, valid_BxN=np.tile(valid, (B, 1)))
    close(found, expected)


@pytest.mark.parametrize("step", [TokenTuringMachineStep, SimpleTokenTuringMachineStep])
def test_a_gate_mixes_memory_and_what_was_written(step, arrays, random_params):
    (tokens, memory), plain, gated = arrays, step(**SIZES), step(gate="fixed", **SIZES)
    params = random_params(plain, memory, tokens[:, 0])
    shapes = jax.eval_shape(gated.init, jax.random.key(0), memory, tokens[:, 0])["params"]
    assert shapes.pop("gate").shape == (D,)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    bias = np.linspace(-2, 2, D, dtype=np.float32)
    written, output = fast_jit(plain.apply)({"params": params}, memory, tokens[:, 0])
    found, same_output = fast_jit(gated.apply)({"params": params | {"gate": bias}}, memory, tokens[:, 0])
    keep = 1 / (1 + np.exp(-bias))
    close(found, keep * memory + (1 - keep) * np.asarray(written))
    close(same_output, output)


def test_a_new_gate_keeps_nine_tenths(arrays):
    machine = TokenTuringMachine(read="pooling", write="none", gate="fixed", **SIZES)
    gate = fast_jit(machine.init)(jax.random.key(0), arrays[0])["params"]["step"]["gate"]
    np.testing.assert_allclose(jax.nn.sigmoid(gate), 0.9, rtol=1e-6)


@pytest.mark.parametrize(
    ("masks", "names"),
    [
        (dict(valid_BxT=np.ones((B, T + 1), bool)), ("valid_BxT", "[2, 3]", "[2, 4]")),
        (dict(valid_BxT=np.ones((B, T), np.int32)), ("valid_BxT", "bool", "int32")),
        (dict(valid_BxT=[[True] * T] * B), ("valid_BxT", "list")),
        (dict(valid_BxTxN=np.ones((B, T), bool)), ("valid_BxTxN", "[2, 3, 5]", "[2, 3]")),
        (dict(reset_BxT=True), ("reset_BxT", "bool[2, 3]", "got bool")),
    ],
)
def test_a_wrong_mask_is_named(masks, names, arrays):
    with pytest.raises(ValueError, match="must be an array") as told:
        jax.eval_shape(lambda x: CASES["pooling-pooling"].init_with_output(jax.random.key(0), x, **masks), arrays[0])
    assert all(name in str(told.value) for name in names), told.value
    assert "\n" not in str(told.value)


def test_a_wrong_mask_of_a_step_is_named(arrays):
    tokens, memory = arrays
    step = TokenTuringMachineStep(**SIZES)
    for name, mask in (("valid_B", np.ones((B, 1), bool)), ("valid_BxN", np.ones((B, N)))):
        with pytest.raises(ValueError, match=name):
            jax.eval_shape(partial(step.init, **{name: mask}), jax.random.key(0), memory, tokens[:, 0])


def test_scenic_has_no_gate():
    with pytest.raises(ValueError, match="gate must be one of None; got 'fixed'"):
        TokenTuringMachine(compat="scenic", gate="fixed")
    with pytest.raises(ValueError, match="gate must be one of None, 'fixed'; got 'open'"):
        SimpleTokenTuringMachine(gate="open")
