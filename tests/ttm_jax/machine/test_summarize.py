"""Summarisers: against naive loops, and alone as pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jaxtyping import TypeCheckError

from ttm_jax.machine.summarize import (
    SUMMARIZERS,
    MLPSummarizer,
    PoolingSummarizer,
    QuerySummarizer,
    compute_importance_weights,
    make_summarizer,
    normalize_weights,
    pooling_summarize,
    query_summarize,
    token_summarize,
    weighted_sum,
)

pytestmark = pytest.mark.usefixtures("nans_are_errors")

B, N, D, K, HEADS = 3, 10, 12, 4, 3
# A softmax is invariant to these: their gradients are zero but for rounding.
INVARIANT = {"mlp/out/bias", "attention/key/bias"}


def module(kind, dtype=None):
    return make_summarizer(kind, K, num_heads=HEADS, dtype=dtype)


@pytest.fixture(scope="module")
def tokens(normal):
    return normal(0, B, N, D)


@pytest.fixture(scope="module")
def params(tokens, random_params):
    """Parameters by kind."""
    return {kind: random_params(module(kind), tokens) for kind in SUMMARIZERS}


@pytest.fixture(scope="module")
def summarize():
    """Jitted apply by kind."""
    return {
        kind: jax.jit(lambda params, x, kind=kind: module(kind).apply({"params": params}, x)) for kind in SUMMARIZERS
    }


def naive_layer_norm(x, norm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * norm["scale"] + norm["bias"]


def naive_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def naive_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def as_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("kind", SUMMARIZERS)
@pytest.mark.parametrize(("n", "k"), [(10, 5), (10, 4), (3, 7), (1, 1)])
def test_any_number_of_tokens_to_k(kind, n, k):
    summarizer = make_summarizer(kind, k, num_heads=HEADS)
    x = jax.ShapeDtypeStruct((B, n, D), jnp.float32)
    summary, _ = jax.eval_shape(summarizer.init_with_output, jax.random.key(0), x)
    assert summary.shape == (B, k, D)
    assert summary.dtype == jnp.float32


def test_weights_of_each_summary_sum_to_one_and_have_temperature_one(normal):
    logits = 5 * normal(2, B, K, N)
    weights = normalize_weights(logits)
    np.testing.assert_allclose(weights.sum(-1), np.ones((B, K)), rtol=1e-6)
    np.testing.assert_allclose(weights, naive_softmax(np.asarray(logits, np.float64)), rtol=2e-6)
    assert normalize_weights(logits.astype(jnp.bfloat16)).dtype == jnp.float32


def test_weighted_sum_is_a_loop_over_tokens(tokens, normal):
    weights = normal(3, B, K, N)
    expected = np.zeros((B, K, D))
    for b in range(B):
        for k in range(K):
            for n in range(N):
                expected[b, k] += float(weights[b, k, n]) * np.asarray(tokens[b, n], np.float64)
    np.testing.assert_allclose(weighted_sum(tokens, weights), expected, rtol=1e-5, atol=1e-6)


def test_mlp_weighs_raw_tokens_by_their_normalised_form(tokens, params):
    p, x = as_float64(params["mlp"]), np.asarray(tokens, np.float64)
    hidden = naive_gelu(naive_layer_norm(x, p["norm"]) @ p["mlp"]["hidden"]["kernel"] + p["mlp"]["hidden"]["bias"])
    logits = np.swapaxes(hidden @ p["mlp"]["out"]["kernel"] + p["mlp"]["out"]["bias"], 1, 2)
    assert hidden.shape[-1] == 64
    found = compute_importance_weights(params["mlp"], tokens, K)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        token_summarize(params["mlp"], tokens, K), naive_softmax(logits) @ x, rtol=1e-5, atol=1e-5
    )


def test_query_attends_head_by_head(tokens, params):
    p, x = as_float64(params["query"]), np.asarray(tokens, np.float64)
    attention, width = p["attention"], D // HEADS
    expected = np.zeros((B, K, D)) + attention["out"]["bias"]
    for b in range(B):
        for h in range(HEADS):
            q, k, v = (
                y @ attention[name]["kernel"][:, h] + attention[name]["bias"][h]
                for name, y in (("query", p["queries"][0]), ("key", x[b]), ("value", x[b]))
            )
            expected[b] += naive_softmax(q @ k.T / np.sqrt(width)) @ v @ attention["out"]["kernel"][h]
    found = query_summarize(params["query"], tokens, K, HEADS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "k"), [(10, 5), (12, 1), (10, 4), (7, 3), (3, 7), (5, 5), (16, 6)])
def test_pooling_averages_the_tokens_that_each_summary_covers(normal, n, k):
    tokens = normal(4, B, n, D)
    expected = np.zeros((B, k, D))
    for i in range(k):
        covered = [j for j in range(n) if j < (i + 1) * n / k and j + 1 > i * n / k]
        expected[:, i] = sum(np.asarray(tokens[:, j], np.float64) for j in covered) / len(covered)
    np.testing.assert_allclose(pooling_summarize(tokens, k), expected, rtol=1e-5, atol=1e-6)


def test_pure_functions_are_the_modules(tokens, params):
    mlp, query = {"params": params["mlp"]}, {"params": params["query"]}
    pairs = [
        (token_summarize(params["mlp"], tokens, K), jax.jit(MLPSummarizer(K).apply)(mlp, tokens)),
        (
            query_summarize(params["query"], tokens, K, HEADS),
            jax.jit(QuerySummarizer(K, HEADS).apply)(query, tokens),
        ),
        (
            jax.jit(pooling_summarize, static_argnums=1)(tokens, K),
            jax.jit(PoolingSummarizer(K).apply)({}, tokens),
        ),
    ]
    for function, applied in pairs:
        np.testing.assert_array_equal(function, applied)


@pytest.mark.parametrize("kind", SUMMARIZERS)
def test_rows_of_a_batch_do_not_mix(kind, tokens, params, summarize, normal):
    before = summarize[kind](params[kind], tokens)
    after = summarize[kind](params[kind], tokens.at[1].add(100 * normal(5, N, D)))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[2], after[2])
    assert not np.array_equal(before[1], after[1])


@pytest.mark.parametrize("kind", ["mlp", "query"])
def test_every_parameter_receives_gradient(kind, tokens, params, normal):
    cotangent = normal(6, B, K, D)

    @jax.jit
    def gradient(p):
        return jax.grad(lambda p: jnp.sum(module(kind).apply({"params": p}, tokens) * cotangent))(p)

    sizes = {name: float(jnp.abs(leaf).max()) for name, leaf in flatten_dict(gradient(params[kind]), sep="/").items()}
    largest = max(sizes.values())
    assert {name for name, size in sizes.items() if size < 1e-5 * largest} == INVARIANT & sizes.keys()


@pytest.mark.parametrize("kind", ["mlp", "query"])
def test_weights_are_float32_under_bfloat16(kind, tokens, params):
    summary, sown = jax.eval_shape(
        lambda p, x: module(kind, jnp.bfloat16).apply({"params": p}, x, mutable=["intermediates"]),
        params[kind],
        tokens.astype(jnp.bfloat16),
    )
    assert summary.dtype == jnp.bfloat16
    assert [leaf.dtype for leaf in jax.tree.leaves(sown)] == [jnp.float32]


def test_what_cannot_be_is_refused(tokens):
    with pytest.raises(ValueError, match="summarizer must be one of mlp, query, pooling, got 'mean'"):
        module("mean")
    with pytest.raises(ValueError, match="num_heads must divide the width, got 5 heads for width 12"):
        QuerySummarizer(K, 5).init(jax.random.key(0), tokens)


def test_shape_contracts_are_checked_in_tests(tokens, params):
    with pytest.raises(TypeCheckError):
        pooling_summarize(tokens[0], K)
    with pytest.raises(TypeCheckError):
        token_summarize(params["mlp"], tokens.astype(jnp.int32), K)
