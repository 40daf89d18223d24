"""The public names, one list: `ttm_jax/__init__.py` imports each from here when it is first asked for."""

__version__: str

from .hardware.allocator import keep_freed_memory as keep_freed_memory
from .machine import flops as flops
from .machine.layers import (
    FeedForward as FeedForward,
    MultiHeadAttention as MultiHeadAttention,
    Positions as Positions,
)
from .machine.machine import (
    SimpleTokenTuringMachine as SimpleTokenTuringMachine,
    SimpleTokenTuringMachineStep as SimpleTokenTuringMachineStep,
    TokenTuringMachine as TokenTuringMachine,
    TokenTuringMachineStep as TokenTuringMachineStep,
)
from .machine.memory import (
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
from .machine.processing import (
    MixerStack as MixerStack,
    MLPStack as MLPStack,
    TransformerBlock as TransformerBlock,
    TransformerStack as TransformerStack,
    make_processor as make_processor,
    process as process,
)
from .machine.summarize import (
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
from .measure.cost import (
    measure_flops as measure_flops,
    measure_memory as measure_memory,
)
from .multiplication.config import (
    Config as Config,
    CurriculumConfig as CurriculumConfig,
    DataConfig as DataConfig,
    ModelConfig as ModelConfig,
    TrainConfig as TrainConfig,
)
from .multiplication.losses import (
    compute_ce_loss as compute_ce_loss,
    compute_eos_bce as compute_eos_bce,
    compute_masked_ce_loss as compute_masked_ce_loss,
    compute_normalized_ce_loss as compute_normalized_ce_loss,
    compute_total_loss as compute_total_loss,
    create_eos_target as create_eos_target,
    find_eos_positions as find_eos_positions,
)
from .multiplication.metrics import (
    create_target_mask as create_target_mask,
    exact_match as exact_match,
    position_accuracy as position_accuracy,
    sequence_accuracy as sequence_accuracy,
)
from .multiplication.model import (
    DirectTransformer as DirectTransformer,
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
from .multiplication.multiplier import Multiplier as Multiplier
from .multiplication.objective import create_state as create_state, eval_step as eval_step
from .multiplication.problems import (
    MultiplicationDataset as MultiplicationDataset,
    augment_batch as augment_batch,
    held_out_pairs as held_out_pairs,
    is_held_out as is_held_out,
)
from .multiplication.steps import training_arrays as training_arrays
from .multiplication.vocab import (
    DIGIT_TOKENS as DIGIT_TOKENS,
    EOS_TOKEN as EOS_TOKEN,
    PAD_TOKEN as PAD_TOKEN,
    TIMES_TOKEN as TIMES_TOKEN,
    VOCAB_SIZE as VOCAB_SIZE,
    number_to_tokens as number_to_tokens,
    tokens_to_string as tokens_to_string,
)
from .statistics import wilson_interval as wilson_interval
from .tasks import load as load, load_config as load_config
from .text.language_model import LanguageModel as LanguageModel, Writer as Writer
from .text.model import (
    TransformerLanguageModel as TransformerLanguageModel,
    TTMLanguageModel as TTMLanguageModel,
)
from .training.checkpoint_files import CheckpointError as CheckpointError
from .training.config import (
    ConfigError as ConfigError,
    OptimizerConfig as OptimizerConfig,
)
from .training.optimizer import (
    clip_by_global_norm as clip_by_global_norm,
    learning_rate_schedule as learning_rate_schedule,
    make_optimizer as make_optimizer,
)
from .training.step import (
    TrainState as TrainState,
    train_step as train_step,
)
