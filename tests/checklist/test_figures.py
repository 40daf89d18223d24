"""The figures in the answers of docs/checklist.md, measured anew: what is bold there has to be what is found here."""

import inspect
import json
import re
import statistics
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ttm_torch
from ttm_jax.machine.flops import summary_cost
from ttm_jax.measure import ablations, pages, studies
from ttm_jax.measure.report import NOT_MEASURED, digits
from ttm_jax.measure.results import load_results
from ttm_jax.training.run_folder import RunFolder
from ttm_torch.multiplication.objective import loss_fn

ROOT = Path(__file__).parents[2]
GPU = "nothing was measured on a GPU"

# What is still open, and why; nothing else may be. An item goes from here when its figures come.
OPEN = {
    "1.6": GPU,
    "1.7": GPU,
    "1.8": GPU,
    "11.5": GPU,
    "11.7": GPU,
}


def allowed_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = (line for line in project["optional-dependencies"]["torch"] if line.startswith("torch"))
    return [found.removeprefix("torch")]


def hardware(platform: str, section: str) -> dict[str, Any] | None:
    """A section of the results of a device, the first on the page; None where it was not measured, or quickly."""
    for result in load_results(ROOT / "results/hardware"):
        if result["device"]["platform"] == platform and section in result and not result[section]["quick"]:
            return result[section]
    return None


def ablated(*names: str) -> list[str]:
    """Mean exact match on 3 x 2 of rows of the ablations, in %."""
    study = studies.STUDIES["multiplication"]
    rows = ablations.rows_of(study, ablations.load_runs(study, ROOT / "results/ablations.json"))
    return [f"{statistics.mean(studies.shares(rows[name], '3x2')):.1f}" for name in names]


def milliseconds(platform: str, operation: str) -> float | None:
    """The median of an operation."""
    if (section := hardware(platform, "operations")) is None:
        return None
    (row,) = (row for row in section["rows"] if row["name"] == operation)
    return 1e3 * row["median_s"]


def shown(*values: float | None) -> list[str]:
    return [NOT_MEASURED if value is None else digits(value) for value in values]


def on_both(operation: str) -> list[str]:
    """Milliseconds on the processor and on a GPU, and how many times as fast the GPU is."""
    processor, gpu = (milliseconds(platform, operation) for platform in ("cpu", "gpu"))
    return shown(processor, gpu, None if processor is None or gpu is None else processor / gpu)


def chosen_device():
    return re.findall(r"^Train on \*\*(.+?)\*\*", (ROOT / "hardware_choice.md").read_text(), re.MULTILINE)


def importance_layers():
    hidden, out = (ttm_torch.MLPSummarizer(5, 128).mlp.get_submodule(name) for name in ("hidden", "out"))
    return [hidden.in_features, hidden.out_features, out.out_features]


def norms():
    tokens = seeded(2, 10, 128)
    before, after = (x.norm(dim=-1).mean() for x in (tokens, ttm_torch.token_summarize(tokens, k=5)))
    return [f"{x:.1f}" for x in (before, after, before - after)]


def share_of_memory():
    """The mean weight that a read token puts on all memory tokens together, and on all input tokens."""
    read = seeded_module(lambda: ttm_torch.Read(16, width=128, num_tokens=12 + 10))
    tokens = read.positions(seeded(64, 12 + 10, 128))
    weights = ttm_torch.normalize_weights(read.summarizer.importance_weights(tokens))
    on_memory = weights[..., :12].sum(-1).mean()
    return [f"{100 * share:.0f} %" for share in (on_memory, 1 - on_memory)]


def transformer_flops():
    transformer = ttm_torch.TransformerStack(dim=128, depth=4, heads=4, hidden_dim=512)
    with FlopCounterMode(display=False) as counter:
        transformer(torch.zeros(2, 16, 128))
    return [f"{counter.get_total_flops():,}"]


def memory_of_a_forward_pass():
    """Parameters, and what a forward pass of one problem keeps for the backward pass, in MB."""
    model, kept = seeded_model(), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.tensor([[1, 2, 10, 3, 11, 12, 12, 12, 12, 12, 12, 12]]))
    sizes = (4 * sum(p.numel() for p in model.parameters()), sum(storage.nbytes() for storage in kept.values()))
    return [f"{size / 1e6:.2g}" for size in sizes]


def eos_threshold():
    """The least probability of EOS, to a thousandth, that is detected."""
    other = torch.log(1 - (probability := torch.arange(1, 1000) / 1000))
    logits = torch.full((1, 999, 13), -1e4)
    logits[0, :, 0], logits[0, :, 11] = other, probability.log()
    (detected,) = ttm_torch.detect_eos(logits).nonzero(as_tuple=True)[1:]
    return [f"{probability[detected].min():.3f}"]


def masked_logits():
    """Digit 3 and EOS at the position after the first EOS."""
    logits = torch.full((1, 2, 13), -5.0)
    logits[0, 0, 11] = 6.0
    logits[0, 1, 3], logits[0, 1, 11] = 2.0, 1.0
    masked = ttm_torch.apply_eos_masking(logits, ttm_torch.detect_eos(logits))
    return [f"{x[0, 1, token]:g}" for x in (logits, masked) for token in (3, 11)]


def initial_loss():
    inputs, targets = map(torch.as_tensor, ttm_torch.MultiplicationDataset(16).generate_batch())
    loss, _ = loss_fn(seeded_model().eval(), {"inputs": inputs, "targets": targets})
    return [f"{loss.mean:.1f}"]


def norms_of_the_default_run():
    """Gradient norms, each the mean of 25 steps before clipping: the largest, the last, and the share above 1."""
    norms = [
        record["grad_norm"] for record in RunFolder(ROOT / "results/default").records() if record["kind"] == "train"
    ]
    share = sum(norm > 1 for norm in norms) / len(norms)
    return [f"{max(norms):.2f}", f"{norms[-1]:.2f}", f"{100 * share:.0f} %"]


def norms_of_the_first_gradients():
    """Of a fresh model on a batch, without clipping and with it."""
    norms = []
    for max_grad_norm in (None, 1.0):
        model = seeded_model()
        batch = ttm_torch.MultiplicationDataset(16).generate_batch()
        ttm_torch.train_step(model, batch, ttm_torch.make_optimizer(model), max_grad_norm=max_grad_norm)
        norms.append(torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]))
    return [f"{norm:.2f}" for norm in norms]


def metrics():
    model = ttm_torch.TTMModel(ttm_torch.ModelConfig(memory_size=6, process_size=4, num_layers=1, mlp_dim=32))
    return [", ".join(ttm_torch.eval_step(model, ttm_torch.MultiplicationDataset(4).generate_batch()))]


def flops():
    return [
        f"{ttm_torch.measure_flops(ttm_torch.TTMModel(config.model)):,}"
        for config in (ttm_torch.Config(), default_config())
    ]


def peak_memory():
    config = default_config()
    peak = ttm_torch.measure_memory(ttm_torch.TTMModel(config.model), (config.data.batch_size, 12))
    return [config.data.batch_size, f"{50 * round(peak / 50)}"]  # a few MB depend on what was computed before


def growth_of_a_step():
    """Lengths of the shortest and the longest history; how much longer each model's step takes after the longest."""
    if (history := hardware("cpu", "history")) is None:
        return 4 * [NOT_MEASURED]
    rows = [
        row for row in history["streaming"] if not any("skipped" in row[name] for name in ("machine", "transformer"))
    ]
    growth = [rows[-1][name]["median_s"] / rows[0][name]["median_s"] for name in ("machine", "transformer")]
    return [*(f"{row['steps']:,}" for row in (rows[0], rows[-1])), *shown(*growth)]


def where_the_machine_wins():
    """Steps of history, streaming and over whole sequences."""
    if (history := hardware("cpu", "history")) is None:
        return 2 * [NOT_MEASURED]
    found = [history["wins"][name] for name in ("streaming_time", "whole_time")]
    return ["no measured number of" if steps is None else f"{steps:,}" for steps in found]


def best_batch(platform: str) -> Any:
    section = hardware(platform, "batch_sizes")
    return NOT_MEASURED if section is None else section["best"]


def counts(length: str, run: str = "default/seed-0") -> list[str]:
    """Of held-out pairs of a length: right, all, percent."""
    found = json.loads((ROOT / f"results/{run}.json").read_text())["exact_match"][length]
    return [f"{found['correct']:,}", f"{found['total']:,}", f"{100 * found['correct'] / found['total']:.1f} %"]


def compared(*runs: str, length: str) -> list[str]:
    """Percent of held-out pairs of a length that runs get right at their last evaluation."""
    records = {run["run"]: run["exact_match"] for run in json.loads((ROOT / "results/quick_variants.json").read_text())}
    found = [records[run][length] for run in runs]
    return [f"{100 * counts['correct'] / counts['total']:.1f} %" for counts in found]


def mean_of_seeds(run: str, length: str) -> str:
    """Percent of held-out pairs of a length that the runs of a row of the table of memory get right."""
    shares = [
        counts["correct"] / counts["total"]
        for seed in pages.MEMORY_SEEDS
        for counts in [json.loads((ROOT / f"results/default/{run}-{seed}.json").read_text())["exact_match"][length]]
    ]
    return f"{100 * statistics.mean(shares):.1f} %"


def parameters(function: Callable) -> str:
    return ", ".join(inspect.signature(function).parameters)


def is_scripted(value: Any) -> bool:
    return isinstance(value, torch.jit.ScriptFunction)


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def seeded_module(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def seeded_model() -> ttm_torch.TTMModel:
    return seeded_module(ttm_torch.TTMModel)


def default_config() -> ttm_torch.Config:
    return ttm_torch.load_config("default")


FIGURES: dict[str, Callable[[], list[Any]]] = {
    "1.1": allowed_versions,
    "1.5": lambda: shown(milliseconds("cpu", "matrix product")),
    "1.6": lambda: shown(milliseconds("gpu", "matrix product")),
    "1.7": lambda: on_both("token embedding"),
    "1.8": lambda: on_both("Transformer forward"),
    "1.9": chosen_device,
    "2.3": lambda: [ttm_torch.tokens_to_string([ttm_torch.TIMES_TOKEN])],
    "2.7": lambda: [ttm_torch.tokens_to_string([1, 2, 10, 3, 11, 12, 4])],
    "2.8": lambda: [parameters(ttm_torch.MultiplicationDataset)],
    "2.9": lambda: [f"{low} to {high:,}" for low, high in ttm_torch.MultiplicationDataset().stages],
    "2.10": lambda: [ttm_torch.MultiplicationDataset().generate_batch()[0].shape[1]],
    "2.11": lambda: inspect.signature(ttm_torch.augment_batch).parameters["kinds"].default,
    "2.13": lambda: [rows[0].tolist() for rows in ttm_torch.MultiplicationDataset().generate_batch()],
    "3.1": importance_layers,
    "3.4": lambda: [f"{summary_cost('mlp', 10, 5, 128):,}"],
    "3.5": norms,
    "3.6": lambda: [f"{seeded_module(lambda: ttm_torch.QuerySummarizer(64)).queries.std():.2f}"],
    "3.7": lambda: [
        *(f"{summary_cost(kind, 10, 5, 128):,}" for kind in ("query", "mlp")),
        *ablated("read by queries", "reference"),
    ],
    "3.9": lambda: [summary_cost("pooling", 10, 5, 128), *ablated("read by pooling", "reference")],
    "4.3": share_of_memory,
    "4.4": lambda: shown(milliseconds("cpu", "read")),
    "4.8": lambda: shown(milliseconds("cpu", "write")),
    "5.5": transformer_flops,
    "6.1": lambda: [f"{table.weight.std():.1f}" for table in (seeded_model().token_embed, seeded_model().pos_embed)],
    "6.2": lambda: [seeded_model().pos_embed.num_embeddings],
    "6.5": lambda: [f"{seeded_model().memory_init.abs().mean():.4f}"],
    "6.16": lambda: [seeded_model().machine.get_submodule("step.process").depth],
    "6.19": memory_of_a_forward_pass,
    "7.1": eos_threshold,
    "7.5": masked_logits,
    "8.11": initial_loss,
    "9.1": lambda: compared("quick", "adamw", length="3x2"),
    "9.10": norms_of_the_default_run,
    "9.11": norms_of_the_first_gradients,
    "10.1": lambda: [parameters(ttm_torch.train_step)],
    "10.11": metrics,
    "10.12": lambda: [f"{sum(parameter.numel() for parameter in seeded_model().parameters()):,}"],
    "10.14": lambda: [config.train.steps_per_epoch for config in (ttm_torch.Config(), default_config())],
    "11.1": flops,
    "11.2": peak_memory,
    "11.3": growth_of_a_step,
    "11.4": lambda: [name for name in ttm_torch.__all__ if is_scripted(getattr(ttm_torch, name))],
    "11.5": lambda: on_both("multiplier train"),
    "11.6": where_the_machine_wins,
    "11.7": lambda: [best_batch(platform) for platform in ("cpu", "gpu")],
    "12.1": lambda: counts("1x1"),
    "12.2": lambda: counts("2x1"),
    "12.3": lambda: counts("2x2"),
    "12.4": lambda: counts("3x2"),
    "12.5": lambda: [counts(length)[-1] for length in ("3x1", "3x2", "2x3", "3x3", "4x1", "5x1", "5x5")],
    "12.6": lambda: [mean_of_seeds(run, length) for length in ("3x2", "3x3") for run in ("seed", "wiped", "no-memory")],
    "12.10": lambda: [counts(length, "five_digits/evaluation")[-1] for length in ("2x2", "3x2", "3x3", "5x5")],
}


@pytest.mark.parametrize("number", FIGURES)
def test_figures(number, checklist):
    item = checklist[number]
    found = [str(figure) for figure in FIGURES[number]()]
    assert item.figures == found, f"docs/checklist.md:{item.line}: the bold figures have to be these"


def test_every_figure_is_measured(checklist):
    assert {number for number, item in checklist.items() if item.figures} == set(FIGURES)


def test_nothing_else_is_open(checklist):
    """And what is open is not ticked, what is ticked is not open."""
    words = re.compile(NOT_MEASURED, re.IGNORECASE)
    assert {number for number, item in checklist.items() if words.search(item.fields["Answer"])} == set(OPEN)
    assert {number for number, item in checklist.items() if not item.done} == set(OPEN)
