"""One part changed at a time: which runs there are, and what comes of them. Nothing is trained here."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from ttm_jax.ablations import main as door
from ttm_jax.files import FileError
from ttm_jax.measure import ablations
from ttm_jax.measure.ablations import main
from ttm_jax.measure.studies import REFERENCE, STUDIES
from ttm_jax.tasks import load_config
from ttm_jax.training.command import resolve
from ttm_jax.training.config import config_to_toml, override
from ttm_jax.training.jax_command import make_parser

NAMES = [REFERENCE, "no memory"]
CONFIG = "ablation"
LENGTHS = ("1x1", "2x1", "2x2", "3x1", "3x2")


def write_run(workdir, share, steps=None, **ending):
    """A run of multiplication, of the row and seed in the name of its folder; finished unless `steps` says less."""
    name, _, seed = workdir.name.rpartition("-")
    changed = {"no-memory": {"model.write": "none"}}.get(name, {})
    config = override(load_config(CONFIG), {**changed, "train.seed": seed})
    steps = steps or config.train.max_epochs * config.train.steps_per_epoch
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.toml").write_text(config_to_toml(config))
    (workdir / "versions.json").write_text('{"jax": "0.10.2"}')
    exact_match = {length: {"correct": round(share * 200), "total": 200} for length in LENGTHS}
    record = {
        "kind": "eval",
        "step": steps,
        "examples": 64 * steps,
        "seconds": 90.0,
        "exact_match": exact_match,
        **ending,
    }
    (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")


@pytest.fixture
def folders(tmp_path):
    return ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]


@pytest.fixture
def finished(tmp_path):
    for name, shares in {"reference": (0.9, 0.8), "no-memory": (0.5, 0.3)}.items():
        for seed, share in enumerate(shares):
            write_run(tmp_path / "runs/multiplication" / f"{name}-{seed}", share)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What was asked of Python, where every training ends at once, all answers right."""
    asked = []

    def train(command, **_):
        asked.append(command[1:])
        write_run(Path(command[command.index("--workdir") + 1]), 1.0)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    return asked


def test_the_table_has_mean_and_range_of_the_seeds(finished, folders, tmp_path, capsys):
    assert main(["--only", *NAMES, "--seeds", "2", *folders]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("| reference | 327,561 | 2 | 85.0 (80.0 - 90.0) |")
    assert out.splitlines()[3].startswith("| no memory | 314,945 | 2 | 40.0 (30.0 - 50.0) |")
    results = tmp_path / "results"
    assert (results / "ablations.md").read_text().endswith(f"\n\n{out}")
    assert (results / "ablations.png").stat().st_size > 1000
    runs = json.loads((results / "ablations.json").read_text())["runs"]
    assert [(run["name"], run["seed"]) for run in runs] == [(name, seed) for name in NAMES for seed in range(2)]
    assert runs[1]["exact_match"]["3x2"] == {"correct": 160, "total": 200}
    assert runs[3]["command"].endswith("no-memory-1 --model.write none --train.seed 1")


def test_one_seed_has_no_range(finished, folders, capsys):
    assert main(["--only", REFERENCE, "--seeds", "1", *folders]) == 0
    assert "| reference | 327,561 | 1 | 90.0 | 90.0 |" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_fault_of_a_file(folders, unread, capsys):
    with unread("stdout"):
        assert door(["--list", *folders]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", STUDIES)
def test_commands_are_those_of_the_training(folders, capsys, name):
    assert main([name, "--list", "--seeds", "1", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(STUDIES[name].rows)
    flags = [shlex.split(line)[3:] for line in lines]
    configs = [resolve(make_parser(argv).parse_args(argv))[0] for argv in flags]
    assert len(set(map(config_to_toml, configs))) == len(lines), "each row differs from all others"


def test_only_what_is_not_finished_is_run(finished, folders, trained, capsys):
    assert main(["--only", REFERENCE, *folders]) == 0
    (command,) = trained
    assert command[:4] == ["-m", "ttm_jax.train", "--config", CONFIG]
    assert command[-4:] == ["--train.seed", "2", "--devices", "1"]
    out, err = capsys.readouterr()
    assert "| reference | 327,561 | 3 | 90.0 (80.0 - 100.0) |" in out
    assert err == "1 of 1: reference, seed 2: 1:30\n"


def test_what_is_in_the_results_is_not_trained_again(folders, tmp_path, trained, capsys):
    """Its run folder need not be there any more."""
    assert main(["--only", REFERENCE, "--seeds", "2", *folders]) == 0
    assert len(trained) == 2
    elsewhere = ["--runs", str(tmp_path / "others"), *folders[2:]]
    assert main(["--only", REFERENCE, "--seeds", "2", *elsewhere]) == 0
    assert len(trained) == 2
    assert capsys.readouterr().out.count("| reference | 327,561 | 2 | 100.0 | 100.0 |") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"budget": {}, "runs": []}',
            "made with another configs/multiplication/ablation.toml; move it away to begin anew",
        ),
        ('{"rows": []}', "not a result of this command; move it away"),
        ('{"budget"', "not JSON; move it away to begin anew"),
    ],
)
def test_other_results_are_not_mixed_in(folders, tmp_path, trained, capsys, text, message):
    path = tmp_path / "results/ablations.json"
    path.parent.mkdir()
    path.write_text(text)
    assert main(["--only", REFERENCE, *folders]) == 2
    assert capsys.readouterr().err == f"python -m ttm_jax.ablations: error: {path}: {message}\n"
    assert not trained
    assert path.read_text() == text


def test_results_from_before_a_key_of_the_config_go_on(folders, tmp_path, trained):
    assert main(["--only", REFERENCE, "--seeds", "1", *folders]) == 0
    path = tmp_path / "results/ablations.json"
    values = json.loads(path.read_text())
    del values["budget"]["model"]["schedule"]
    path.write_text(json.dumps(values))
    assert main(["--only", REFERENCE, "--seeds", "1", *folders]) == 0
    assert len(trained) == 1
    assert json.loads(path.read_text())["budget"]["model"]["schedule"] == "digit"


def test_several_at_a_time(folders, trained, capsys):
    assert main(["--only", *NAMES, "--jobs", "2", *folders]) == 0
    assert len({command[command.index("--workdir") + 1] for command in trained}) == 6
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_a_run_that_was_stopped_goes_on(tmp_path, folders, capsys):
    write_run(tmp_path / "runs/multiplication/reference-0", 0.5, steps=50)
    assert main(["--list", "--only", REFERENCE, "--seeds", "1", *folders]) == 0
    assert capsys.readouterr().out.endswith("--train.seed 0 --devices 1 --resume\n")


def test_runs_of_several_studies_are_apart(finished, folders, capsys):
    assert main(["text", "--list", "--only", REFERENCE, "--seeds", "1", *folders]) == 0
    assert "runs/text/reference-0" in capsys.readouterr().out


def test_a_run_of_another_config_is_not_taken(tmp_path, folders, capsys):
    folder = tmp_path / "runs/multiplication/reference-0"
    write_run(folder, 0.5)
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace("memory_size", "memory_size = 7 #"))
    assert main(["--only", REFERENCE, "--seeds", "1", *folders]) == 2
    assert f"{folder}: a run of another config; move it away" in capsys.readouterr().err


def test_a_run_that_its_task_has_ended_is_finished(tmp_path, folders, capsys):
    write_run(tmp_path / "runs/multiplication/reference-0", 0.5, steps=50, stop=True)
    assert main(["--list", "--only", REFERENCE, "--seeds", "1", *folders]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("result", "code", "message"),
    [
        (subprocess.CompletedProcess([], 2), 1, "reference, seed 0: ended with exit status 2: see {log}"),
        (subprocess.CompletedProcess([], 0), 1, "reference, seed 0: ended with exit status 0: see {log}"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
    ],
)
def test_a_training_that_does_not_end_well_is_said(folders, tmp_path, monkeypatch, capsys, result, code, message):
    asked = []

    def train(command, **_):
        asked.append(command)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(subprocess, "run", train)
    assert main(["--only", REFERENCE, *folders]) == code
    log = tmp_path / "runs/multiplication/reference-0.log"
    assert capsys.readouterr().err.endswith(f"{message.format(log=log)}\n")
    assert not (tmp_path / "results").exists()
    assert len(asked) == 1, "no more are begun"


def test_what_a_training_says_is_kept(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.Run, "next_command", lambda run: ["-c", "print(7 * 8); raise SystemExit(3)"])
    assert main(["--only", REFERENCE, "--seeds", "1", *folders]) == 1
    assert (tmp_path / "runs/multiplication/reference-0.log").read_text() == "56\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "no memroy"], "--only 'no memroy': there is no such row; --help lists them"),
        (["--length", "4x4"], "--length 4x4: the runs have 1x1, 2x1, 2x2, 3x1, 3x2"),
        (["text", "--length", "3x2"], "--length is of multiplication, not of text"),
    ],
)
def test_what_there_is_not_is_one_line(folders, trained, capsys, flags, message):
    assert main([*flags, *folders]) == 2
    assert capsys.readouterr().err == f"python -m ttm_jax.ablations: error: {message}\n"
    assert not trained


def text_run(seed, bits, reset, digest="a"):
    documents = {"bytes": [100, 300], "bits": bits, "bits_reset": reset}
    return {"seed": seed, "forward_flops": 2e6, "corpus": {"digest": digest}, "documents": documents}


def test_text_is_compared_document_by_document():
    """The difference is the mean over the seeds that both rows have, per byte of all documents."""
    reference = [text_run(0, [100, 300], [200, 600]), text_run(1, [300, 500], [400, 600])]
    rows = {REFERENCE: reference, "other": [text_run(1, [340, 620], [0, 0]), text_run(2, [9, 9], [0, 0])]}
    assert STUDIES["text"].columns(rows) == {
        "a token": ["2 MFLOP", "2 MFLOP"],
        "bits per byte": ["1.500 (1.000 - 2.000)", "1.222 (0.045 - 2.400)"],
        "more than the reference (95 %)": ["", "+0.400 (+0.400 to +0.400)"],
        "of each seed": ["", "+0.400"],
        "reset at each segment": ["2.250 (2.000 - 2.500)", "0.000"],
    }


def test_text_of_two_corpora_is_not_compared():
    rows = {REFERENCE: [text_run(0, [1, 1], [1, 1])], "other": [text_run(0, [1, 1], [1, 1], digest="b")]}
    with pytest.raises(FileError, match="its runs are of 2 corpora"):
        STUDIES["text"].columns(rows)


def test_recall_is_told_at_the_last_level():
    def run(reached, correct):
        recall = {str(n): {"correct": right, "total": 200} for n, right in zip((8, 32), correct, strict=True)}
        reached = {"facts": 4, "segments": reached}
        wiped = {"correct": 6, "total": 200}
        return {"steps": 1500, "reached": reached, "facts": 4, "segments": 8, "recall": recall, "wiped": wiped}

    rows = {REFERENCE: [run(8, (200, 190)), run(8, (198, 180))], "other": [run(2, (50, 6))]}
    columns = STUDIES["recall"].columns(rows)
    assert columns["facts x segments reached"] == ["4 x 8, 4 x 8", "4 x 2"]
    assert columns["recalled, %"] == ["99.5 (99.0 - 100.0)", "25.0"]
    assert columns["over 32 segments, %"] == ["92.5 (90.0 - 95.0)", "3.0"]
