"""Processing units: against naive arithmetic, token by token or jointly, and alone as a pure function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ttm_jax.machine.processing import PROCESSING_UNITS, TOKEN_MIXING_DIM, make_processor, process

pytestmark = pytest.mark.usefixtures("nans_are_errors")

B, R, D, F, HEADS, LAYERS = 3, 5, 12, 16, 3, 2
# Zero but for rounding: a softmax is invariant to the key bias; the last bias of token mixing adds one number
# to a whole token, which every later LayerNorm takes away.
INVARIANT = {
    "transformer": {f"block_{i}/attention/key/bias" for i in range(LAYERS)},
    "mixer": {f"token_mixing_{i}/out/bias" for i in range(LAYERS)},
    "mlp": set(),
}


def unit(kind, **changes):
    return make_processor(kind, **(dict(num_layers=LAYERS, mlp_dim=F, num_heads=HEADS) | changes))


@pytest.fixture(scope="module")
def tokens(normal):
    return normal(0, B, R, D)


@pytest.fixture(scope="module")
def units(tokens, random_params):
    """Parameters and jitted apply by kind."""

    def make(kind):
        module = unit(kind)
        return random_params(module, tokens), jax.jit(lambda p, x: module.apply({"params": p}, x))

    return {kind: make(kind) for kind in PROCESSING_UNITS}


def layer_norm(x, norm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * norm["scale"] + norm["bias"]


def feed_forward(x, p):
    x = x @ p["hidden"]["kernel"] + p["hidden"]["bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ p["out"]["kernel"] + p["out"]["bias"]


def attend(x, p):
    out = np.zeros_like(x) + p["out"]["bias"]
    for head in range(HEADS):
        q, k, v = (x @ p[n]["kernel"][:, head] + p[n]["bias"][head] for n in ("query", "key", "value"))
        e = np.exp(q @ np.swapaxes(k, 1, 2) / np.sqrt(D // HEADS))
        out = out + e / e.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
    return out


def naive(kind, p, x):
    if kind == "transformer":
        x = x + p["positions"]["embedding"]
    for i in range(LAYERS):
        if kind == "transformer":
            block = p[f"block_{i}"]
            x = x + attend(layer_norm(x, block["attention_norm"]), block["attention"])
            x = x + feed_forward(layer_norm(x, block["mlp_norm"]), block["mlp"])
        elif kind == "mixer":
            turned = np.swapaxes(layer_norm(x, p[f"token_norm_{i}"]), 1, 2)
            x = x + np.swapaxes(feed_forward(turned, p[f"token_mixing_{i}"]), 1, 2)
            x = x + feed_forward(layer_norm(x, p[f"channel_norm_{i}"]), p[f"channel_mixing_{i}"])
        else:
            x = feed_forward(layer_norm(x, p[f"mlp_norm_{i}"]), p[f"mlp_{i}"])
    return layer_norm(x, p["norm"])


@pytest.mark.parametrize("kind", PROCESSING_UNITS)
def test_arithmetic(kind, tokens, units):
    params, run = units[kind]
    expected = naive(kind, *(jax.tree.map(lambda x: np.asarray(x, np.float64), y) for y in (params, tokens)))
    found = run(params, tokens)
    assert found.shape == tokens.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", PROCESSING_UNITS)
def test_pure_function_is_the_module(kind, tokens, units):
    params, run = units[kind]
    found = process(params, tokens, kind=kind, num_layers=LAYERS, mlp_dim=F, num_heads=HEADS)
    np.testing.assert_array_equal(found, run(params, tokens))


@pytest.mark.parametrize("kind", PROCESSING_UNITS)
def test_rows_of_a_batch_do_not_mix_and_tokens_do(kind, tokens, units, normal):
    params, run = units[kind]
    before = run(params, tokens)
    after = run(params, tokens.at[1, 2].add(100 * normal(1, D)))
    np.testing.assert_array_equal(before[::2], after[::2])
    changed = [not np.array_equal(before[1, token], after[1, token]) for token in range(R)]
    assert changed == ([token == 2 for token in range(R)] if kind == "mlp" else [True] * R)


@pytest.mark.parametrize("kind", PROCESSING_UNITS)
def test_every_parameter_receives_gradient(kind, tokens, units, normal):
    params, run = units[kind]
    cotangent = normal(2, B, R, D)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(run(p, tokens) * cotangent)))(params)
    sizes = {name: float(jnp.abs(leaf).max()) for name, leaf in flatten_dict(gradient, sep="/").items()}
    largest = max(sizes.values())
    assert {name for name, size in sizes.items() if size < 1e-5 * largest} == INVARIANT[kind]


def test_sizes_are_those_asked_for(tokens):
    def shapes(kind, **changes):
        params = jax.eval_shape(unit(kind, **changes).init, jax.random.key(0), tokens)["params"]
        return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}

    transformer = shapes("transformer", num_layers=3, num_heads=6)
    assert {name.split("/")[0] for name in transformer} == {
        "positions",
        "norm",
        "block_0",
        "block_1",
        "block_2",
    }
    assert transformer["block_0/attention/query/kernel"] == (D, 6, D // 6)
    assert transformer["block_0/mlp/hidden/kernel"] == (D, F)
    mixer = shapes("mixer", mlp_dim=20)
    assert mixer["token_mixing_0/hidden/kernel"] == (R, TOKEN_MIXING_DIM)
    assert mixer["channel_mixing_0/hidden/kernel"] == (D, 20)
    assert shapes("mlp", mlp_dim=20)["mlp_1/out/kernel"] == (20, D)


def test_what_cannot_be_is_refused(tokens):
    with pytest.raises(ValueError, match="processing must be one of transformer, mixer, mlp, got 'rnn'"):
        make_processor("rnn")
    with pytest.raises(ValueError, match="num_heads must divide the width, got 5 heads for width 12"):
        unit("transformer", num_heads=5).init(jax.random.key(0), tokens)
