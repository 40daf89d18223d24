"""Both packages export the same names, but for those that only one framework needs."""

import ttm_jax
import ttm_torch

TEXT = {"LanguageModel", "TTMLanguageModel", "TransformerLanguageModel", "Writer"}  # a task of JAX alone
ONLY_JAX = {"DirectTransformer", "clip_by_global_norm", "flops", "keep_freed_memory", "learning_rate_schedule"} | TEXT
# Modules that Flax and Optax have; the rate as the checklist asks for it; the `nn` of the checklist's expressions.
ONLY_TORCH = {"Embedding", "Muon", "Scheduler", "learning_rate", "make_scheduler", "nn"}


def test_the_names_are_the_same():
    ours, theirs = set(ttm_torch.__all__), set(ttm_jax.__all__)
    assert theirs - ours == ONLY_JAX
    assert ours - theirs == ONLY_TORCH
