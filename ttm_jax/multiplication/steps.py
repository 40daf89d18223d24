"""What each machine step of the multiplier works out: a digit of the product, or one product of two digits. NumPy only.

Under "digit" step t answers place t. Under "product" a step adds the product of one digit of each operand to the sum
of its column, as in schoolbook multiplication: column by column, units first, each column's products with the digit
of the first operand rising. The last step of a column answers its place; what is carried stays in the sum. A column
without products, the leading one and those past the number, has one step.
"""

import numpy as np

from ttm_jax.multiplication.config import ModelConfig, ScheduleName
from ttm_jax.multiplication.problems import (
    MAX_DIGITS,
    SEQ_LEN,
    Batch,
    count_digits,
    decode_problems,
    digits_of,
    operand_lengths,
)

CARRY_HEAD_TARGETS: dict[ScheduleName, str] = {"digit": "carries", "product": "sums"}
NO_DIGIT = MAX_DIGITS  # in place of a digit's place value: the step multiplies nothing


def _columns(num_a: int, num_b: int) -> list[list[tuple[int, int, int]]]:
    """List the steps (place, place value of the first digit, and of the second) of each place of an n x m problem."""
    columns = []
    for place in range(SEQ_LEN):
        pairs = [(place, i, place - i) for i in range(num_a) if 0 <= place - i < num_b]
        columns.append(pairs or [(place, NO_DIGIT, NO_DIGIT)])
    return columns


def _tables() -> tuple[np.ndarray, np.ndarray]:
    sizes = range(1, MAX_DIGITS + 1)
    longest = sum(map(len, _columns(MAX_DIGITS, MAX_DIGITS)))
    steps = np.full((MAX_DIGITS, MAX_DIGITS, longest, 3), (SEQ_LEN - 1, NO_DIGIT, NO_DIGIT), np.int32)
    answered_at = np.zeros((MAX_DIGITS, MAX_DIGITS, SEQ_LEN), np.int32)
    for n in sizes:
        for m in sizes:
            columns = _columns(n, m)
            flat = [step for column in columns for step in column]
            steps[n - 1, m - 1, : len(flat)] = flat
            answered_at[n - 1, m - 1] = np.cumsum([len(column) for column in columns]) - 1
    return steps, answered_at


# By the digits of the operands, less one: what each step multiplies [5, 5, U, 3] (place, and the place values of the
# two digits), and the step that answers each place [5, 5, S].
PRODUCT_STEPS, ANSWERED_AT = _tables()


def num_machine_steps(schedule: ScheduleName, num_places: int) -> int:
    """Count the machine steps that answer so many places (1 to S) of all operands with fewer digits together."""
    if schedule == "digit":
        return num_places
    fitting = [(n, m) for n in range(MAX_DIGITS) for m in range(MAX_DIGITS) if n + m + 3 <= num_places] or [(0, 0)]
    return 1 + max(int(ANSWERED_AT[n, m, num_places - 1]) for n, m in fitting)


def steps_of_places(schedule: ScheduleName, digits_a: int, digits_b: int) -> list[slice]:
    """Return the machine steps of each place of a problem with operands of so many digits."""
    if schedule == "digit":
        return [slice(place, place + 1) for place in range(SEQ_LEN)]
    last = ANSWERED_AT[digits_a - 1, digits_b - 1]
    return [slice(first, end + 1) for first, end in zip([0, *(last[:-1] + 1)], last, strict=True)]


def check_fit(schedule: ScheduleName, inputs_BxS: np.ndarray, num_places: int | None) -> None:
    """Raise ValueError where, under "product", operands have more digits together than there are places, less one."""
    if schedule == "digit" or num_places is None or not len(inputs_BxS):
        return
    needed = int(np.add(*operand_lengths(inputs_BxS)).max()) + 1
    if needed > num_places:
        raise ValueError(f"num_steps must be at least {needed} for the longest of these problems, got {num_places}")


def running_sums(inputs_BxS: np.ndarray, num_places: int) -> np.ndarray:
    """Return the sum of the column after each step [B, U] (int32) under "product", the carry into it included.

    A tenth of the last sum of a column is carried to the next. Steps of places past the product's end have -1.
    """
    a, b = decode_problems(inputs_BxS)
    steps_BxUx3 = PRODUCT_STEPS[tuple(np.clip(operand_lengths(inputs_BxS), 1, MAX_DIGITS) - 1)]
    digits_a, digits_b = (np.pad(digits_of(x), ((0, 0), (0, 1))) for x in (a, b))  # NO_DIGIT is a zero
    rows, sums, num_digits = np.arange(len(a)), [], count_digits(a * b)
    running, column = np.zeros(len(a), np.int64), np.zeros(len(a), np.int64)
    for place, i, j in steps_BxUx3[:, : num_machine_steps("product", num_places)].transpose(1, 2, 0):
        running = np.where(place != column, running // 10, running) + digits_a[rows, i] * digits_b[rows, j]
        sums.append(np.where(place < num_digits, running, -1))
        column = place
    return np.stack(sums, axis=1).astype(np.int32)


def training_arrays(batch: Batch, config: ModelConfig, num_places: int) -> dict[str, np.ndarray]:
    """Make what `train_step` takes of a batch: "inputs" [B, S], "targets" [B, T], and what a carry head is trained on.

    That is "carries" [B, T], or under the schedule "product" "sums" [B, U].

    Raises:
        ValueError: under "product", if the operands of a problem have more than T - 1 digits together.
    """
    check_fit(config.schedule, batch.inputs, num_places)
    arrays = {"inputs": batch.inputs, "targets": batch.targets[:, :num_places]}
    if config.schedule == "product":
        return {**arrays, "sums": running_sums(batch.inputs, num_places)}
    return {**arrays, "carries": batch.carries[:, :num_places]}
