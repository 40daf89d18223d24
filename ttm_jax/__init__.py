"""Token Turing Machines (arXiv 2211.09119) in JAX/Flax, trained on multiplication.

A name is imported when it is first asked for: the modules that both twins use (`ttm_jax.config`, `ttm_jax.loop` and
others) can be imported without JAX, and `import ttm_jax` costs nothing.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttm_jax import flops
    from ttm_jax.allocator import keep_freed_memory
    from ttm_jax.checkpoint_files import CheckpointError
    from ttm_jax.config import (
        Config,
        ConfigError,
        CurriculumConfig,
        DataConfig,
        ModelConfig,
        OptimizerConfig,
        TrainConfig,
        load_config,
    )
    from ttm_jax.cost import measure_flops, measure_memory
    from ttm_jax.inference import Multiplier, load
    from ttm_jax.layers import FeedForward, MultiHeadAttention, Positions
    from ttm_jax.losses import (
        compute_ce_loss,
        compute_eos_bce,
        compute_masked_ce_loss,
        compute_normalized_ce_loss,
        compute_total_loss,
        create_eos_target,
        find_eos_positions,
    )
    from ttm_jax.machine import (
        SimpleTokenTuringMachine,
        SimpleTokenTuringMachineStep,
        TokenTuringMachine,
        TokenTuringMachineStep,
    )
    from ttm_jax.memory import (
        Read,
        add_positional_info,
        add_write_positional_info,
        concat_for_write,
        concat_memory_input,
        concat_write,
        erase_add_write,
        erase_and_add,
        make_write,
        read_operation,
        write_operation,
    )
    from ttm_jax.metrics import create_target_mask, exact_match, position_accuracy, sequence_accuracy, wilson_interval
    from ttm_jax.multiplication import MultiplicationDataset, augment_batch, held_out_pairs, is_held_out
    from ttm_jax.multiplier import (
        DirectTransformer,
        OutputHead,
        TTMModel,
        apply_digit_mask,
        apply_eos_boost,
        apply_eos_masking,
        create_eos_mask,
        create_position_indices,
        create_product_steps,
        detect_eos,
        extract_eos_probs,
        select_answers,
    )
    from ttm_jax.optimizer import clip_by_global_norm, learning_rate_schedule, make_optimizer
    from ttm_jax.processing import (
        MixerStack,
        MLPStack,
        TransformerBlock,
        TransformerStack,
        make_processor,
        process,
    )
    from ttm_jax.schedule import training_arrays
    from ttm_jax.state import TrainState, create_state, eval_step, train_step
    from ttm_jax.summarize import (
        MLPSummarizer,
        PoolingSummarizer,
        QuerySummarizer,
        compute_importance_weights,
        normalize_weights,
        pooling_summarize,
        query_summarize,
        token_summarize,
        weighted_sum,
    )
    from ttm_jax.vocab import (
        DIGIT_TOKENS,
        EOS_TOKEN,
        PAD_TOKEN,
        TIMES_TOKEN,
        VOCAB_SIZE,
        number_to_tokens,
        tokens_to_string,
    )

__all__ = [
    "DIGIT_TOKENS",
    "EOS_TOKEN",
    "PAD_TOKEN",
    "TIMES_TOKEN",
    "VOCAB_SIZE",
    "CheckpointError",
    "Config",
    "ConfigError",
    "CurriculumConfig",
    "DataConfig",
    "DirectTransformer",
    "FeedForward",
    "MLPStack",
    "MLPSummarizer",
    "MixerStack",
    "ModelConfig",
    "MultiHeadAttention",
    "MultiplicationDataset",
    "Multiplier",
    "OptimizerConfig",
    "OutputHead",
    "PoolingSummarizer",
    "Positions",
    "QuerySummarizer",
    "Read",
    "SimpleTokenTuringMachine",
    "SimpleTokenTuringMachineStep",
    "TTMModel",
    "TokenTuringMachine",
    "TokenTuringMachineStep",
    "TrainConfig",
    "TrainState",
    "TransformerBlock",
    "TransformerStack",
    "add_positional_info",
    "add_write_positional_info",
    "apply_digit_mask",
    "apply_eos_boost",
    "apply_eos_masking",
    "augment_batch",
    "clip_by_global_norm",
    "compute_ce_loss",
    "compute_eos_bce",
    "compute_importance_weights",
    "compute_masked_ce_loss",
    "compute_normalized_ce_loss",
    "compute_total_loss",
    "concat_for_write",
    "concat_memory_input",
    "concat_write",
    "create_eos_mask",
    "create_eos_target",
    "create_position_indices",
    "create_product_steps",
    "create_state",
    "create_target_mask",
    "detect_eos",
    "erase_add_write",
    "erase_and_add",
    "eval_step",
    "exact_match",
    "extract_eos_probs",
    "find_eos_positions",
    "flops",
    "held_out_pairs",
    "is_held_out",
    "keep_freed_memory",
    "learning_rate_schedule",
    "load",
    "load_config",
    "make_optimizer",
    "make_processor",
    "make_write",
    "measure_flops",
    "measure_memory",
    "normalize_weights",
    "number_to_tokens",
    "pooling_summarize",
    "position_accuracy",
    "process",
    "query_summarize",
    "read_operation",
    "select_answers",
    "sequence_accuracy",
    "token_summarize",
    "tokens_to_string",
    "train_step",
    "training_arrays",
    "weighted_sum",
    "wilson_interval",
    "write_operation",
]

# The module of each name, in the order in which data flows; the imports above, for those who run the code.
_NAMES = {
    "allocator": "keep_freed_memory",
    "vocab": "DIGIT_TOKENS EOS_TOKEN PAD_TOKEN TIMES_TOKEN VOCAB_SIZE number_to_tokens tokens_to_string",
    "multiplication": "MultiplicationDataset augment_batch held_out_pairs is_held_out",
    "config": "Config ConfigError CurriculumConfig DataConfig ModelConfig OptimizerConfig TrainConfig load_config",
    "summarize": (
        "MLPSummarizer PoolingSummarizer QuerySummarizer compute_importance_weights normalize_weights "
        "pooling_summarize query_summarize token_summarize weighted_sum"
    ),
    "memory": (
        "Read add_positional_info add_write_positional_info concat_for_write concat_memory_input concat_write "
        "erase_add_write erase_and_add make_write read_operation write_operation"
    ),
    "processing": "MixerStack MLPStack TransformerBlock TransformerStack make_processor process",
    "layers": "FeedForward MultiHeadAttention Positions",
    "machine": "SimpleTokenTuringMachine SimpleTokenTuringMachineStep TokenTuringMachine TokenTuringMachineStep",
    "multiplier": (
        "DirectTransformer OutputHead TTMModel apply_digit_mask apply_eos_boost apply_eos_masking create_eos_mask "
        "create_position_indices create_product_steps detect_eos extract_eos_probs select_answers"
    ),
    "losses": (
        "compute_ce_loss compute_eos_bce compute_masked_ce_loss compute_normalized_ce_loss compute_total_loss "
        "create_eos_target find_eos_positions"
    ),
    "metrics": "create_target_mask exact_match position_accuracy sequence_accuracy wilson_interval",
    "optimizer": "clip_by_global_norm learning_rate_schedule make_optimizer",
    "schedule": "training_arrays",
    "state": "TrainState create_state eval_step train_step",
    "checkpoint_files": "CheckpointError",
    "inference": "Multiplier load",
    "cost": "measure_flops measure_memory",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        value = getattr(importlib.import_module(f"ttm_jax.{_MODULE[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"ttm_jax.{name}"):
        value = importlib.import_module(f"ttm_jax.{name}")
    else:
        raise AttributeError(f"module 'ttm_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
