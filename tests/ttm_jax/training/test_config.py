"""Configs: what is read, written, overridden and refused."""

import re

import pytest

from ttm_jax.multiplication.config import Config
from ttm_jax.tasks import config_from_dict, load_config
from ttm_jax.training.config import (
    DEFAULT_TASK,
    ConfigError,
    changed_keys,
    config_keys,
    config_to_dict,
    config_to_toml,
    find_config,
    flag_of,
    override,
    shipped_configs,
)

SHIPPED = sorted(shipped_configs().glob("*/*.toml"))


@pytest.fixture
def toml(tmp_path):
    """Writes a config file: `toml(text)` gives its path."""

    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_defaults_are_the_checklists():
    model = Config().model
    assert (model.width, model.memory_size, model.process_size) == (128, 96, 16)
    assert (model.num_layers, model.num_heads, model.mlp_dim, model.dropout_rate) == (4, 4, 512, 0.1)
    assert len(Config().data.stages) == 7
    train = Config().train
    assert (train.eval_every_epochs, train.patience_epochs, train.num_examples >= 3) == (10, 20, True)
    curriculum = Config().curriculum
    assert (curriculum.threshold, curriculum.window, curriculum.max_epochs_per_stage) == (0.9, 5, 1000)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configs_load(path):
    """By name, which of the default task needs no task."""
    config, task = load_config(path), path.parent.name
    assert config.task == task
    assert find_config(path.stem if task == DEFAULT_TASK else f"{task}/{path.stem}") == path
    assert load_config(find_config(str(path))) == config


def test_there_are_shipped_configs():
    assert SHIPPED


def test_a_config_is_found_with_its_task_as_well():
    assert find_config("multiplication/quick") == find_config("quick")


@pytest.mark.parametrize("text", ['task = "dance"', "task = 3"])
def test_a_task_that_there_is_not(toml, text):
    with pytest.raises(ConfigError, match="task must be one of multiplication, text; got"):
        load_config(toml(text))


def test_toml_round_trip(toml, tiny_config):
    for config in (Config(), tiny_config):
        assert load_config(toml(config_to_toml(config))) == config
        assert config_from_dict(config_to_dict(config)) == config


def test_keys_left_out_keep_their_defaults(toml):
    config = load_config(toml("[model]\nwidth = 64\n"))
    assert changed_keys(Config(), config) == ["model.width"]
    assert load_config(toml("")) == Config()


def test_values_of_each_kind(toml):
    config = load_config(
        toml(
            '[model]\nread = "query"\npositions = false\n[data]\nstages = [[0, 9], [0, 19]]\naugment = []\n'
            '[curriculum]\nlast_stage = 1\n[optimizer]\nlearning_rate = 1\nmax_grad_norm = "none"\n'
        )
    )
    assert config.model.read == "query"
    assert config.model.positions is False
    assert config.data.stages == ((0, 9), (0, 19))
    assert config.data.augment == ()
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.optimizer.max_grad_norm is None
    assert hash(config) == hash(config_from_dict(config_to_dict(config)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown
        ("[model]\nwidht = 3", "unknown key model.widht; did you mean model.width?"),
        ("[modell]\nwidth = 3", "unknown key modell; did you mean model?"),
        ("[train]\nxyzzy = 3", "unknown key train.xyzzy; known: seed, max_epochs"),
        ("width = 3", "unknown key width; known: task, model, data"),
        # wrong type
        ('[model]\nwidth = "wide"', "model.width must be an integer, got 'wide'"),
        ("[model]\nwidth = true", "model.width must be an integer, got True"),
        ("[model]\nwidth = 64.0", "model.width must be an integer, got 64.0"),
        ("[model]\npositions = 1", "model.positions must be true or false, got 1"),
        ("[model]\ndropout_rate = true", "model.dropout_rate must be a number, got True"),
        ("[model]\nread = 3", "model.read must be one of mlp, query, pooling; got 3"),
        ("[data]\nstages = 3", "data.stages must be a list, got 3"),
        ("[data]\nstages = [[0, 9], [0]]", "data.stages[1] must have 2 elements, got 1"),
        ("[data]\nstages = [[0, 9.5]]", "data.stages[0][1] must be an integer, got 9.5"),
        ("[data]\nmax_digits = [5]", "data.max_digits must have 2 elements, got 1"),
        ('[train]\npatience_epochs = "never"', "train.patience_epochs must be an integer, got 'never'"),
        ("model = 3", "model must be a table, got 3"),
        # impossible value
        ("[model]\nnum_heads = 3", "model.num_heads must divide model.width (128), got 3"),
        ("[model]\nnum_heads = 0", "model.num_heads must be positive, got 0"),
        ("[model]\nwidth = -8", "model.width must be positive, got -8"),
        ("[model]\nwidth = 3\nnum_heads = 3", "model.width must be even, got 3"),
        ("[model]\nmemory_size = 0", "model.memory_size must be positive, got 0"),
        ("[model]\nprocess_size = -1", "model.process_size must be positive, got -1"),
        ("[model]\ndropout_rate = 1.0", "model.dropout_rate must be in [0, 1), got 1.0"),
        ("[model]\ndropout_rate = -0.1", "model.dropout_rate must be in [0, 1), got -0.1"),
        ("[model]\nseq_len = 11", "model.seq_len must be 12"),
        ('[model]\nread = "mean"', "model.read must be one of mlp, query, pooling; got 'mean'"),
        ('[model]\nwrite = "add"', "model.write must be one of mlp, query, pooling, erase_add, concat, none"),
        ('[model]\nprocessing = "rnn"', "model.processing must be one of transformer, mixer, mlp"),
        ('[model]\ndtype = "float8"', "model.dtype must be one of float32, bfloat16"),
        ("[data]\nbatch_size = 0", "data.batch_size must be positive, got 0"),
        ("[data]\nstages = []", "data.stages must name at least one stage"),
        ("[data]\nstages = [[9, 0]]", "data: stages must satisfy 0 <= min <= max <= 99999, got (9, 0)"),
        ("[data]\nstages = [[0, 123456]]", "data: stages must satisfy 0 <= min <= max <= 99999"),
        ("[data]\nstages = [[41, 41]]", "data: every pair of operands from [41 41] to [41 41] is held out"),
        ("[data]\nstages = [[10, 11]]", "data: stage (10, 11) has no held-out pairs to be evaluated on"),
        ("[data]\nmax_digits = [2, 3]", "data: max_digits must satisfy 5 >= longer >= shorter >= 1"),
        ('[data]\naugment = ["mirror"]', "data.augment[0] must be one of swap, leading_zeros; got 'mirror'"),
        ("[curriculum]\nstart_stage = 3\nlast_stage = 2", "curriculum.last_stage must not be before start_stage"),
        ("[curriculum]\nstart_stage = -1", "curriculum.start_stage must not be negative, got -1"),
        ("[curriculum]\nlast_stage = 7", "curriculum.last_stage must be below the number of data.stages (7)"),
        ("[curriculum]\nthreshold = 0.0", "curriculum.threshold must be in (0, 1], got 0.0"),
        ("[curriculum]\nfloor = 0.0", "curriculum.floor must be in (0, 1]"),
        ("[curriculum]\nwindow = 0", "curriculum.window must be positive, got 0"),
        ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate must be a finite number, got nan"),
        ("[optimizer]\nlearning_rate = inf", "optimizer.learning_rate must be a finite number, got inf"),
        ("[optimizer]\nlearning_rate = 0.0", "optimizer.learning_rate must be positive, got 0.0"),
        ("[optimizer]\nb2 = 1.0", "optimizer.b2 must be in [0, 1), got 1.0"),
        ("[optimizer]\nalpha = 3.0", "optimizer.alpha must be in [0, peak_factor], got 3.0"),
        ("[optimizer]\nweight_decay = -1e-4", "optimizer.weight_decay must not be negative, got -0.0001"),
        ("[optimizer]\nmax_grad_norm = 0.0", "optimizer.max_grad_norm must be positive, got 0.0"),
        ('[optimizer]\nname = "sgd"', "optimizer.name must be one of adam, adamw, muon; got 'sgd'"),
        ("[train]\nseed = -1", "train.seed must be in 0..2^32 - 1, got -1"),
        ("[train]\nnum_examples = 2", "train.num_examples must be at least 3, got 2"),
        ("[train]\npatience_epochs = 0", "train.patience_epochs must be positive, got 0"),
        ("[train]\nmax_epochs = 0", "train.max_epochs must be positive, got 0"),
        # not TOML
        ("[model\nwidth = 3", "not valid TOML: "),
        ("[model]\nwidth = 3\nwidth = 4", "not valid TOML: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(toml, text, message):
    path = toml(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"config {path}: {message}")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for name, content, reason in [
        ("missing.toml", None, "No such file or directory"),
        ("folder.toml", "", "Is a directory"),
        ("binary.toml", b"[model]\nwidth = \xff\xfe", "not UTF-8 text"),
    ]:
        path = tmp_path / name
        if content == "":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"^{re.escape(f'config {path}: cannot be read: {reason}')}$"):
            load_config(path)


def test_an_unknown_name_lists_the_shipped_configs(tmp_path):
    with pytest.raises(ConfigError, match="config quik: no such file, and none of the shipped ones: .*quick"):
        find_config("quik")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(find_config(str(tmp_path)))


def test_overrides():
    config = override(
        Config(),
        {
            "model.memory_size": "64",
            "model.write": "erase_add",
            "model.dropout_rate": "0",
            "model.positions": "false",
            "data.stages": "[[0, 9], [0, 99]]",
            "curriculum.last_stage": "1",
            "optimizer.max_grad_norm": "none",
            "train.patience_epochs": "none",
        },
    )
    assert config.model.memory_size == 64
    assert config.model.write == "erase_add"
    assert config.model.dropout_rate == 0.0
    assert config.model.positions is False
    assert config.data.stages == ((0, 9), (0, 99))
    assert config.optimizer.max_grad_norm is None
    assert config.train.patience_epochs is None
    assert override(config, {}) == config
    assert override(config, {"train.patience_epochs": "7"}).train.patience_epochs == 7


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.memory_size", "many", "--model.memory-size many: model.memory_size must be an integer, got 'many'"),
        ("model.memory_size", "none", "--model.memory-size none: model.memory_size must be an integer"),
        ("model.memory_size", "", "--model.memory-size : model.memory_size must be an integer, got ''"),
        ("model.memory_siez", "3", "--model.memory-siez 3: unknown key model.memory_siez; did you mean"),
        ("data.stages", "[[0, 9", "--data.stages [[0, 9: data.stages must be a list, got '[[0, 9'"),
    ],
)
def test_a_bad_override_names_its_flag(key, value, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        override(Config(), {key: value})


def test_overrides_that_contradict_each_other_are_all_named():
    with pytest.raises(ConfigError, match=r"^--model\.width 64 --model\.num-heads 5: model\.num_heads must divide"):
        override(Config(), {"model.width": "64", "model.num_heads": "5"})


def test_each_key_has_a_flag():
    keys = config_keys(Config)
    sections = {name: values for name, values in config_to_dict(Config()).items() if isinstance(values, dict)}
    assert set(keys) == {f"{section}.{key}" for section, values in sections.items() for key in values}
    assert flag_of("model.memory_size") == "--model.memory-size"


def test_changed_keys():
    other = override(Config(), {"model.width": "64", "train.seed": "3", "data.augment": "[]"})
    assert changed_keys(Config(), other) == ["model.width", "data.augment", "train.seed"]
    assert changed_keys(other, other) == []
