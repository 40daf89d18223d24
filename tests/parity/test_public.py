"""Both packages export the same names, but for those that only one framework needs."""

import sys
from types import SimpleNamespace

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


def test_the_twin_lists_each_name_once():
    assert ttm_torch.TTMModel
    listed = dir(ttm_torch)
    assert set(ttm_torch.__all__) < set(listed)
    assert len(set(listed)) == len(listed)


def test_names_asked_for_while_they_are_imported_are_not_the_last_word(monkeypatch):
    monkeypatch.delitem(vars(ttm_torch), "__all__", raising=False)
    with monkeypatch.context() as meanwhile:
        meanwhile.setitem(sys.modules, "ttm_torch.names", SimpleNamespace(VOCAB_SIZE=ttm_torch.VOCAB_SIZE))
        assert ttm_torch.__all__ == ["VOCAB_SIZE"]
    assert "TTMModel" in ttm_torch.__all__
