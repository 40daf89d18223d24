"""The twin of `ttm_jax.machine`."""
