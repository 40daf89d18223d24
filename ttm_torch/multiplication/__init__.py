"""The twin of `ttm_jax.multiplication`."""
