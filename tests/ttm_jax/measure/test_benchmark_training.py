"""The benchmark of the training step at tiny sizes: its figures, the table of operations, the traces that it keeps."""

import gzip
import json

import jax
import pytest

from ttm_jax.measure import benchmark, training, workload
from ttm_jax.measure.ceilings import CeilingSizes
from ttm_jax.measure.profile import Work, instructions, place
from ttm_jax.measure.progress import Progress
from ttm_jax.measure.report import median, percent, scaled, times
from ttm_jax.training.config import override

CEILING = CeilingSizes(16, 4096)
measure_configs = training.measure


def measure(config, **options):
    progress = Progress()
    section = measure_configs(
        jax.devices()[0], True, progress, {"tiny": config}, ceiling=CEILING, budget_s=0.0, **options
    )
    assert progress.begun == progress.planned == 3
    return json.loads(json.dumps(section))


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def section(tiny_config, traces):
    return measure(tiny_config, traces=traces)


def test_a_step_alone_and_in_the_loop(section, tiny_config):
    (row,) = section["rows"]
    assert (row["config"], row["batch_size"], row["num_steps"]) == ("tiny", 8, 5)
    for name in ("alone", "in_loop", "product", "data"):
        assert 0 < row[name]["quartile_1_s"] <= row[name]["median_s"] <= row[name]["quartile_3_s"]
    assert row["alone"]["calls"] == row["in_loop"]["calls"] == row["product"]["calls"] == 5
    assert row["ceiling_flops_per_s"] == pytest.approx(2 * 16**3 / row["product"]["median_s"])
    assert row["flops"] == workload.training_flops(tiny_config, 8, 5)
    rate = row["flops"] / row["alone"]["median_s"]
    assert row["flops_fraction"] == pytest.approx(rate / row["ceiling_flops_per_s"])


def test_all_operations_are_found_and_named(section):
    (row,) = section["rows"]
    rows = row["profile"]["rows"]
    assert sum(work["share"] for work in rows) == pytest.approx(1)
    assert sum(work["seconds"] for work in rows) == pytest.approx(row["profile"]["seconds"])
    assert [work["seconds"] for work in rows] == sorted((work["seconds"] for work in rows), reverse=True)
    works = {(work["part"], work["phase"]) for work in rows}
    for part in ("read summarizer", "process mlp", "write", "head", "carry_head"):
        assert any(name.startswith(part) for name, _ in works), part
    assert {"forward", "backward", "update"} <= {phase for _, phase in works}
    assert any(work["kind"] == "products" for work in rows)


def test_the_traces_are_for_the_usual_viewers(section, traces):
    (perfetto,) = traces.glob("tiny/plugins/profile/*/perfetto_trace.json.gz")
    (plugin,) = traces.glob("tiny/plugins/profile/*/*.xplane.pb")
    assert plugin.stat().st_size > 0
    with gzip.open(perfetto) as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("args", {}).get("hlo_op") for event in events)


def test_tables_and_notes(section):
    step, costliest = training.tables(section)
    forms = ("a step alone", "a step in the loop", "making the batch")
    assert step.title == "training step (tiny: batch 8, 5 places)"
    assert [row[0] for row in step.rows[:3]] == [f"tiny: {form}" for form in forms]
    ceiling = 2 * CEILING.product**3 / section["rows"][0]["product"]["median_s"]
    assert [row[0] for row in step.rows[3:]] == [f"tiny: the ceiling, {scaled(ceiling, 'FLOP/s')}"]
    assert step.rows[0][3] == percent(section["rows"][0]["flops_fraction"])
    assert len(costliest.rows) == 10
    assert costliest.title.startswith("tiny: the ten costliest of all operations of a step, ")
    (note,) = training.notes(section)
    assert "(wanted: 60 %, " in note
    assert "By kind: " in note
    row = section["rows"][0]
    seconds = {(work["kind"], work["phase"]): 0.0 for work in row["profile"]["rows"]}
    for work in row["profile"]["rows"]:
        seconds[work["kind"], work["phase"]] += work["seconds"]

    def reached(kinds: tuple[str, ...], phases: tuple[str, ...]) -> str:
        counted = sum(taken for (kind, phase), taken in seconds.items() if kind in kinds and phase in phases)
        return percent(row["flops_fraction"] / (counted / row["profile"]["seconds"]))

    arithmetic = reached(("products", "sums", "elementwise"), ("forward", "backward", "update"))
    assert f" nothing made again and nothing copied, it would be at {arithmetic}; were the products " in note
    products = reached(("products",), ("forward", "backward"))
    assert note.endswith(f" forward and backward pass all that it does, at {products}.")
    assert all(len(row) == len(table.headings) for table in (step, costliest) for row in table.rows)


def test_what_a_step_could_reach():
    shares = [
        ("products", "forward", 0.2),
        ("products", "backward", 0.2),
        ("products", "recomputed", 0.1),
        ("sums", "backward", 0.1),
        ("elementwise", "update", 0.1),
        ("copies", "forward", 0.2),
        ("sums", "", 0.1),
    ]
    works = [{"part": "step", "kind": kind, "phase": phase, "share": share} for kind, phase, share in shares]
    second = {"median_s": 1.0}
    row = {"config": "tiny", "flops_fraction": 0.3, "alone": second, "in_loop": second, "profile": {"rows": works}}
    (note,) = training.notes({"wanted": 0.6, "rows": [row]})
    assert "nothing made again and nothing copied, it would be at 50 %; were the products of its forward and " in note
    assert note.endswith("backward pass all that it does, at 75 %.")


def test_a_divided_step_beside_that_on_one_device(tiny_config):
    section = measure(override(tiny_config, {"data.batch_size": "16"}))
    (row,) = section["rows"]
    assert (row["num_devices"], row["micro_batches"], row["undivided"]["calls"]) == (2, 1, 5)
    step, costliest = training.tables(section)
    assert step.title == "training step (tiny: batch 16 divided between 2 devices, 5 places)"
    assert step.rows[2][:2] == ["tiny: a step alone on one device", median(row["undivided"])]
    assert costliest.title.endswith(" on 2 devices together")
    ratio = times(row["alone"]["median_s"] / row["undivided"]["median_s"])
    (note,) = training.notes(section)
    assert f" as long as alone, and divided {ratio} as long as on one device. By kind: " in note
    assert any(work["part"] == "sum over devices" for work in row["profile"]["rows"])


def test_a_step_that_does_not_fit_is_not_run(tiny_config, monkeypatch):
    monkeypatch.setattr(training, "too_large", lambda program, device: "takes 9 GB, 1 GB are free")
    section = measure(tiny_config)
    (table,) = training.tables(section)
    assert table.rows == [["tiny", "not run", "-", "-"]]
    assert training.notes(section) == ["tiny: not run: it takes 9 GB, 1 GB are free."]


PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_computation (p.0: f32[2,3], p.1: f32[3,4]) -> f32[2,4] {
  %p.0 = f32[2,3]{1,0} parameter(0)
  %p.1 = f32[3,4]{1,0} parameter(1)
  ROOT %dot.1 = f32[2,4]{1,0} dot(%p.0, %p.1), metadata={op_name="jit(s)/jvp(M)/machine/while/body/step/read/q/dot"}
}

%region (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.9 = f32[] add(%a, %b)
}

%body (t: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %t = (s32[], f32[2,4]{1,0}) parameter(0)
  %fusion.1 = f32[2,4]{1,0} fusion(%x, %y), kind=kCustom, calls=%fused_computation
  ROOT %tuple.1 = (s32[], f32[2,4]{1,0}) tuple(%i, %fusion.1)
}

ENTRY %main (x: f32[2,3]) -> f32[] {
  %while.3 = (s32[], f32[2,4]{1,0}) while(%tuple.0), condition=%c, body=%body
  %copy.2 = f32[2,4]{0,1} copy(%z)
  %dot.6 = f32[2,1]{1,0} dot(%z, %ones), metadata={op_name="jit(s)/transpose(jvp(M))/norm/dot"}
  %custom-call.4 = f32[2,2]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata={op_name="jit()/mul"}
  ROOT %reduce.5 = f32[] reduce(%w, %zero), to_apply=%region, metadata={op_name="jit(s)/transpose(jvp(M))/head/sum"}
}
"""


def test_what_an_instruction_does():
    works = instructions(PROGRAM)
    assert works["fusion.1"] == Work("read q", "products", "forward")
    assert works["copy.2"] == Work("unnamed", "copies", "")
    assert works["custom-call.4"] == Work("optimiser", "products", "update")
    assert works["dot.6"] == Work("norm", "sums", "backward"), "a product with one column sums up"
    assert works["reduce.5"] == Work("head", "sums", "backward")
    assert "dot.1" not in works, "counted with what it was fused into"
    assert works["while.3"] is None, "its time is that of its body"


@pytest.mark.parametrize(
    ("op_name", "part", "phase"),
    [
        ("{b}/checkpoint/rematted_computation/step/write/summarizer/norm/mul", "write summarizer", "recomputed"),
        ("{b}/checkpoint/step/process/block_1/attention/bhqn,bnhk->bqhk/dot_general", "process attention", "backward"),
        ("{b}/closed_call/add_any", "loop over steps", "backward"),
        ("jit(s)/jvp(TTMModel.heads)/token_embed/jit(_take)/gather", "token_embed", "forward"),
        ("jit(s)/jvp(TTMModel.heads)/gt", "embedding", "forward"),
        ("jit(s)/jvp()/reduce_max", "loss", "forward"),
        ("jit(s)/vmap()/closed_call/dot_general", "optimiser", "update"),
        ("jit(s)/shard_map/{m}/jvp(TTMModel.heads)/machine/while/body/step/read/q/dot", "read q", "forward"),
        ("jit(s)/shard_map/{m}/jvp(TTMModel.heads)/machine/while/body/add", "loop over steps", "forward"),
        ("jit(s)/shard_map/{m}/jvp()/reduce_max", "loss", "forward"),
        ("{m}/transpose(jvp(TTMModel.heads))/machine/while/body/step/write/add", "write", "backward"),
        ("{m}/jvp()/reduce_max", "loss", "forward"),
        ("jit(s)/shard_map/while/body/add", "sum over devices", "update"),
        ("jit(s)/shard_map/psum", "sum over devices", "update"),
        ("", "unnamed", ""),
    ],
)
def test_where_an_instruction_comes_from(op_name, part, phase):
    inside = "jit(s)/transpose(jvp(TTMModel.heads))/machine/while/body/closed_call"
    micro_batches = "while/body/closed_call"
    assert place(op_name.format(b=inside, m=micro_batches)) == (part, phase)


def test_profile_goes_with_training(call_command):
    code, out, err = call_command(benchmark.main, "--remat", "--profile", "x")
    assert (code, out) == (2, "")
    assert "--profile keeps the traces of --training, which is not asked for" in err
    assert err.count("\n") == 1


def test_the_command_keeps_the_traces_where_it_is_told(tiny_config, monkeypatch, tmp_path, call_command):
    def tiny(device, quick, progress, traces):
        return measure(tiny_config, traces=traces)

    monkeypatch.setattr(training, "measure", tiny)
    arguments = ["--training", "--quick", "--profile", tmp_path / "kept", "--out", tmp_path / "results"]
    code, out, _ = call_command(benchmark.main, *arguments)
    assert code == 0
    (kept,) = tmp_path.glob("kept/cpu/tiny/plugins/profile/*/perfetto_trace.json.gz")
    assert f"written: {kept}" in out
    assert "tiny: the ten costliest of all operations of a step" in out
    code, _, err = call_command(benchmark.main, *arguments[:3], kept, *arguments[4:])
    assert code == 2
    assert err.endswith(f"--profile {kept}: File exists\n")
