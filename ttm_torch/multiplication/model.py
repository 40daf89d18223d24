"""The multiplier: embedded problem -> Token Turing Machine -> head, one machine step a digit of the product.

At step t the machine sees the whole problem plus an embedding of place t, units first. Its first output token gives
the logits of that digit. The running sum and the carry have to live in memory. The schedule "product"
(`ttm_jax.multiplication.steps`) tells each step two digits to multiply. A place then has as many machine steps as its
column of schoolbook multiplication has products.
"""

import torch
from torch import Tensor, nn

from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.multiplication.problems import MAX_CARRY, MAX_DIGITS
from ttm_jax.multiplication.steps import ANSWERED_AT, NO_DIGIT, PRODUCT_STEPS, num_machine_steps
from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN, TIMES_TOKEN, VOCAB_SIZE
from ttm_jax.training.config import ConfigError
from ttm_torch.machine.initializers import lecun_normal, normal
from ttm_torch.machine.layers import Embedding, at_least_float32, gelu
from ttm_torch.machine.machine import TokenTuringMachine
from ttm_torch.machine.script import script

NUM_DIGIT_LOGITS = 11  # tokens 0-10: the sign shares the digits' head, so that index is token
PAD_LOGIT = -10_000.0
EOS_BIAS = 1000.0
EOS_THRESHOLD = 0.5
DTYPES = (("float32", "float32"), ("float64", "float64"), ("bfloat16", "float32"))
_SIGN_INDEX, _OTHER_INDEX = MAX_DIGITS, 2 * MAX_DIGITS + 1


def create_position_indices(inputs_BxS: Tensor) -> Tensor:
    """Find the row of the position table for each token [B, S]: its place value.

    0-4 are units, tens, ... of the first operand, 5 the sign, 6-10 units, tens, ... of the second operand,
    11 EOS and padding.
    """
    position = torch.arange(inputs_BxS.shape[1], device=inputs_BxS.device)[None]
    sign = (inputs_BxS == TIMES_TOKEN).int().argmax(dim=1, keepdim=True)
    end = (inputs_BxS == EOS_TOKEN).int().argmax(dim=1, keepdim=True)
    index = torch.where(position < sign, sign - 1 - position, _SIGN_INDEX)
    index = torch.where(position > sign, _SIGN_INDEX + end - position, index)
    return torch.where(position >= end, _OTHER_INDEX, index.clamp(0, _OTHER_INDEX))


def create_product_steps(inputs_BxS: Tensor) -> Tensor:
    """List what each machine step multiplies [B, U, 3]: its place, and the place values of the two digits."""
    return torch.as_tensor(PRODUCT_STEPS, device=inputs_BxS.device)[_length_indices(inputs_BxS)]


def select_answers(config: ModelConfig, inputs_BxS: Tensor, steps_BxUxV: Tensor, num_places: int) -> Tensor:
    """Select from the outputs of U machine steps those that answer the first T = `num_places` places [B, T, V].

    Places that these steps do not answer are NaN: see `num_steps` of `TTMModel`, which counts places too.
    """
    if config.schedule == "digit":
        return steps_BxUxV
    answered_at = torch.as_tensor(ANSWERED_AT, device=inputs_BxS.device)
    index_BxTx1 = answered_at[_length_indices(inputs_BxS)][:, :num_places, None].long()
    U = steps_BxUxV.shape[1]
    answers_BxTxV = steps_BxUxV.take_along_dim(index_BxTx1.clamp(max=U - 1), dim=1)
    return answers_BxTxV.masked_fill(index_BxTx1 >= U, torch.nan)


def _length_indices(inputs_BxS: Tensor) -> tuple[Tensor, Tensor]:
    """Count the digits of both operands, less one: indices into the tables of machine steps."""
    sign, end = ((inputs_BxS == token).int().argmax(dim=1) for token in (TIMES_TOKEN, EOS_TOKEN))
    return (sign - 1).clamp(0, MAX_DIGITS - 1), (end - sign - 2).clamp(0, MAX_DIGITS - 1)


def predict_tokens(logits_BxTxV: Tensor) -> Tensor:
    """Choose the likeliest token of each place [B, T]; padding, which is never right, where logits are NaN."""
    return torch.where(logits_BxTxV.isnan().any(dim=-1), PAD_TOKEN, logits_BxTxV.argmax(dim=-1))


def extract_eos_probs(logits_BxSxV: Tensor) -> Tensor:
    """Compute the probability of EOS at each position [B, S]: softmax over the vocabulary."""
    return logits_BxSxV.softmax(dim=-1)[..., EOS_TOKEN]


def detect_eos(logits_BxSxV: Tensor) -> Tensor:
    """Tell (bool [B, S]) where EOS has a probability above 0.5."""
    return extract_eos_probs(logits_BxSxV) > EOS_THRESHOLD


@script
def create_eos_mask(has_eos_BxS: Tensor) -> Tensor:
    """Mark with 1 each position [B, S] after the first EOS, with 0 those up to and including it."""
    seen_BxS = has_eos_BxS.int().cumsum(dim=1) - has_eos_BxS.int()
    return (seen_BxS > 0).float()


def apply_digit_mask(logits_BxSxV: Tensor, mask_BxS: Tensor) -> Tensor:
    """Add -1000 to the digit logits where the mask is 1."""
    bias_BxS = (-EOS_BIAS * mask_BxS).to(logits_BxSxV.dtype)
    digits, others = logits_BxSxV[..., :NUM_DIGIT_LOGITS], logits_BxSxV[..., NUM_DIGIT_LOGITS:]
    return torch.cat([digits + bias_BxS[..., None], others], dim=-1)


def apply_eos_boost(logits_BxSxV: Tensor, mask_BxS: Tensor) -> Tensor:
    """Add 1000 to the EOS logit where the mask is 1."""
    boosted = logits_BxSxV.clone()
    boosted[..., EOS_TOKEN] += (EOS_BIAS * mask_BxS).to(logits_BxSxV.dtype)
    return boosted


def apply_eos_masking(logits_BxSxV: Tensor, has_eos_BxS: Tensor) -> Tensor:
    """Make every position after the first EOS an EOS."""
    mask_BxS = create_eos_mask(has_eos_BxS)
    return apply_eos_boost(apply_digit_mask(logits_BxSxV, mask_BxS), mask_BxS)


def check_model(config: ModelConfig) -> None:
    """Refuse what the twin does not have: the baseline, or a pair of types. Raises ConfigError."""
    if config.kind != "machine":
        raise ConfigError(f"model.kind must in PyTorch be machine, got {config.kind}: the baseline is JAX's alone")
    if (config.dtype, config.param_dtype) not in DTYPES:
        raise ConfigError(
            "model.dtype and model.param_dtype must in PyTorch be both float32, both float64, or bfloat16 and float32; "
            f"got {config.dtype} and {config.param_dtype}"
        )


class OutputHead(nn.Module):
    """Tokens [..., D] to logits [..., 13]: two GELU layers, then digits and EOS; padding is never the answer."""

    def __init__(self, width: int):
        super().__init__()
        self.pre_output1 = _dense(width, width)
        self.pre_output2 = _dense(width, width // 2)
        self.digit_head = _dense(width // 2, NUM_DIGIT_LOGITS)
        self.eos_head = _dense(width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = gelu(self.pre_output2(gelu(self.pre_output1(x))))
        digits, eos = self.digit_head(x), self.eos_head(x)
        return at_least_float32(torch.cat([digits, eos, torch.full_like(eos, PAD_LOGIT)], dim=-1))


class TTMModel(nn.Module):
    """The multiplier: input tokens [B, S] (int) to logits [B, S, 13] of the product, least significant digit first.

        model = TTMModel(config.model)
        logits_BxSx13 = model(inputs_BxS)

    `config.dtype` "bfloat16" computes under autocast, with the memory and the loss in float32. `config.remat` is
    ignored: it changes no result.

    Raises:
        ConfigError: for types other than those of DTYPES, and for the baseline.
    """

    def __init__(self, config: ModelConfig | None = None):
        super().__init__()
        self.config = c = ModelConfig() if config is None else config
        check_model(c)
        self.token_embed = Embedding(VOCAB_SIZE, c.width, normal(1.0))
        self.pos_embed = Embedding(c.seq_len, c.width, normal(0.5))
        self.place_embed = Embedding(c.seq_len, c.width, normal(0.5))
        if c.schedule == "product":
            self.first_digit_embed = Embedding(NO_DIGIT + 1, c.width, normal(0.5))
            self.second_digit_embed = Embedding(NO_DIGIT + 1, c.width, normal(0.5))
        self.machine = TokenTuringMachine(
            width=c.width,
            num_tokens=c.seq_len,
            memory_size=c.memory_size,
            process_size=c.process_size,
            read=c.read,
            write=c.write,
            processing=c.processing,
            num_layers=c.num_layers,
            mlp_dim=c.mlp_dim,
            num_heads=c.num_heads,
            positions=c.positions,
            dropout_rate=c.dropout_rate,
            learned_memory=c.learned_memory,
        )
        self.head = OutputHead(c.width)
        if c.carry_head:
            self.carry_head = _dense(c.width, MAX_CARRY + 1)
        self.to(getattr(torch, c.param_dtype))

    def forward(self, inputs_BxS: Tensor, num_steps: int | None = None) -> Tensor:
        """Compute the logits [B, T, 13] of the first T = `num_steps` places of the answer (all S where None).

        `num_steps` counts places, whatever the schedule. Under "product" only problems whose operands have at most
        T - 1 digits together are worked out to their end; the places that others lack are NaN.

        In training mode dropout is on, and logits are as the head gives them. In evaluation mode all positions after
        the first predicted EOS are EOS.

        Raises:
            ValueError: if the inputs are not [B, S] with the config's S, or `num_steps` is not in 1..S.
        """
        logits_BxTxV = self.raw_logits(inputs_BxS, num_steps)
        return logits_BxTxV if self.training else apply_eos_masking(logits_BxTxV, detect_eos(logits_BxTxV))

    def raw_logits(self, inputs_BxS: Tensor, num_steps: int | None = None) -> Tensor:
        """Compute the logits of a call, with nothing masked."""
        logits_BxUxV, _ = self.heads(inputs_BxS, num_steps)
        return select_answers(self.config, inputs_BxS, logits_BxUxV, num_steps or self.config.seq_len)

    def heads(self, inputs_BxS: Tensor, num_steps: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute the unmasked logits of each machine step [B, U, 13], and of what is carried out of it [B, U, 45].

        `num_steps` is the number of places T; U, the number of machine steps, is T too under the schedule "digit".
        `select_answers` takes the steps that answer a place. Without a `carry_head` the carry logits are None.
        """
        c = self.config
        num_steps = c.seq_len if num_steps is None else num_steps
        if inputs_BxS.ndim != 2 or inputs_BxS.shape[1] != c.seq_len:
            raise ValueError(f"inputs must be [B, {c.seq_len}], got shape {tuple(inputs_BxS.shape)}")
        if not 1 <= num_steps <= c.seq_len:
            raise ValueError(f"num_steps must be in 1..{c.seq_len}, got {num_steps}")

        with torch.autocast(inputs_BxS.device.type, torch.bfloat16, enabled=c.dtype == "bfloat16"):
            problem_BxSxD = self._embed_inputs(inputs_BxS)
            steps_BxUxD = self._embed_steps(inputs_BxS, num_machine_steps(c.schedule, num_steps))
            outputs_BxUxRxD, _ = self.machine(problem_BxSxD[:, None] + steps_BxUxD[:, :, None])
            answer_BxUxD = outputs_BxUxRxD[:, :, 0]
            logits_BxUxV = self._compute_output_head(answer_BxUxD)
            carry_logits_BxUxC = at_least_float32(self.carry_head(answer_BxUxD)) if c.carry_head else None
        return logits_BxUxV, carry_logits_BxUxC

    # The parts of the model under the checklist's names.

    @property
    def memory_init(self) -> Tensor:
        """Return the initial memory [1, M, D]: a parameter, where the config has it learned."""
        return self.machine.initial_memory

    @property
    def pre_output1(self) -> nn.Linear:
        return self.head.pre_output1

    @property
    def pre_output2(self) -> nn.Linear:
        return self.head.pre_output2

    @property
    def digit_head(self) -> nn.Linear:
        return self.head.digit_head

    @property
    def eos_head(self) -> nn.Linear:
        return self.head.eos_head

    def _broadcast_memory(self, batch_size: int) -> Tensor:
        return self.machine.broadcast_memory(batch_size)

    def _initialize_memory(self, batch_size: int) -> Tensor:
        return self.machine.broadcast_memory(batch_size)

    def _create_position_indices(self, inputs_BxS: Tensor) -> Tensor:
        return create_position_indices(inputs_BxS)

    def _embed_inputs(self, inputs_BxS: Tensor) -> Tensor:
        """Embed the problem [B, S, D]; each machine step adds the embedding of what it works out."""
        return self.token_embed(inputs_BxS) + self.pos_embed(self._create_position_indices(inputs_BxS))

    def _embed_steps(self, inputs_BxS: Tensor, num_steps: int) -> Tensor:
        """Embed what each of U = `num_steps` machine steps works out: [1, U, D], or [B, U, D] under "product"."""
        if self.config.schedule == "digit":
            return self.place_embed.weight[None, :num_steps]
        place_BxU, first_BxU, second_BxU = create_product_steps(inputs_BxS)[:, :num_steps].unbind(dim=-1)
        digits_BxUxD = self.first_digit_embed(first_BxU) + self.second_digit_embed(second_BxU)
        return self.place_embed(place_BxU) + digits_BxUxD

    def _read(self, memory_BxMxD: Tensor, tokens_BxSxD: Tensor) -> Tensor:
        return self.machine.get_submodule("step.read")(memory_BxMxD, tokens_BxSxD)

    def _process(self, read_BxRxD: Tensor) -> Tensor:
        return self.machine.get_submodule("step.process")(read_BxRxD)

    def _write(self, memory_BxMxD: Tensor, output_BxRxD: Tensor, tokens_BxSxD: Tensor) -> Tensor:
        return self.machine.get_submodule("step.write")(memory_BxMxD, output_BxRxD, tokens_BxSxD)

    def _compute_output_head(self, tokens: Tensor) -> Tensor:
        return self.head(tokens)

    def _detect_eos(self, logits_BxSxV: Tensor) -> Tensor:
        return detect_eos(logits_BxSxV)

    def _create_eos_mask(self, has_eos_BxS: Tensor) -> Tensor:
        return create_eos_mask(has_eos_BxS)

    def _apply_digit_mask(self, logits_BxSxV: Tensor, mask_BxS: Tensor) -> Tensor:
        return apply_digit_mask(logits_BxSxV, mask_BxS)

    def _apply_eos_boost(self, logits_BxSxV: Tensor, mask_BxS: Tensor) -> Tensor:
        return apply_eos_boost(logits_BxSxV, mask_BxS)

    def _apply_eos_masking(self, logits_BxSxV: Tensor, has_eos_BxS: Tensor) -> Tensor:
        return apply_eos_masking(logits_BxSxV, has_eos_BxS)


def _dense(in_dim: int, out_dim: int) -> nn.Linear:
    linear = nn.Linear(in_dim, out_dim)
    lecun_normal()(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


assert PAD_TOKEN == VOCAB_SIZE - 1 == NUM_DIGIT_LOGITS + 1  # the order in which the head concatenates
