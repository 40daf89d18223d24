"""A run on text trains, goes on to the bit, refuses another corpus; it is loaded, measured, and writes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import ttm_jax
from ttm_jax.evaluate import main as evaluate
from ttm_jax.generate import main as generate
from ttm_jax.measure.studies import Text
from ttm_jax.tasks import config_from_dict, make_objective
from ttm_jax.text.corpus import Document
from ttm_jax.text.evaluate import far_repeats, measure
from ttm_jax.text.task import TextTask
from ttm_jax.text.tokenizer import ByteTokenizer
from ttm_jax.training.checkpoint import load_state
from ttm_jax.training.checkpoint_files import LATEST, CheckpointError, find_checkpoint
from ttm_jax.training.config import ConfigError, override
from ttm_jax.training.mesh import place
from ttm_jax.training.step import make_state, train_step

N = 8
WORDS = ["alpha", "beta", "gamma", "delta", "(", ")", "\n", "= 1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    for i in range(30):
        words = generator.choice(WORDS, size=generator.integers(3, 40))
        (folder / f"{i}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def config(corpus):
    return config_from_dict(
        {
            "task": "text",
            "model": {
                **{"width": 16, "segment": N, "lower_layers": 1, "upper_layers": 1, "mlp_dim": 16, "num_heads": 2},
                **{"memory_size": 3, "process_size": 2, "read": "pooling"},
            },
            "data": {"path": str(corpus), "held_out": 0.2, "batch_size": 4, "segments": 2},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5},
            "train": {"max_epochs": 4, "steps_per_epoch": 15, "eval_every_epochs": 2, "eval_segments": 6},
        }
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory, train, run_display):
    """A run that never stopped: its folder and what it told."""
    path, display = tmp_path_factory.mktemp("run"), run_display()
    assert train(config, path, display=display) == "finished"
    return path, display


@pytest.fixture(scope="module")
def model(run):
    return ttm_jax.load(run[0])


def state_of(path, config):
    state = make_state(make_objective(config), config.optimizer, jax.random.key(0), config.data.batch_size)
    state = load_state(find_checkpoint(path, (LATEST,)), state)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))]


def test_it_learns(run):
    _, display = run
    first, last = (record for record, _ in display.evaluations)
    assert last["bits_per_byte"] < first["bits_per_byte"] < 8
    assert display.records[-1]["bits_per_byte"] < display.records[0]["bits_per_byte"]
    for record, examples in display.evaluations:
        low, high = record["worth_interval_95"]
        assert low <= record["bits_per_byte_reset"] - record["bits_per_byte"] <= high
        assert len(examples) == 2


def test_it_goes_on_to_the_bit_with_what_is_carried(run, config, tmp_path, train):
    for stop in (7, 31):  # in the middle of windows and epochs of the corpus
        assert train(config, tmp_path, resume=stop > 7, stop_at=stop) == "interrupted"
    assert train(config, tmp_path, resume=True) == "finished"
    assert state_of(tmp_path, config) == state_of(run[0], config)


def test_another_corpus_is_not_gone_on_with(run, config, tmp_path, corpus, train):
    train(config, tmp_path, stop_at=3)
    added = corpus / "added.txt"
    added.write_text("new")
    try:
        with pytest.raises(ConfigError, match="its files are not those that the run began with"):
            train(config, tmp_path, resume=True)
    finally:
        added.unlink()


def test_held_out_documents_are_never_trained(config):
    task = TextTask(config)
    trained = {document.data for document in task.corpus.training}
    assert not trained & {document.data for document in task.corpus.held_out}
    seen = np.concatenate(
        [task.batch(step).arrays["targets"].reshape(-1) for step in range(task.streams.steps_per_epoch)]
    )
    assert (seen < 256).sum() == sum(map(len, trained))


def test_an_evaluation_is_what_the_model_says(run, config, model):
    """Bits per byte of the beginnings of held-out documents, of the checkpoint that was best."""
    record = min((record for record, _ in run[1].evaluations), key=lambda record: record["bits_per_byte"])
    task = TextTask(config)
    texts = [document.data[: 6 * N] for document in task._held_out()]
    carried, reset = model.token_bits(texts), model.token_bits(texts, history=0)
    total = sum(map(len, texts))
    assert record["bytes"] == total
    assert record["bits_per_byte"] == pytest.approx(sum(bits.sum() for bits in carried) / total, rel=1e-5)
    assert record["bits_per_byte_reset"] == pytest.approx(sum(bits.sum() for bits in reset) / total, rel=1e-5)


def test_byte_pairs(config, tmp_path, train, run_display):
    """A run that learns a vocabulary: its checkpoint holds it, and bits are those of the same bytes."""
    config, display = override(config, {"data.tokenizer": "bpe", "data.vocab_size": "512"}), run_display()
    assert train(config, tmp_path, stop_at=30, display=display) == "interrupted"
    record, _ = display.evaluations[-1]
    task, model = TextTask(config), ttm_jax.load(tmp_path)
    texts = [document.data for document in task.corpus.held_out]
    bits = model.byte_bits(texts)
    assert [len(of_document) for of_document in bits] == [*map(len, texts)]
    assert record["bytes"] == sum(map(len, texts))
    assert record["bits_per_byte"] == pytest.approx(sum(map(np.sum, bits)) / record["bytes"], rel=1e-5)
    assert model.bits_per_byte(texts[0]) == pytest.approx(bits[0].sum() / len(texts[0]))
    assert "".join(model.generate("alpha", 5))
    documents = [Document("", text) for text in texts]
    found = measure(model, documents, reaches=(50,), repeats=True)
    assert found["reach"]["50"]["bits_per_byte"] == pytest.approx(0, abs=1e-4), "all of the history"
    assert sum(part["bytes"] for part in found["repeats"].values()) == record["bytes"]


class TestLanguageModel:
    def test_a_uniform_model_takes_the_logarithm_of_the_tokens(self, model):
        flat = dataclasses.replace(model, variables=jax.tree.map(np.zeros_like, model.variables))
        assert flat.bits_per_byte("any text at all") == pytest.approx(np.log2(ByteTokenizer.vocab_size), rel=1e-6)

    def test_documents_beside_each_other_are_documents_alone(self, model, corpus):
        texts = [file.read_bytes() for file in sorted(corpus.iterdir())[:5]] + [b"x"]
        together = model.token_bits(texts)
        assert [len(bits) for bits in together] == [*map(len, texts)]
        for text, bits in zip(texts, together, strict=True):
            np.testing.assert_allclose(model.token_bits([text])[0], bits, rtol=1e-4, atol=1e-4)

    def test_history_that_holds_all_changes_nothing(self, model):
        """Exactly those tokens whose history was cut may differ: a test of the harness."""
        text = (" ".join(WORDS * 4)).encode()[: 7 * N]
        (whole,), (cut,) = model.token_bits([text]), model.token_bits([text], history=3)
        np.testing.assert_allclose(cut[: 4 * N], whole[: 4 * N], rtol=1e-5, atol=1e-5)
        assert np.abs(cut - whole)[4 * N :].max() > 1e-4

    @pytest.mark.parametrize("pieces", [(1, 2, 40), (7, 9, 27), (8, 16, 19), (43,), (20, 1, 1, 1, 20)])
    def test_pieces_of_any_length(self, model, pieces):
        tokens = np.random.default_rng(1).integers(256, size=(2, sum(pieces)))
        tokens[:, 0] = model.tokenizer.bos
        padded = np.pad(tokens, ((0, 0), (0, -tokens.shape[1] % N))).reshape(2, -1, N)
        expected, _ = model.model.apply(model.variables, padded)
        place, found = None, []
        for piece in np.split(tokens, np.cumsum(pieces)[:-1], axis=1):
            logits, place = model.extend(piece, place)
            found.append(logits)
        expected = np.asarray(expected).reshape(2, -1, ByteTokenizer.vocab_size)[:, : tokens.shape[1]]
        np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=1e-4, atol=1e-5)

    def test_no_history_is_a_start_at_each_segment(self, model):
        """Two ways to the same numbers."""
        text = (" ".join(WORDS * 4)).encode()[: 5 * N + 3]
        (reset,) = model.token_bits([text], history=0)
        padded = np.pad(np.append(model.tokenizer.bos, model.tokenizer.encode(text))[:-1], (0, -len(text) % N))
        logits, _ = model.model.apply(model.variables, padded.reshape(-1, 1, N))  # a row for each segment
        logits = np.asarray(logits, np.float64).reshape(-1, model.model.vocab_size)[: len(text)]
        nats = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(text)), list(text)]
        np.testing.assert_allclose(reset, nats / np.log(2), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("prompt", ["", "a", "a" * (N - 2), "a" * (N - 1), "a" * N, "alpha beta gamma delta"])
    def test_greedy_text_is_the_likeliest_token_each_time(self, model, prompt):
        """Of prompts shorter than, equal to and longer than a segment, over three ends of segments."""
        text = "".join(model.generate(prompt, 3 * N, temperature=0)).encode("utf-8", "surrogateescape")
        writer = model.writer()
        writer.read(prompt)
        written = b"".join(piece[0] for piece in writer.write(3 * N, temperature=0))
        tokens = np.array([[model.tokenizer.bos, *prompt.encode(), *written]])
        logits, _ = model.extend(tokens[:, :-1])
        assert np.asarray(logits)[0, len(prompt) :].argmax(axis=-1).tolist() == list(written)
        assert text == written

    def test_a_saved_state_goes_on_identically(self, model, tmp_path):
        def write(writer):
            return [b"".join(row) for row in zip(*writer.write(20, seed=3), strict=True)]

        writer = model.writer(2)
        writer.read("alpha ")
        write(writer)
        writer.save(tmp_path / "state")
        other = model.writer()
        other.load(tmp_path / "state")
        assert write(other) == write(writer)
        changed = dataclasses.replace(model, variables=jax.tree.map(lambda x: x + 1, model.variables)).writer()
        with pytest.raises(CheckpointError, match="of another model"):
            changed.load(tmp_path / "state")
        (tmp_path / "cut").write_bytes((tmp_path / "state").read_bytes()[:500])
        (tmp_path / "text").write_text("no state")
        np.save(tmp_path / "array.npy", np.zeros(3))
        for name in ("cut", "text", "missing", "array.npy"):
            with pytest.raises(CheckpointError, match=f"state .*{name}"):
                other.load(tmp_path / name)


class TestCommands:
    def test_generate(self, run, call_command, tmp_path):
        arguments = run[0], "--prompt", "alpha ", "--tokens", "20"
        code, out, err = call_command(generate, *arguments)
        assert (code, err) == (0, "")
        assert out.startswith("alpha ")
        assert call_command(generate, *arguments)[1] == out
        assert call_command(generate, *arguments, "--seed", "1")[1] != out
        assert call_command(generate, *arguments, "--samples", "3")[1].count("alpha ") >= 3
        state = tmp_path / "state"
        assert call_command(generate, *arguments, "--state", state)[1] == out
        code, more, _ = call_command(generate, run[0], "--tokens", "20", "--state", state)
        whole = call_command(generate, run[0], "--prompt", "alpha ", "--tokens", "40")[1]
        assert code == 0
        assert whole == out.removesuffix("\n") + more

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--temperature", "-1"], "--temperature: must be a number from 0 on, got '-1'"),
            (["--top-p", "1.5"], "--top-p: must be a number from 0 to 1, got '1.5'"),
            (["--seed", str(2**63)], "--seed: must be a whole number from 0 to 2^32 - 1"),
            (["--state", "nowhere/state"], "--state nowhere/state: there is no folder nowhere"),
            (["--tokens", "0"], "--tokens: must be a positive integer, got '0'"),
            (["--prmpt", "x"], "unknown argument --prmpt; did you mean --prompt?"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, run, call_command, arguments, message):
        code, out, err = call_command(generate, run[0], *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1

    def test_evaluate(self, run, call_command):
        code, out, err = call_command(evaluate, run[0], "--reach", "--repeats", "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert found["carried"]["bits_per_byte"] + found["worth"]["bits_per_byte"] == pytest.approx(
            found["reset"]["bits_per_byte"]
        )
        assert found["reach"].keys() == {"0", "1", "2", "4"}
        assert found["repeats"]["repeats"]["bytes"] + found["repeats"]["others"]["bytes"] == found["bytes"]
        assert call_command(evaluate, run[0], "--documents", "2", "--bytes", "9")[1].startswith("2 documents, 18 bytes")

    def test_recall_takes_no_flags_of_text(self, call_command):
        code, _, err = call_command(evaluate, "text_recall", "--reach")
        assert code == 2
        assert "text_recall recalls facts; it takes --documents and --json alone" in err

    def test_the_shipped_checkpoint_recalls(self, call_command):
        """Over the segments that it was trained on, and over four times as many; by memory."""
        code, out, err = call_command(evaluate, "text_recall", "--documents", "64", "--json")
        found = json.loads(out)
        assert (code, err) == (0, "")
        for distance in ("8", "32"):
            assert found["recall"][distance] == {"correct": 64, "total": 64}
        assert found["wiped"]["correct"] < 10

    def test_evaluate_what_is_named(self, run, call_command, tmp_path):
        """All of a file; of one document there is no interval."""
        file = tmp_path / "one"
        file.write_text("alpha beta " * 20)
        code, out, _ = call_command(evaluate, run[0], "--path", file, "--json")
        found = json.loads(out)
        assert (code, found["bytes"], found["documents"]) == (0, 220, 1)
        assert found["carried"]["interval_95"] is None
        assert "note" not in found

    def test_evaluate_says_that_the_corpus_is_another(self, run, call_command, corpus):
        added = corpus / "added.txt"
        added.write_text("new")
        try:
            out = call_command(evaluate, run[0], "--documents", "2")[1]
        finally:
            added.unlink()
        assert "not the corpus" in out
        assert "not the corpus" not in call_command(evaluate, run[0], "--documents", "2")[1]

    @pytest.mark.parametrize("name", ["five_digits", "text_recall"])
    def test_what_is_no_text_does_not_write(self, name, call_command):
        code, _, err = call_command(generate, name)
        assert code == 2
        assert f"{name} is no language model" in err


def test_words_that_come_again_from_afar():
    text = b"name other name " + b"." * 20 + b" name other"
    places = np.arange(len(text))
    found = far_repeats(text, places, 15)
    assert bytes(np.frombuffer(text, np.uint8)[found]) == b"nameother"
    assert found.nonzero()[0][0] == text.rindex(b"name")
    assert not far_repeats(text, places, 100).any()
    assert not far_repeats(text, places // 4, 15).any(), "tokens of four bytes"


def test_an_ablation_measures_held_out_documents(run, config, model):
    found = Text().summarize(run[0], {})
    texts = [document.data for document in TextTask(config).corpus.held_out]
    assert found["documents"]["bytes"] == [*map(len, texts)]
    for text, bits in zip(texts, found["documents"]["bits"], strict=True):
        assert bits / len(text) == pytest.approx(model.bits_per_byte(text), rel=1e-4)
    assert sum(found["documents"]["bits_reset"]) > sum(found["documents"]["bits"])


def test_no_gradient_goes_back_to_the_batch_before(config):
    """What is carried counts in the loss, and is a constant to it."""
    objective, arrays = make_objective(config), TextTask(config).batch(0).arrays
    arrays = {**arrays, "start": np.zeros_like(arrays["start"])}
    state = make_state(objective, config.optimizer, jax.random.key(0), config.data.batch_size)
    params = jax.tree.map(lambda x: x + 0.1, state.params)
    _, carry = objective.loss(params, arrays, state.key, state.carry)

    def loss(memory):
        return objective.loss(params, arrays, state.key, carry.replace(memory=memory))[0].total

    value, gradient = jax.value_and_grad(loss)(carry.memory)
    assert value != loss(jax.numpy.zeros_like(carry.memory))
    assert not gradient.any()


@pytest.mark.parametrize(("micro_batches", "devices"), [(2, 1), (1, 2)])
def test_parts_of_a_batch_are_the_batch(config, micro_batches, devices):
    """In micro-batches and on two devices, what is carried to the next batch as well."""
    config = override(config, {"optimizer.eps": "1.0"})  # so that no gradient of nearly 0 makes a whole step
    objective, task = make_objective(config), TextTask(config)
    placement = place(config.data.batch_size, num_devices=devices)

    def train(**options):
        state = make_state(objective, config.optimizer, jax.random.key(0), config.data.batch_size)
        for step in range(2):
            state, metrics = train_step(state, task.batch(step).arrays, **options)
        return jax.tree.map(np.asarray, (state.params, state.carry, metrics))

    whole, parts = train(), train(micro_batches=micro_batches, mesh=placement.step_mesh)
    for expected, found in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
