"""The text models: what their configs cost, and tokens a second in training, reading and writing, beside a prediction.

A prediction knows nothing but rates of this machine: of products in training and reading, whose shapes are the
config's own, and in writing of weights that are read for each token. A call of writing draws as many tokens as a
segment has, from the middle of one to the middle of the next, so that the machine makes its step once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttm_jax.cli import Progress
from ttm_jax.hardware.detect import detect_machine
from ttm_jax.machine.causal_transformer import Cache, CausalTransformer
from ttm_jax.machine.flops import TRAINING_PASSES
from ttm_jax.measure.ceilings import PRODUCT, CeilingSizes, ceiling_functions, ceiling_sizes
from ttm_jax.measure.program import Program, Turns
from ttm_jax.measure.report import Table, median, percent, planned_memory, quartiles, scaled, times
from ttm_jax.measure.workload import normal, random_variables, training_program
from ttm_jax.tasks import load_config, make_objective
from ttm_jax.text import sampling
from ttm_jax.text.analyse import analyse
from ttm_jax.text.config import Config
from ttm_jax.text.language_model import WINDOW
from ttm_jax.text.model import Place
from ttm_jax.text.objective import TextObjective
from ttm_jax.training.config import ConfigError, override
from ttm_jax.training.mesh import place
from ttm_jax.training.step import make_state

TITLE, FLAG = "Text", "--text"
CONFIGS = (
    "text/quick",
    "text/autoregressive_fast",
    "text/wiki_performance_tuned",
    "text/wiki_cache_optimized",
    "text/wiki_gpu_optimized",
)
KINDS = "transformer", "ttm"
QUICK = {"configs": CONFIGS[:1], "largest": 2**22, "contexts": (256, 1024), "budget_s": 0.5}
CONTEXTS = 256, 4096, 65_536
SMALLEST, LARGEST = 2**15, 2**28  # bytes of the matrices whose bandwidth is measured
READS = 2**27  # bytes that a call reads
FULL = "full attention"
LABELS = {"transformer": "plain, window", "ttm": "with the machine", FULL: FULL}  # of the models, for people
ROUNDS = 5  # over which calls are spread: a step of training may take as long as a hundred tokens


def measure(
    device: jax.Device,
    progress: Progress,
    configs: Sequence[str] = CONFIGS,
    contexts: Sequence[int] = CONTEXTS,
    largest: int = LARGEST,
    ceiling: CeilingSizes | None = None,
    budget_s: float = 5.0,
) -> dict[str, Any]:
    """Measure configs of the text model, each as a plain Transformer and with a machine in the place of a layer.

    Writing after growing contexts is measured of the first config.

    Raises:
        ConfigError: if there is no such config, or it is of another task.
    """
    kinds = {name: load_kinds(name) for name in configs}
    ceiling = ceiling or ceiling_sizes(device)
    with jax.default_device(device):
        progress.plan(3 + 2 * len(configs))
        progress.step("bandwidth")
        ladder = measure_ladder(device, largest, budget_s / 5)
        progress.step("ceiling")
        turns = Turns(device, budget_s)
        turns.functions[PRODUCT] = ceiling_functions(ceiling)[PRODUCT]
        rate = 2 * ceiling.product**3 / turns.time()[PRODUCT]["median_s"]
        rows = []
        for name, of_kind in kinds.items():
            rows += _config_rows(device, progress, name, of_kind, ladder, rate, budget_s)
        progress.step(f"{configs[0]}: after up to {max(contexts):,} tokens")
        by_context = _context_rows(device, kinds[configs[0]], contexts, budget_s)
    caches = [asdict(cache) for cache in detect_machine().caches] if device.platform == "cpu" else []
    return {
        "ceiling_flops_per_s": rate,
        "caches": caches,
        "ladder": ladder,
        "rows": rows,
        "contexts": {"config": configs[0], "rows": by_context},
    }


def load_kinds(name: str) -> dict[str, Config]:
    """Load a config as both kinds of model."""
    config = load_config(name)
    if not isinstance(config, Config) or config.data.kind != "files":
        raise ConfigError(f"config {name}: no language model; --text takes such as {', '.join(CONFIGS)}")
    return {kind: override(config, {"model.kind": kind}) for kind in KINDS}


def measure_ladder(device: jax.Device, largest: int, budget_s: float) -> list[dict[str, Any]]:
    """Measure at which rate matrices of growing size are read again and again, as weights are in writing."""
    turns, sizes = Turns(device, budget_s), []
    size = SMALLEST
    while size <= largest:
        n = int((size / 4) ** 0.5)
        matrix, repeats = normal(n, n) / n, max(1, READS // size)
        program = Program(partial(_multiply, repeats), matrix, normal(n))
        turns.enter(str(size), program, matrix, normal(n))
        sizes.append((size, 4 * n * n * repeats))
        size *= 4
    timed = turns.time()
    return [{"bytes": n, "bytes_per_s": read / timed[str(n)]["median_s"], **timed[str(n)]} for n, read in sizes]


def _multiply(repeats: int, matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, repeats, lambda _, x: matrix @ x, x)


def bandwidth(ladder: Sequence[Mapping[str, Any]], size: int) -> float:
    """Return the bytes a second at which so many are read, between the two sizes next to it."""
    sizes, rates = ([row[name] for row in ladder] for name in ("bytes", "bytes_per_s"))
    return float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(rates))))


def _config_rows(
    device: jax.Device,
    progress: Progress,
    name: str,
    configs: Mapping[str, Config],
    ladder: list[dict[str, Any]],
    ceiling: float,
    budget_s: float,
) -> list[dict[str, Any]]:
    """Both kinds of a config, in turns."""
    progress.step(f"{name}: products")
    any_config = configs[KINDS[0]]
    data, N = any_config.data, any_config.model.segment
    tokens = {"training": data.batch_size * data.segments * N, "reading": WINDOW * N, "writing": N}
    rates = {form: measure_rates(device, any_config, tokens[form], budget_s / 10) for form in ("training", "reading")}
    progress.step(f"{name}: training, reading, writing")
    turns, planned = Turns(device, budget_s, most=200), {}
    for kind, config in configs.items():
        objective = make_objective(config)
        _enter_training(turns, f"training {kind}", config, objective)
        planned[kind] = turns.rows[f"training {kind}"]
        _enter_generation(turns, kind, objective)
    timed = turns.time(ROUNDS)
    rows = []
    for kind, config in configs.items():
        cost = analyse(config)
        row: dict[str, Any] = {"config": name, "kind": kind, "parameters": cost.parameters}
        row |= {"forward_flops": cost.forward_flops, "training_flops": cost.training_flops}
        row |= {"decoding_bytes": cost.decoding_bytes, "memory": planned[kind]["memory"]}
        seconds = {
            "training": TRAINING_PASSES * predicted_seconds(cost.macs, rates["training"]) / N,
            "reading": predicted_seconds(cost.macs, rates["reading"]) / N,
            "writing": cost.decoding_bytes / bandwidth(ladder, cost.decoding_bytes),
        }
        for form, number in tokens.items():
            found = timed[f"{form} {kind}"]
            row[form] = {**found, "predicted_tokens_per_s": 1 / seconds[form]}
            if "skipped" not in found:
                row[form]["tokens_per_s"] = number / found["median_s"]
        if "skipped" not in row["training"]:
            reached = row["training"]["tokens_per_s"] * cost.training_flops
            row["training"]["flops_fraction"] = reached / ceiling
        rows.append(row)
    return rows


def measure_rates(device: jax.Device, config: Config, tokens: int, budget_s: float) -> dict[str, float]:
    """Measure operations a second of a config's products with so many tokens, by the part of the model."""
    model = config.model
    D, F, N, H = model.width, model.mlp_dim, model.segment, model.num_heads
    V = make_objective(config).vocab_size
    rows = max(1, tokens // N) * H
    shapes = {
        "projections": ((tokens, D), (D, D)),
        "mlp": ((tokens, D), (D, F)),
        "attention": ((rows, N, D // H), (rows, D // H, 2 * N)),
        "head": ((min(tokens, 2048), D), (D, V)),
    }
    turns = Turns(device, budget_s)
    for name, (left, right) in shapes.items():
        arrays = normal(*left), normal(*right)
        turns.enter(name, Program(jnp.matmul, *arrays), *arrays)
    timed = turns.time()
    flops = {name: 2 * int(np.prod(left)) * right[-1] for name, (left, right) in shapes.items()}
    return {name: flops[name] / timed[name]["median_s"] for name in shapes}


def predicted_seconds(macs: Mapping[str, int], rates: Mapping[str, float]) -> float:
    """Add up what the products of a segment take at their rates; those of the machine at that of projections."""
    return sum(2 * number / rates.get(name, rates["projections"]) for name, number in macs.items())


def _enter_training(turns: Turns, name: str, config: Config, objective: TextObjective) -> None:
    """Let a step of training take part."""
    data, N, generator = config.data, config.model.segment, np.random.default_rng(0)
    placement = place(data.batch_size)
    shape = data.batch_size, data.segments, N
    tokens = generator.integers(objective.vocab_size, size=shape).astype(np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1),
        "weights": np.ones(shape, np.float32),
        "start": np.zeros(shape[:2], bool),
    }
    state = make_state(objective, config.optimizer, jax.random.key(0), data.batch_size)
    carry = placement.divide(state.carry)
    state = placement.replicate(state.replace(carry=())).replace(carry=carry)
    arguments = state, placement.divide(batch)
    turns.enter(name, training_program(placement, *arguments), *arguments)


def _enter_generation(turns: Turns, kind: str, objective: TextObjective) -> None:
    """Let reading and writing of one text take part."""
    model = objective.model
    variables = _variables(objective)
    shape = 1, WINDOW, objective.config.segment
    tokens_1xTxN = np.random.default_rng(0).integers(objective.vocab_size, size=shape).astype(np.int32)
    arguments = variables, tokens_1xTxN, model.initial_state(1)
    turns.enter(f"reading {kind}", Program(partial(sampling.feed_segments, model), *arguments), *arguments)
    turns.functions[f"writing {kind}"] = _writing(objective, variables, _place_after(objective, variables, shape[2]))


def _variables(objective: TextObjective) -> dict[str, Any]:
    return random_variables(objective.model, jnp.zeros((1, 1, objective.config.segment), jnp.int32))


def _place_after(objective: TextObjective, variables: Any, context: int) -> Place:
    """The middle of the segment that follows so many tokens."""
    model, N = objective.model, objective.config.segment
    state, tokens_1xTxN = model.initial_state(1), jnp.zeros((1, 1, N), jnp.int32)
    for _ in range(context // N):
        _, state = sampling.feed_segments(model, variables, tokens_1xTxN, state)
    _, place = sampling.open_segment(model, variables, tokens_1xTxN[:, 0], jnp.int32(N // 2), state)
    return place


def _writing(objective: TextObjective, variables: Any, place: Place) -> Callable[[], Any]:
    """Write as many tokens as a segment has, a call."""
    logits_1xV, allowed_V = jnp.zeros((1, objective.vocab_size)), jnp.ones(objective.vocab_size, bool)
    key, N = jax.random.key(0), objective.config.segment
    return lambda: sampling.draw(objective.model, variables, logits_1xV, place, allowed_V, key, 0, N)


def _context_rows(
    device: jax.Device, configs: Mapping[str, Config], contexts: Sequence[int], budget_s: float
) -> list[dict[str, Any]]:
    """Writing after so many tokens, all in turns: both kinds, and a Transformer that attends to all of them."""
    turns, state_bytes = Turns(device, budget_s, most=200), {}
    N = configs[KINDS[0]].model.segment
    for context in contexts:
        for kind, config in configs.items():
            objective = make_objective(config)
            variables = _variables(objective)
            place = _place_after(objective, variables, context)
            turns.functions[f"{kind} {context}"] = _writing(objective, variables, place)
            state_bytes[kind, context] = _tree_bytes(place)
        state_bytes[FULL, context] = _enter_full(turns, configs["transformer"], context)
    timed = turns.time(ROUNDS)
    rows = []
    for context in contexts:
        models = {}
        for kind in (*KINDS, FULL):
            found = timed[f"{kind} {context}"]
            models[kind] = {**found, "state_bytes": state_bytes[kind, context]}
            if "skipped" not in found:
                models[kind]["tokens_per_s"] = N / found["median_s"]
        rows.append({"context": context, "models": models})
    return rows


def _enter_full(turns: Turns, config: Config, context: int) -> int:
    """Let a Transformer of the config's size take part that has all tokens in its cache; give the cache's bytes."""
    model, V = config.model, make_objective(config).vocab_size
    transformer = CausalTransformer(model.decoder_layers, model.num_heads, model.mlp_dim)
    token_1x1xD = normal(1, 1, model.width)
    variables = {**random_variables(transformer, token_1x1xD), "embedding": normal(V, model.width)}

    def write(cache: Cache, variables: Any, keys: jax.Array) -> tuple[Cache, jax.Array]:
        embedding_VxD = variables["embedding"]

        def step(carry: tuple[Cache, jax.Array], key: jax.Array) -> tuple[tuple[Cache, jax.Array], None]:
            cache, logits_1xV = carry
            token_1 = sampling.sample(key, logits_1xV)
            found: Any = transformer.apply({"params": variables["params"]}, embedding_VxD[token_1][:, None], cache)
            outputs_1x1xD, after = found
            return (after, outputs_1x1xD[:, 0] @ embedding_VxD.T), None

        (after, logits_1xV), _ = jax.lax.scan(step, (cache, jnp.zeros((1, V))), keys)
        return after._replace(length=cache.length), logits_1xV

    empty = partial(transformer.empty_cache, 1, context + model.segment, model.width)
    cache, keys = jax.eval_shape(empty), jax.random.split(jax.random.key(0), model.segment)
    program = Program(write, cache, variables, keys, carries=True)
    name = f"{FULL} {context}"
    if turns.fits(name, program):  # only then is there room for the cache
        turns.functions[name] = program.bind(empty()._replace(length=jnp.int32(context)), variables, keys)
    return _tree_bytes(cache)


def _tree_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def fits(caches: Sequence[Mapping[str, Any]], size: int) -> str:
    """Name the first cache that holds so many bytes: "L2"; "none" where none does."""
    levels = sorted((cache["level"], cache["bytes"]) for cache in caches if cache["kind"] != "instruction")
    return next((f"L{level}" for level, held in levels if held >= size), "none") if levels else "-"


def tables(section: dict[str, Any]) -> list[Table]:
    """Make the tables: bandwidth; what the configs cost; tokens a second beside the prediction; contexts."""
    ladder = [[scaled(row["bytes"], "B"), scaled(row["bytes_per_s"], "B/s")] for row in section["ladder"]]
    costs, speeds = [], []
    for row in section["rows"]:
        label = f"{Path(row['config']).stem}, {LABELS[row['kind']]}"
        costs.append(
            [
                label,
                f"{row['parameters']:,}",
                scaled(row["forward_flops"], "FLOP"),
                scaled(row["training_flops"], "FLOP"),
                planned_memory(row),
                scaled(row["decoding_bytes"], "B"),
                fits(section["caches"], row["decoding_bytes"]),
            ]
        )
        for form in ("training", "reading", "writing"):
            found = row[form]
            if "skipped" in found:
                speeds.append([f"{label}, {form}", median(found), "", "", "", ""])
                continue
            measured, predicted = found["tokens_per_s"], found["predicted_tokens_per_s"]
            cells = [median(found), quartiles(found), f"{measured:,.0f}", times(predicted / measured)]
            speeds.append([f"{label}, {form}", *cells, percent(found["flops_fraction"]) if form == "training" else ""])
    contexts = [
        [f"{row['context']:,}", *(cell for kind in LABELS for cell in _context_cells(row["models"][kind]))]
        for row in section["contexts"]["rows"]
    ]
    kinds = [cell for label in LABELS.values() for cell in (f"{label}, tokens/s", "state")]
    return [
        Table("weights read again and again, by their size", ["", "rate"], ladder),
        Table(
            "what the configs cost",
            ["", "parameters", "a token read", "a token trained", "a training step", "a token written reads", "in"],
            costs,
        ),
        Table(
            "tokens a second",
            ["", "a call", "quartiles", "tokens/s", "predicted / measured", "of a large product's rate"],
            speeds,
        ),
        Table(f"writing after so many tokens: {section['contexts']['config']}", ["tokens", *kinds], contexts),
    ]


def _context_cells(found: Mapping[str, Any]) -> list[str]:
    speed = median(found) if "skipped" in found else f"{found['tokens_per_s']:,.0f}"
    return [speed, scaled(found["state_bytes"], "B")]
