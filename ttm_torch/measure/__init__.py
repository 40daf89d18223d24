"""The twin of `ttm_jax.measure`."""
