"""Layers that summarisers and processing units share."""

import jax
import numpy as np

from ttm_jax import MultiHeadAttention


def test_attention_is_the_same_whichever_is_larger_kernels_or_activations(normal, random_params):
    """Its products are laid out by that; 32 copies of an example give 32 times its gradient."""
    module = MultiHeadAttention(4)
    one, many = (np.tile(normal(0, 1, 3, 32), (copies, 1, 1)) for copies in (1, 32))
    assert one.size < 32 * 32 < many.size
    params = random_params(module, one, one)

    def outputs_and_gradients(tokens_BxNxD):
        def loss(params):
            outputs_BxNxD = module.apply({"params": params}, tokens_BxNxD, tokens_BxNxD)
            return (outputs_BxNxD**2).sum(), outputs_BxNxD

        (_, outputs_BxNxD), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return outputs_BxNxD, gradients

    (few, small), (repeated, large) = outputs_and_gradients(one), outputs_and_gradients(many)
    np.testing.assert_allclose(repeated, np.tile(few, (32, 1, 1)), rtol=1e-5, atol=1e-6)
    largest = max(np.abs(gradient).max() for gradient in jax.tree.leaves(large))  # that of the keys' bias is zero
    for found, expected in zip(jax.tree.leaves(large), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(found, 32 * expected, rtol=1e-4, atol=1e-5 * largest)
