"""The twin of `ttm_jax.training`."""
