"""The benchmark of the training step at tiny sizes: its figures, the table of operations, the traces that it keeps."""

import gzip
import json
from types import SimpleNamespace

import jax
import pytest

from ttm_jax.cli import Progress
from ttm_jax.measure import benchmark, training, workload
from ttm_jax.measure.ceilings import CeilingSizes
from ttm_jax.measure.profile import Work, instructions, place
from ttm_jax.measure.report import median, percent, scaled, times
from ttm_jax.training import loop
from ttm_jax.training.config import override

CEILING = CeilingSizes(16, 4096)
measure_configs = training.measure


def measure(config, **options):
    progress = Progress()
    section = measure_configs(jax.devices()[0], progress, {"tiny": config}, ceiling=CEILING, budget_s=0.0, **options)
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
    for name in ("alone", "in_loop", "product"):
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


def test_tables(section):
    step, reached, shares, costliest = training.tables(section)
    (row,) = section["rows"]
    forms = ["a step alone", "a step in the loop", "the ceiling"]
    assert [cells[0] for cells in step.rows] == ["tiny: batch 8, 5 places", *forms]
    assert step.rows[1][3] == reached.rows[0][1] == percent(row["flops_fraction"])
    assert step.rows[3][3] == scaled(2 * CEILING.product**3 / row["product"]["median_s"], "FLOP/s")
    assert len(costliest.rows) == 10
    assert all(
        len(cells) == len(table.headings) for table in (step, reached, shares, costliest) for cells in table.rows
    )


def test_where_the_measuring_fails_the_loop_is_ended(tiny_config, monkeypatch):
    ended = []

    def endless(*arguments):
        try:
            while True:
                yield loop.Stepped(1, None)
        finally:
            ended.append("the loop")

    def fail(functions, turns):
        functions["in_loop"]()
        raise FloatingPointError

    program = SimpleNamespace(memory=None, bind=lambda *arguments: lambda: None)
    monkeypatch.setattr(training, "training_program", lambda *arguments: program)
    monkeypatch.setattr(training, "time_interleaved", fail)
    monkeypatch.setattr(loop, "train", endless)
    with pytest.raises(FloatingPointError) as failure:
        measure(tiny_config)
    assert ended == ["the loop"], failure  # whose traceback keeps alive what is not closed


def test_what_a_step_could_reach():
    works = [
        {"part": "step", "kind": kind, "phase": phase, "share": share}
        for kind, phase, share in (
            ("products", "forward", 0.2),
            ("products", "backward", 0.2),
            ("products", "recomputed", 0.1),
            ("sums", "backward", 0.1),
            ("elementwise", "update", 0.1),
            ("copies", "forward", 0.2),
            ("sums", "", 0.1),
        )
    ]
    row = {"flops_fraction": 0.3, "profile": {"rows": works}}
    assert training.limits(row) == pytest.approx([0.5, 0.75])
    assert training.limits({**row, "profile": {"rows": []}}) == [None, None]


@pytest.mark.slow  # compiles and profiles two steps, one of them divided
def test_a_divided_step_beside_that_on_one_device(tiny_config):
    section = measure(override(tiny_config, {"data.batch_size": "16"}))
    (row,) = section["rows"]
    assert (row["num_devices"], row["micro_batches"], row["undivided"]["calls"]) == (2, 1, 5)
    step, reached, shares, costliest = training.tables(section)
    assert step.rows[0][0] == "tiny: batch 16 divided between 2 devices, 5 places"
    assert step.rows[3][:2] == ["a step alone on one device", median(row["undivided"])]
    assert costliest.title.endswith(" on 2 devices together")
    assert reached.rows[0][-1] == times(row["alone"]["median_s"] / row["undivided"]["median_s"])
    assert any(work["part"] == "sum over devices" for work in row["profile"]["rows"])
    copies = sum(work["share"] for work in row["profile"]["rows"] if work["kind"] == "copies")
    assert dict(shares.rows)["copies"] == percent(copies)


def test_a_step_that_does_not_fit_is_not_run(tiny_config, monkeypatch):
    monkeypatch.setattr(training, "too_large", lambda program, device: "takes 9 GB, 1 GB are free")
    table, *_ = training.tables(measure(tiny_config))
    assert table.rows == [["tiny: batch 8, 5 places", "not run: takes 9 GB, 1 GB are free", "-", "-"]]


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
    def tiny(device, progress, traces, **quick):
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
