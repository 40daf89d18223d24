"""Layers that summarisers and processing units share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ttm_jax import MultiHeadAttention
from ttm_jax.machine.layers import LayerNorm


class TestLayerNorm:
    """Beside Flax's, whose parameters it has."""

    @pytest.fixture(params=[(2, 3, 8), (5, 8), (8,), (0, 8)], ids=str)
    def inputs(self, request):
        """Scale, bias, tokens and a direction of each, in float64."""
        random = np.random.default_rng(0)
        return [[random.normal(0.5, 1.0, shape) for shape in ((8,), (8,), request.param)] for _ in range(2)]

    @staticmethod
    def function(module):
        return lambda scale, bias, x: module.apply({"params": {"scale": scale, "bias": bias}}, x)

    def test_outputs_and_gradients(self, inputs):
        with jax.enable_x64(True):
            layers = (layer(param_dtype=jnp.float64) for layer in (LayerNorm, nn.LayerNorm))
            (ours, ours_back), (theirs, theirs_back) = (jax.vjp(self.function(layer), *inputs[0]) for layer in layers)
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
            for found, expected in zip(ours_back(ours**2), theirs_back(ours**2), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_gradients_of_tokens_without_variance(self, dtype):
        """Of all alike, and of one: epsilon is all that is left of the variance."""
        direction = np.arange(24.0).reshape(3, 8) % 5
        arrays = np.full(8, 1.5), np.full(8, 0.5), np.stack([np.full(8, 2.0), np.eye(8)[0], np.zeros(8)])
        with jax.enable_x64(True):
            gradients = []
            for layer, of in ((LayerNorm, dtype), (nn.LayerNorm, jnp.float64)):
                back = jax.vjp(self.function(layer(param_dtype=of)), *(jnp.asarray(x, of) for x in arrays))[1]
                gradients.append(back(jnp.asarray(direction, of)))
        for found, expected in zip(*gradients, strict=True):
            assert found.dtype == dtype
            rtol, atol = (1e-5, 1e-4) if dtype == jnp.float32 else (1e-12, 1e-10)
            np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)

    def test_float32_is_close_to_float64_whatever_the_mean(self):
        """What is left is the rounding of the mean, which grows with it, and not with its square."""
        means, scales = (x.ravel() for x in np.meshgrid([0.0, 10.0, 100.0, 1000.0], [1e-3, 1.0, 1e3]))
        random = np.random.default_rng(0)
        gain, bias, deviations, direction = (
            np.float32(random.normal(size=(len(means), *shape))) for shape in ((128,), (128,), (16, 128), (16, 128))
        )
        x = np.float32(scales[:, None, None] * (means[:, None, None] + deviations))
        results = []
        for dtype in (jnp.float32, jnp.float64):
            with jax.enable_x64(dtype == jnp.float64):
                outputs, back = jax.vjp(
                    jax.vmap(self.function(LayerNorm(param_dtype=dtype))), *(dtype(y) for y in (gain, bias, x))
                )
                results.append([np.asarray(y) for y in (outputs, *back(dtype(direction)))])
        for found, expected in zip(*results, strict=True):
            axes = tuple(range(1, expected.ndim))
            error, largest = (np.abs(y).max(axis=axes) for y in (found - expected, expected))
            assert (error <= 1e-6 * np.maximum(1, means / 10) * largest).all()

    def test_forward_mode_and_second_order(self, inputs):
        with jax.enable_x64(True):
            results = []
            for layer in (LayerNorm, nn.LayerNorm):
                f = self.function(layer(param_dtype=jnp.float64))

                def loss(*arrays, f=f):
                    return (f(*arrays) ** 3).sum()

                results.append((jax.jvp(f, *inputs)[1], jax.jvp(jax.grad(loss, argnums=(0, 1, 2)), *inputs)[1]))
            for found, expected in zip(*map(jax.tree.leaves, results), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("of_tokens", [jnp.float32, jnp.bfloat16])
    def test_dtypes(self, dtype, param_dtype, of_tokens, normal):
        tokens = jnp.asarray(normal(0, 2, 8), of_tokens)
        variables = nn.LayerNorm(param_dtype=param_dtype).init(jax.random.key(0), tokens)
        ours, theirs = (
            layer(dtype=dtype, param_dtype=param_dtype).apply(variables, tokens) for layer in (LayerNorm, nn.LayerNorm)
        )
        assert ours.dtype == theirs.dtype
        tolerance = 1e-6 if ours.dtype == jnp.float32 else 1e-2  # bfloat16 has eight bits
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=tolerance, atol=tolerance)


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
