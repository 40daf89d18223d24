"""The public names, one list: `ttm_jax/__init__.py` imports each from here when it is first asked for."""

from .hardware.allocator import keep_freed_memory as keep_freed_memory
from .machine import flops as flops
from .machine.layers import (
    FeedForward as FeedForward,
)
from .machine.layers import (
    MultiHeadAttention as MultiHeadAttention,
)
from .machine.layers import (
    Positions as Positions,
)
from .machine.machine import (
    SimpleTokenTuringMachine as SimpleTokenTuringMachine,
)
from .machine.machine import (
    SimpleTokenTuringMachineStep as SimpleTokenTuringMachineStep,
)
from .machine.machine import (
    TokenTuringMachine as TokenTuringMachine,
)
from .machine.machine import (
    TokenTuringMachineStep as TokenTuringMachineStep,
)
from .machine.memory import (
    Read as Read,
)
from .machine.memory import (
    add_positional_info as add_positional_info,
)
from .machine.memory import (
    add_write_positional_info as add_write_positional_info,
)
from .machine.memory import (
    concat_for_write as concat_for_write,
)
from .machine.memory import (
    concat_memory_input as concat_memory_input,
)
from .machine.memory import (
    concat_write as concat_write,
)
from .machine.memory import (
    erase_add_write as erase_add_write,
)
from .machine.memory import (
    erase_and_add as erase_and_add,
)
from .machine.memory import (
    make_write as make_write,
)
from .machine.memory import (
    read_operation as read_operation,
)
from .machine.memory import (
    write_operation as write_operation,
)
from .machine.processing import (
    MixerStack as MixerStack,
)
from .machine.processing import (
    MLPStack as MLPStack,
)
from .machine.processing import (
    TransformerBlock as TransformerBlock,
)
from .machine.processing import (
    TransformerStack as TransformerStack,
)
from .machine.processing import (
    make_processor as make_processor,
)
from .machine.processing import (
    process as process,
)
from .machine.summarize import (
    MLPSummarizer as MLPSummarizer,
)
from .machine.summarize import (
    PoolingSummarizer as PoolingSummarizer,
)
from .machine.summarize import (
    QuerySummarizer as QuerySummarizer,
)
from .machine.summarize import (
    compute_importance_weights as compute_importance_weights,
)
from .machine.summarize import (
    normalize_weights as normalize_weights,
)
from .machine.summarize import (
    pooling_summarize as pooling_summarize,
)
from .machine.summarize import (
    query_summarize as query_summarize,
)
from .machine.summarize import (
    token_summarize as token_summarize,
)
from .machine.summarize import (
    weighted_sum as weighted_sum,
)
from .measure.cost import (
    measure_flops as measure_flops,
)
from .measure.cost import (
    measure_memory as measure_memory,
)
from .multiplication.config import Config as Config
from .multiplication.config import CurriculumConfig as CurriculumConfig
from .multiplication.config import DataConfig as DataConfig
from .multiplication.config import ModelConfig as ModelConfig
from .multiplication.config import TrainConfig as TrainConfig
from .multiplication.losses import (
    compute_ce_loss as compute_ce_loss,
)
from .multiplication.losses import (
    compute_eos_bce as compute_eos_bce,
)
from .multiplication.losses import (
    compute_masked_ce_loss as compute_masked_ce_loss,
)
from .multiplication.losses import (
    compute_normalized_ce_loss as compute_normalized_ce_loss,
)
from .multiplication.losses import (
    compute_total_loss as compute_total_loss,
)
from .multiplication.losses import (
    create_eos_target as create_eos_target,
)
from .multiplication.losses import (
    find_eos_positions as find_eos_positions,
)
from .multiplication.metrics import (
    create_target_mask as create_target_mask,
)
from .multiplication.metrics import (
    exact_match as exact_match,
)
from .multiplication.metrics import (
    position_accuracy as position_accuracy,
)
from .multiplication.metrics import (
    sequence_accuracy as sequence_accuracy,
)
from .multiplication.metrics import (
    wilson_interval as wilson_interval,
)
from .multiplication.model import (
    DirectTransformer as DirectTransformer,
)
from .multiplication.model import (
    OutputHead as OutputHead,
)
from .multiplication.model import (
    TTMModel as TTMModel,
)
from .multiplication.model import (
    apply_digit_mask as apply_digit_mask,
)
from .multiplication.model import (
    apply_eos_boost as apply_eos_boost,
)
from .multiplication.model import (
    apply_eos_masking as apply_eos_masking,
)
from .multiplication.model import (
    create_eos_mask as create_eos_mask,
)
from .multiplication.model import (
    create_position_indices as create_position_indices,
)
from .multiplication.model import (
    create_product_steps as create_product_steps,
)
from .multiplication.model import (
    detect_eos as detect_eos,
)
from .multiplication.model import (
    extract_eos_probs as extract_eos_probs,
)
from .multiplication.model import (
    select_answers as select_answers,
)
from .multiplication.multiplier import (
    Multiplier as Multiplier,
)
from .multiplication.multiplier import (
    load as load,
)
from .multiplication.objective import create_state as create_state
from .multiplication.objective import eval_step as eval_step
from .multiplication.problems import (
    MultiplicationDataset as MultiplicationDataset,
)
from .multiplication.problems import (
    augment_batch as augment_batch,
)
from .multiplication.problems import (
    held_out_pairs as held_out_pairs,
)
from .multiplication.problems import (
    is_held_out as is_held_out,
)
from .multiplication.steps import training_arrays as training_arrays
from .multiplication.vocab import (
    DIGIT_TOKENS as DIGIT_TOKENS,
)
from .multiplication.vocab import (
    EOS_TOKEN as EOS_TOKEN,
)
from .multiplication.vocab import (
    PAD_TOKEN as PAD_TOKEN,
)
from .multiplication.vocab import (
    TIMES_TOKEN as TIMES_TOKEN,
)
from .multiplication.vocab import (
    VOCAB_SIZE as VOCAB_SIZE,
)
from .multiplication.vocab import (
    number_to_tokens as number_to_tokens,
)
from .multiplication.vocab import (
    tokens_to_string as tokens_to_string,
)
from .tasks import load_config as load_config
from .training.checkpoint_files import CheckpointError as CheckpointError
from .training.config import (
    ConfigError as ConfigError,
)
from .training.config import (
    OptimizerConfig as OptimizerConfig,
)
from .training.optimizer import (
    clip_by_global_norm as clip_by_global_norm,
)
from .training.optimizer import (
    learning_rate_schedule as learning_rate_schedule,
)
from .training.optimizer import (
    make_optimizer as make_optimizer,
)
from .training.step import (
    TrainState as TrainState,
)
from .training.step import (
    train_step as train_step,
)
