"""Token Turing Machines (arXiv 2211.09119) in PyTorch: the readable twin of `ttm_jax`."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    raise ModuleNotFoundError(  # by this name `python -m ttm_torch.train` says so in one line
        "PyTorch is not installed; pip install 'token-turing-machine[torch]' installs it", name=__name__
    )

from ttm_jax.multiplication.config import Config, CurriculumConfig, DataConfig, ModelConfig, TrainConfig
from ttm_jax.multiplication.problems import (
    MultiplicationDataset,
    augment_batch,
    held_out_pairs,
    is_held_out,
)
from ttm_jax.multiplication.steps import training_arrays
from ttm_jax.multiplication.vocab import (
    DIGIT_TOKENS,
    EOS_TOKEN,
    PAD_TOKEN,
    TIMES_TOKEN,
    VOCAB_SIZE,
    number_to_tokens,
    tokens_to_string,
)
from ttm_jax.tasks import load_config
from ttm_jax.training.config import ConfigError, OptimizerConfig
from ttm_torch.machine import nn
from ttm_torch.machine.layers import (
    Embedding,
    FeedForward,
    MultiHeadAttention,
    Positions,
)
from ttm_torch.machine.machine import (
    SimpleTokenTuringMachine,
    SimpleTokenTuringMachineStep,
    TokenTuringMachine,
    TokenTuringMachineStep,
)
from ttm_torch.machine.memory import (
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
from ttm_torch.machine.processing import (
    MixerStack,
    MLPStack,
    TransformerBlock,
    TransformerStack,
    make_processor,
    process,
)
from ttm_torch.machine.summarize import (
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
from ttm_torch.measure.cost import measure_flops, measure_memory
from ttm_torch.multiplication.losses import (
    compute_ce_loss,
    compute_eos_bce,
    compute_masked_ce_loss,
    compute_normalized_ce_loss,
    compute_total_loss,
    create_eos_target,
    find_eos_positions,
)
from ttm_torch.multiplication.metrics import (
    create_target_mask,
    exact_match,
    position_accuracy,
    sequence_accuracy,
    wilson_interval,
)
from ttm_torch.multiplication.model import (
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
from ttm_torch.multiplication.multiplier import Multiplier, load
from ttm_torch.multiplication.objective import create_state, eval_step, train_step
from ttm_torch.training.checkpoint import CheckpointError
from ttm_torch.training.optimizer import Muon, Scheduler, learning_rate, make_optimizer, make_scheduler
from ttm_torch.training.step import TrainState

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
    "Embedding",
    "FeedForward",
    "MLPStack",
    "MLPSummarizer",
    "MixerStack",
    "ModelConfig",
    "MultiHeadAttention",
    "MultiplicationDataset",
    "Multiplier",
    "Muon",
    "OptimizerConfig",
    "OutputHead",
    "PoolingSummarizer",
    "Positions",
    "QuerySummarizer",
    "Read",
    "Scheduler",
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
    "held_out_pairs",
    "is_held_out",
    "learning_rate",
    "load",
    "load_config",
    "make_optimizer",
    "make_processor",
    "make_scheduler",
    "make_write",
    "measure_flops",
    "measure_memory",
    "nn",
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
