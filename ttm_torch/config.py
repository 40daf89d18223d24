"""A run as data: the same as `ttm_jax.config`, so both twins read the same files."""

from ttm_jax.config import Config, ConfigError, ModelConfig, OptimizerConfig, find_config, load_config

__all__ = ["Config", "ConfigError", "ModelConfig", "OptimizerConfig", "find_config", "load_config"]
