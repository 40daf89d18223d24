"""A run as data: the same as `ttm_jax.config`, so both twins read the same files."""

from ttm_jax.config import (
    Config,
    ConfigError,
    CurriculumConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    config_to_dict,
    config_to_toml,
    find_config,
    load_config,
    override,
)

__all__ = [
    "Config",
    "ConfigError",
    "CurriculumConfig",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "config_to_dict",
    "config_to_toml",
    "find_config",
    "load_config",
    "override",
]
