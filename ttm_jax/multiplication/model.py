"""The multiplier: embedded problem -> Token Turing Machine -> head, one machine step a digit of the product.

At step t the machine sees the whole problem plus an embedding of place t (units first), and its first output
token gives the logits of that digit. The running sum and the carry have to live in memory. Under the schedule
"product" (`ttm_jax.multiplication.steps`) a step is told two digits to multiply, and a place has as many steps as its
column of schoolbook multiplication has products.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from ttm_jax.machine.layers import LayerNorm, Module, at_least_float32
from ttm_jax.machine.machine import TokenTuringMachine
from ttm_jax.machine.processing import TransformerBlock
from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.multiplication.problems import MAX_CARRY, MAX_DIGITS
from ttm_jax.multiplication.steps import ANSWERED_AT, NO_DIGIT, PRODUCT_STEPS, num_machine_steps
from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN, TIMES_TOKEN, VOCAB_SIZE

NUM_DIGIT_LOGITS = 11  # tokens 0-10: the sign shares the digits' head, so that index is token
PAD_LOGIT = -10_000.0
EOS_BIAS = 1000.0
EOS_THRESHOLD = 0.5
_SIGN_INDEX, _OTHER_INDEX = MAX_DIGITS, 2 * MAX_DIGITS + 1


def create_position_indices(inputs_BxS: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Return each token's row in the position table: its place value.

    0-4 are units, tens, ... of the first operand, 5 the sign, 6-10 those of the second, 11 EOS and padding.
    """
    position = jnp.arange(inputs_BxS.shape[1])[None]
    sign = jnp.argmax(inputs_BxS == TIMES_TOKEN, axis=1)[:, None]
    end = jnp.argmax(inputs_BxS == EOS_TOKEN, axis=1)[:, None]
    index = jnp.where(position < sign, sign - 1 - position, _SIGN_INDEX)
    index = jnp.where(position > sign, _SIGN_INDEX + end - position, index)
    return jnp.where(position >= end, _OTHER_INDEX, jnp.clip(index, 0, _OTHER_INDEX))


def create_product_steps(inputs_BxS: Int[Array, "B S"]) -> Int[Array, "B U 3"]:
    """Return what each step of each problem multiplies: its place, and the place values of the two digits."""
    return jnp.asarray(PRODUCT_STEPS)[_length_indices(inputs_BxS)]


def select_answers(
    config: ModelConfig, inputs_BxS: Int[Array, "B S"], steps_BxUxV: Float[Array, "B U V"], num_places: int
) -> Float[Array, "B T V"]:
    """Pick what the machine says at the steps that answer the first `num_places` (T) places.

    Places that these steps do not answer are NaN: see `num_steps` of the model.
    """
    if config.schedule == "digit":
        return steps_BxUxV
    answered_at_BxT = jnp.asarray(ANSWERED_AT)[_length_indices(inputs_BxS)][:, :num_places]
    return jnp.take_along_axis(steps_BxUxV, answered_at_BxT[..., None], axis=1, mode="fill")


def _length_indices(inputs_BxS: Int[Array, "B S"]) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Return the digits of both operands, less one, as indices into the tables of steps."""
    sign, end = (jnp.argmax(inputs_BxS == token, axis=1) for token in (TIMES_TOKEN, EOS_TOKEN))
    return jnp.clip(sign - 1, 0, MAX_DIGITS - 1), jnp.clip(end - sign - 2, 0, MAX_DIGITS - 1)


def predict_tokens(logits_BxTxV: Float[Array, "B T V"]) -> Int[Array, "B T"]:
    """Return the likeliest token of each place; where the logits are NaN, padding, which is never right."""
    return jnp.where(jnp.isnan(logits_BxTxV).any(axis=-1), PAD_TOKEN, logits_BxTxV.argmax(axis=-1))


def extract_eos_probs(logits_BxSxV: Float[Array, "B S V"]) -> Float[Array, "B S"]:
    """Compute the probability of EOS at each position: softmax over the vocabulary."""
    return jax.nn.softmax(logits_BxSxV, axis=-1)[..., EOS_TOKEN]


def detect_eos(logits_BxSxV: Float[Array, "B S V"]) -> Bool[Array, "B S"]:
    """Say where EOS has a probability above 0.5."""
    return extract_eos_probs(logits_BxSxV) > EOS_THRESHOLD


def create_eos_mask(has_eos_BxS: Bool[Array, "B S"]) -> Float[Array, "B S"]:
    """Make a mask of 1 at each position after the first EOS, 0 up to and including it."""
    seen_BxS = jnp.cumsum(has_eos_BxS, axis=1) - has_eos_BxS
    return (seen_BxS > 0).astype(jnp.float32)


def apply_digit_mask(logits_BxSxV: Float[Array, "B S V"], mask_BxS: Float[Array, "B S"]) -> Float[Array, "B S V"]:
    """Add -1000 to the digit logits where the mask is 1."""
    bias_BxS = (-EOS_BIAS * mask_BxS).astype(logits_BxSxV.dtype)
    return logits_BxSxV.at[..., :NUM_DIGIT_LOGITS].add(bias_BxS[..., None])


def apply_eos_boost(logits_BxSxV: Float[Array, "B S V"], mask_BxS: Float[Array, "B S"]) -> Float[Array, "B S V"]:
    """Add 1000 to the EOS logit where the mask is 1."""
    return logits_BxSxV.at[..., EOS_TOKEN].add((EOS_BIAS * mask_BxS).astype(logits_BxSxV.dtype))


def apply_eos_masking(logits_BxSxV: Float[Array, "B S V"], has_eos_BxS: Bool[Array, "B S"]) -> Float[Array, "B S V"]:
    """Make every position after the first EOS an EOS."""
    mask_BxS = create_eos_mask(has_eos_BxS)
    return apply_eos_boost(apply_digit_mask(logits_BxSxV, mask_BxS), mask_BxS)


class OutputHead(Module):
    """Tokens [..., D] to logits [..., 13]: two GELU layers, then digits and EOS; padding is never the answer."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtypes = dict(dtype=jnp.dtype(self.config.dtype), param_dtype=jnp.dtype(self.config.param_dtype))
        x = nn.gelu(nn.Dense(self.config.width, **dtypes, name="pre_output1")(x))
        x = nn.gelu(nn.Dense(self.config.width // 2, **dtypes, name="pre_output2")(x))
        digits = nn.Dense(NUM_DIGIT_LOGITS, **dtypes, name="digit_head")(x)
        eos = nn.Dense(1, **dtypes, name="eos_head")(x)
        pad = jnp.full_like(eos, PAD_LOGIT)
        return at_least_float32(jnp.concatenate([digits, eos, pad], axis=-1))


def make_machine(config: ModelConfig, name: str | None = None) -> TokenTuringMachine:
    """Make the machine inside the multiplier of a config."""
    return TokenTuringMachine(
        memory_size=config.memory_size,
        process_size=config.process_size,
        read=config.read,
        write=config.write,
        processing=config.processing,
        num_layers=config.num_layers,
        mlp_dim=config.mlp_dim,
        num_heads=config.num_heads,
        positions=config.positions,
        dropout_rate=config.dropout_rate,
        learned_memory=config.learned_memory,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        remat=False if config.remat == "none" else config.remat,
        name=name,
    )


class TTMModel(Module):
    """Multiplies: input tokens [B, S] (int) to logits [B, S, 13] of the product, least significant digit first.

    model = TTMModel(config.model)
    variables = model.init(key, inputs_BxS)
    logits_BxSx13 = model.apply(variables, inputs_BxS)
    """

    config: ModelConfig = ModelConfig()

    def __call__(self, inputs_BxS: jax.Array, train: bool = False, num_steps: int | None = None) -> jax.Array:
        """Return the logits [B, T, 13] of the first T = `num_steps` output places (all S where None).

        `num_steps` counts places, not machine steps. Under the schedule "product" only problems whose operands have at
        most T - 1 digits together are worked out to their end; what others lack is NaN.

        In training dropout is on and logits are as the head gives them. Otherwise all positions after the first
        predicted EOS are EOS.

        Raises:
            ValueError: if the inputs are not [B, S] with the config's S, or `num_steps` is not in 1..S.
        """
        logits_BxTxV = self.raw_logits(inputs_BxS, train, num_steps)
        return logits_BxTxV if train else apply_eos_masking(logits_BxTxV, detect_eos(logits_BxTxV))

    def raw_logits(self, inputs_BxS: jax.Array, train: bool = False, num_steps: int | None = None) -> jax.Array:
        """Return the logits of a call with nothing masked."""
        logits_BxUxV, _ = self.heads(inputs_BxS, train, num_steps)
        return select_answers(self.config, inputs_BxS, logits_BxUxV, num_steps or self.config.seq_len)

    @nn.compact
    def heads(
        self, inputs_BxS: jax.Array, train: bool = False, num_steps: int | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the unmasked logits of each machine step [B, U, 13], and of what is carried out of it [B, U, 45].

        `num_steps` counts places, U the machine steps that answer them, as many under the schedule "digit".
        `select_answers` takes the steps that answer a place. The carry logits are None where the config has no
        `carry_head`. Nothing else is computed from them: the head makes the carry readable in the output token, where
        training can ask for it.
        """
        c = self.config
        num_steps = c.seq_len if num_steps is None else num_steps
        if inputs_BxS.ndim != 2 or inputs_BxS.shape[1] != c.seq_len:
            raise ValueError(f"inputs must be [B, {c.seq_len}], got shape {inputs_BxS.shape}")
        if not 1 <= num_steps <= c.seq_len:
            raise ValueError(f"num_steps must be in 1..{c.seq_len}, got {num_steps}")

        dtype, param_dtype = jnp.dtype(c.dtype), jnp.dtype(c.param_dtype)

        def table(rows: int, stddev: float, name: str) -> nn.Embed:
            init = nn.initializers.normal(stddev)
            return nn.Embed(rows, c.width, dtype, param_dtype, embedding_init=init, name=name)

        # The problem: each token with its place value.
        problem_BxSxD = table(VOCAB_SIZE, 1.0, "token_embed")(inputs_BxS) + table(c.seq_len, 0.5, "pos_embed")(
            create_position_indices(inputs_BxS)
        )
        # What a machine step is told: its place, and under "product" the two digits that it multiplies.
        embed_place = table(c.seq_len, 0.5, "place_embed")
        U = num_machine_steps(c.schedule, num_steps)
        if c.schedule == "product":
            place_BxU, first_BxU, second_BxU = jnp.unstack(create_product_steps(inputs_BxS)[:, :U], axis=-1)
            steps_BxUxD = embed_place(place_BxU) + table(NO_DIGIT + 1, 0.5, "first_digit_embed")(first_BxU)
            steps_BxUxD += table(NO_DIGIT + 1, 0.5, "second_digit_embed")(second_BxU)
        else:
            steps_BxUxD = embed_place(jnp.arange(c.seq_len))[None]
        answer_BxUxD = self._answer(problem_BxSxD, steps_BxUxD, U, train)
        logits_BxUxV = OutputHead(c, name="head")(answer_BxUxD)
        if not c.carry_head:
            return logits_BxUxV, None
        carry_head = nn.Dense(MAX_CARRY + 1, dtype=dtype, param_dtype=param_dtype, name="carry_head")
        return logits_BxUxV, at_least_float32(carry_head(answer_BxUxD))

    def _answer(self, problem_BxSxD: jax.Array, steps_BxUxD: jax.Array, num_steps: int, train: bool) -> jax.Array:
        """Return the token [B, U, D] that answers at each of U = `num_steps` machine steps: the machine's first."""
        # A product, since its gradient is one too: XLA's sum over the leading axis takes thirty times as long on a CPU.
        problem_BxUxSxD = jnp.einsum("bsd,u->busd", problem_BxSxD, jnp.ones(num_steps, problem_BxSxD.dtype))
        tokens_BxUxSxD = problem_BxUxSxD + steps_BxUxD[:, :num_steps, None]
        outputs_BxUxRxD, _ = make_machine(self.config, name="machine")(tokens_BxUxSxD, train=train)
        return outputs_BxUxRxD[:, :, 0]


class DirectTransformer(TTMModel):
    """The baseline: a plain Transformer that answers all places at once, without steps and without memory.

    Called as `TTMModel`; its blocks see the problem and a token for each of the S places. Of the config's model it
    uses width, blocks, heads, MLP width, dropout and dtypes.
    """

    def _answer(self, problem_BxSxD: jax.Array, steps_BxUxD: jax.Array, num_steps: int, train: bool) -> jax.Array:
        c = self.config
        dtypes = dict(dtype=jnp.dtype(c.dtype), param_dtype=jnp.dtype(c.param_dtype))
        places_BxSxD = jnp.broadcast_to(steps_BxUxD, problem_BxSxD.shape)
        x = jnp.concatenate([problem_BxSxD, places_BxSxD], axis=1)
        for layer in range(c.num_layers):
            x = TransformerBlock(c.num_heads, c.mlp_dim, c.dropout_rate, **dtypes, name=f"block_{layer}")(x, train)
        return LayerNorm(**dtypes, name="norm")(x)[:, c.seq_len : c.seq_len + num_steps]


def make_model(config: ModelConfig) -> TTMModel:
    """Make the model of a config: of `kind` "machine", or the baseline of `kind` "transformer"."""
    return {"machine": TTMModel, "transformer": DirectTransformer}[config.kind](config)


def head_cost(config: ModelConfig) -> int:
    """Count the multiply-adds of the head at one step: D^2 + D D/2 + 12 D/2, and 45 D for a carry head."""
    D, half = config.width, config.width // 2
    carries = D * (MAX_CARRY + 1) if config.carry_head else 0
    return D * D + D * half + half * (NUM_DIGIT_LOGITS + 1) + carries


assert PAD_TOKEN == VOCAB_SIZE - 1 == NUM_DIGIT_LOGITS + 1  # the order in which the head concatenates
