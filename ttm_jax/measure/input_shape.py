"""The shapes that the cost of a model is asked for, the same in both twins."""

TRAIN_BATCH = 128  # problems of a training step where no shape is given


def check_input_shape(seq_len: int | None, shape: tuple[int, ...] | None, batch_size: int) -> tuple[int, ...]:
    """Check a shape: [B, S] of a multiplier, `batch_size` by `seq_len` where None; [B, T, N, D] of a machine.

    Raises:
        ValueError: if the shape is not the model's.
    """
    if seq_len is not None:
        shape = (batch_size, seq_len) if shape is None else tuple(shape)
        if len(shape) != 2 or shape[1] != seq_len or shape[0] < 1:
            raise ValueError(f"input_shape must be [B, {seq_len}], got {shape}")
    elif shape is None or len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"input_shape must be [B, T, N, D], got {shape}")
    return tuple(shape)
