"""The causal Transformer: streaming is the whole sequence, and no output sees what comes after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.fast_jit import fast_jit
from ttm_jax.machine import causal_transformer
from ttm_jax.machine.causal_transformer import CausalTransformer, attend, rotate
from ttm_jax.machine.flops import causal_step_cost

TRANSFORMER = CausalTransformer(num_layers=2, num_heads=2, mlp_dim=24)
B, S, D = 2, 12, 16


@pytest.fixture(scope="module")
def tokens_BxSxD(normal):
    return normal(0, B, S, D)


@pytest.fixture(scope="module")
def variables(random_params, tokens_BxSxD):
    return {"params": random_params(TRANSFORMER, tokens_BxSxD)}


@pytest.fixture(scope="module")
def whole(apply, variables, tokens_BxSxD):
    return apply(variables, tokens_BxSxD)


@pytest.fixture(scope="module")
def apply():
    return fast_jit(TRANSFORMER.apply)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunks", [[1] * 12, [7, 1, 1, 1, 1, 1]])
def test_streaming_is_the_whole_sequence(apply, variables, tokens_BxSxD, whole, chunks):
    expected, after = whole
    cache, outputs = TRANSFORMER.empty_cache(B, S, D), []
    for chunk in jnp.split(tokens_BxSxD, np.cumsum(chunks)[:-1], axis=1):
        output, cache = apply(variables, chunk, cache)
        outputs.append(output)
    close(jnp.concatenate(outputs, axis=1), expected)
    assert cache.length == after.length == S
    close(cache.keys[1], after.keys[1])


def test_room_to_spare_changes_nothing(apply, variables, tokens_BxSxD, whole):
    roomy, _ = apply(variables, tokens_BxSxD, TRANSFORMER.empty_cache(B, 3 * S, D))
    close(roomy, whole[0])


def test_no_output_sees_later_tokens_and_all_see_earlier_ones(apply, variables, tokens_BxSxD, whole):
    changed, _ = apply(variables, tokens_BxSxD.at[:, 5].set(tokens_BxSxD[:, 4]))
    differs = np.abs(changed - whole[0]).max(axis=(0, 2)) > 1e-6
    assert differs.tolist() == [False] * 5 + [True] * 7


def test_attention_is_softmax_of_the_past(normal):
    q, k, v = (normal(seed, 1, 1, 4, 2) for seed in range(3))
    found = attend(q, k, v, jnp.arange(4))
    for position in range(4):
        past = slice(0, position + 1)
        scores = k[0, 0, past] @ q[0, 0, position] / np.sqrt(2)
        close(found[0, 0, position], jax.nn.softmax(scores) @ v[0, 0, past])


def test_blocks_of_queries_change_nothing(variables, tokens_BxSxD, whole, monkeypatch):
    monkeypatch.setattr(causal_transformer, "QUERY_BLOCK", 5)  # three blocks of four
    blocks = fast_jit(lambda tokens: TRANSFORMER.apply(variables, tokens)[0])(tokens_BxSxD)
    close(blocks, whole[0])


def test_a_whole_sequence_computes_no_block_that_its_mask_hides(variables, tokens_BxSxD, monkeypatch, products):
    monkeypatch.setattr(causal_transformer, "QUERY_BLOCK", 5)  # three blocks of four; two see eight keys
    jaxpr = jax.make_jaxpr(lambda tokens: TRANSFORMER.apply(variables, tokens))(tokens_BxSxD[:1])
    pairs = 8 * 8 + 4 * 12
    assert products(jaxpr.jaxpr) == 2 * (4 * S * D**2 + 2 * pairs * D + 2 * S * D * TRANSFORMER.mlp_dim)
    assert causal_step_cost(TRANSFORMER, S, 0, D) == products(jaxpr.jaxpr)


def test_only_the_distance_counts_in_rotary_products(normal):
    q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)

    def product(query_at, key_at):
        return jnp.sum(rotate(q, jnp.array([query_at])) * rotate(k, jnp.array([key_at])))

    close(product(7, 4), product(103, 100))
    assert abs(product(7, 4) - product(7, 5)) > 1e-3
    close(rotate(q, jnp.array([0])), q)


def test_the_cache_is_written_in_place(variables, tokens_BxSxD):
    step = fast_jit(lambda cache, x: TRANSFORMER.apply(variables, x, cache)[::-1], donate_argnums=0)
    cache = TRANSFORMER.empty_cache(B, 4 * S, D)
    memory = step.lower(cache, tokens_BxSxD).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(cache.keys + cache.values))


@pytest.mark.parametrize(("num_tokens", "history"), [(1, 0), (3, 7), (12, 0)])
def test_the_closed_form_is_the_products_of_the_program(variables, num_tokens, history, products):
    cache = TRANSFORMER.empty_cache(1, history + num_tokens, D)
    tokens = jnp.zeros((1, num_tokens, D))
    jaxpr = jax.make_jaxpr(lambda x, cache: TRANSFORMER.apply(variables, x, cache))(tokens, cache)
    assert causal_step_cost(TRANSFORMER, num_tokens, history, D) == products(jaxpr.jaxpr)


@pytest.mark.parametrize("width", [15, 18])
def test_heads_have_an_even_width(width):
    with pytest.raises(ValueError, match=rf"width must be a multiple of 2 x num_heads \(4\), got {width}"):
        jax.eval_shape(TRANSFORMER.init, jax.random.key(0), jnp.zeros((1, 2, width)))
