"""The public names, one list: `ttm_torch` imports this module when it is first asked for one of them."""

from ttm_jax.multiplication.config import (
    Config as Config,
    CurriculumConfig as CurriculumConfig,
    DataConfig as DataConfig,
    ModelConfig as ModelConfig,
    TrainConfig as TrainConfig,
)
from ttm_jax.multiplication.problems import (
    MultiplicationDataset as MultiplicationDataset,
    augment_batch as augment_batch,
    held_out_pairs as held_out_pairs,
    is_held_out as is_held_out,
)
from ttm_jax.multiplication.steps import training_arrays as training_arrays
from ttm_jax.multiplication.vocab import (
    DIGIT_TOKENS as DIGIT_TOKENS,
    EOS_TOKEN as EOS_TOKEN,
    PAD_TOKEN as PAD_TOKEN,
    TIMES_TOKEN as TIMES_TOKEN,
    VOCAB_SIZE as VOCAB_SIZE,
    number_to_tokens as number_to_tokens,
    tokens_to_string as tokens_to_string,
)
from ttm_jax.statistics import wilson_interval as wilson_interval
from ttm_jax.tasks import load_config as load_config
from ttm_jax.training.checkpoint_files import CheckpointError as CheckpointError
from ttm_jax.training.config import (
    ConfigError as ConfigError,
    OptimizerConfig as OptimizerConfig,
)
from ttm_torch.machine import nn as nn
from ttm_torch.machine.layers import (
    Embedding as Embedding,
    FeedForward as FeedForward,
    MultiHeadAttention as MultiHeadAttention,
    Positions as Positions,
)
from ttm_torch.machine.machine import (
    SimpleTokenTuringMachine as SimpleTokenTuringMachine,
    SimpleTokenTuringMachineStep as SimpleTokenTuringMachineStep,
    TokenTuringMachine as TokenTuringMachine,
    TokenTuringMachineStep as TokenTuringMachineStep,
)
from ttm_torch.machine.memory import (
    Read as Read,
    add_positional_info as add_positional_info,
    add_write_positional_info as add_write_positional_info,
    concat_for_write as concat_for_write,
    concat_memory_input as concat_memory_input,
    concat_write as concat_write,
    erase_add_write as erase_add_write,
    erase_and_add as erase_and_add,
    make_write as make_write,
    read_operation as read_operation,
    write_operation as write_operation,
)
from ttm_torch.machine.processing import (
    MixerStack as MixerStack,
    MLPStack as MLPStack,
    TransformerBlock as TransformerBlock,
    TransformerStack as TransformerStack,
    make_processor as make_processor,
    process as process,
)
from ttm_torch.machine.summarize import (
    MLPSummarizer as MLPSummarizer,
    PoolingSummarizer as PoolingSummarizer,
    QuerySummarizer as QuerySummarizer,
    compute_importance_weights as compute_importance_weights,
    normalize_weights as normalize_weights,
    pooling_summarize as pooling_summarize,
    query_summarize as query_summarize,
    token_summarize as token_summarize,
    weighted_sum as weighted_sum,
)
from ttm_torch.measure.cost import (
    measure_flops as measure_flops,
    measure_memory as measure_memory,
)
from ttm_torch.multiplication.losses import (
    compute_ce_loss as compute_ce_loss,
    compute_eos_bce as compute_eos_bce,
    compute_masked_ce_loss as compute_masked_ce_loss,
    compute_normalized_ce_loss as compute_normalized_ce_loss,
    compute_total_loss as compute_total_loss,
    create_eos_target as create_eos_target,
    find_eos_positions as find_eos_positions,
)
from ttm_torch.multiplication.metrics import (
    create_target_mask as create_target_mask,
    exact_match as exact_match,
    position_accuracy as position_accuracy,
    sequence_accuracy as sequence_accuracy,
)
from ttm_torch.multiplication.model import (
    OutputHead as OutputHead,
    TTMModel as TTMModel,
    apply_digit_mask as apply_digit_mask,
    apply_eos_boost as apply_eos_boost,
    apply_eos_masking as apply_eos_masking,
    create_eos_mask as create_eos_mask,
    create_position_indices as create_position_indices,
    create_product_steps as create_product_steps,
    detect_eos as detect_eos,
    extract_eos_probs as extract_eos_probs,
    select_answers as select_answers,
)
from ttm_torch.multiplication.multiplier import Multiplier as Multiplier
from ttm_torch.multiplication.objective import (
    create_state as create_state,
    eval_step as eval_step,
    train_step as train_step,
)
from ttm_torch.tasks import load as load
from ttm_torch.training.optimizer import (
    Muon as Muon,
    Scheduler as Scheduler,
    learning_rate as learning_rate,
    make_optimizer as make_optimizer,
    make_scheduler as make_scheduler,
)
from ttm_torch.training.step import TrainState as TrainState
