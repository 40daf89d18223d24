"""Autoregressive text: corpora, a language model whose recurrent cell is the machine, evaluation and generation."""
