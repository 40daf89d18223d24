"""Which documents are trained on and which are held out, and what is refused."""

import pytest

from ttm_jax.text.corpus import read_corpus
from ttm_jax.text.tokenizer import BPETokenizer, ByteTokenizer, as_text, make_tokenizer
from ttm_jax.training.config import ConfigError

PATTERNS = ("*.txt",)


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        path = tmp_path / f"part{i % 3}" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text {i}")
    return tmp_path


def names(documents):
    return {document.name for document in documents}


def test_a_file_keeps_its_side(folder):
    before = read_corpus(str(folder), PATTERNS, 0.3)
    assert len(before.training) + len(before.held_out) == 40
    assert before.held_out
    assert not names(before.training) & names(before.held_out)
    (folder / "new.txt").write_text("new")
    (folder / "part0" / "0.txt").unlink()
    (folder / "part1" / "1.txt").write_text("changed")
    after = read_corpus(str(folder), PATTERNS, 0.3)
    assert names(before.training) - {"part0/0.txt"} == names(after.training) - {"new.txt"}
    assert names(before.held_out) - {"part0/0.txt"} == names(after.held_out) - {"new.txt"}


@pytest.mark.parametrize("change", ["content", "name", "less"])
def test_the_digest_is_of_names_and_contents(folder, change):
    before = read_corpus(str(folder), PATTERNS, 0.3).digest
    assert read_corpus(str(folder), PATTERNS, 0.3).digest == before
    file = folder / "part0" / "0.txt"
    if change == "content":
        file.write_text("text 1")
    elif change == "name":
        file.rename(folder / "part0" / "00.txt")
    else:
        file.unlink()
    assert read_corpus(str(folder), PATTERNS, 0.3).digest != before


def test_empty_files_and_other_files_are_left_out(folder):
    (folder / "empty.txt").write_text("")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "hidden.txt").write_text("x")
    (folder / "other.dat").write_bytes(b"\xff\xfe")
    corpus = read_corpus(str(folder), PATTERNS, 0.3)
    assert not {"empty.txt", "other.dat", ".venv/hidden.txt"} & (names(corpus.training) | names(corpus.held_out))


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    file = tmp_path / "book"
    file.write_bytes(bytes(range(256)) * 4)
    corpus = read_corpus(str(file), PATTERNS, 0.25)
    assert [document.data for document in corpus.training] == [bytes(range(256)) * 3]
    assert len(corpus.held_out) == 32
    assert b"".join(document.data for document in corpus.held_out) == bytes(range(256))


def test_the_sources_of_this_python():
    corpus = read_corpus("stdlib", PATTERNS, 0.1)
    all_names = names(corpus.training) | names(corpus.held_out)
    assert {"abc.py", "json/decoder.py"} <= all_names
    assert not any("site-packages" in name or "/test/" in name for name in all_names)
    assert 0.02 < len(corpus.held_out) / len(all_names) < 0.25


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "missing", "missing: cannot be read: No such file"),
        ({"a.dat": b"x"}, "", r"no file in it matches \*.txt"),
        ({"a.txt": b""}, "", r"no file in it matches \*.txt and has text"),
        ({"a.txt": b"x", "A.txt": b"y"}, "", "of its 2 files none is"),
        ({"a.txt": b"x"}, "a.txt", "too short to be divided, with 1 bytes"),
        ({"a.txt": b""}, "a.txt", "a.txt: an empty file"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, files, path, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as error:
        read_corpus(str(tmp_path / path), PATTERNS, 0.5)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([b"the cat and the dog and the hen " * 20], 300)


@pytest.mark.parametrize("data", [b"", bytes(range(256)) * 2, "日本 × é\n".encode(), b"the \xff\xfe the", b"\xe6\x97"])
def test_any_bytes_are_text(data, bpe):
    for tokenizer in (ByteTokenizer(), bpe):
        tokens = tokenizer.encode(data)
        assert all(tokens < tokenizer.bos)
        assert tokenizer.bos != tokenizer.pad < tokenizer.vocab_size
        assert tokenizer.num_bytes[tokens].sum() == len(data)
        assert tokenizer.decode([tokenizer.bos, *tokens, tokenizer.pad]) == data


def test_pairs_are_learnt_and_learnt_again(bpe):
    text = b"the hen and the cat"
    assert len(bpe.encode(text)) < len(text) / 2
    again = BPETokenizer.train([b"the cat and the dog and the hen " * 20], 300)
    assert again.to_json() == bpe.to_json()
    saved = make_tokenizer(bpe.to_json())
    assert saved.encode(text).tolist() == bpe.encode(text).tolist()
    assert isinstance(make_tokenizer(None), ByteTokenizer)


def test_a_character_is_held_back_until_it_is_whole():
    data = "a×日".encode()
    assert list(as_text([data[:2], data[2:4], data[4:]])) == ["a", "×", "日", ""]
    assert "".join(as_text([b"\xff", b"b", "×".encode()[:1]])) == "\ufffdb\ufffd"


def test_patterns_are_of_names(folder):
    with pytest.raises(ConfigError, match=r"data.patterns .*: must be patterns of names, such as \*.txt"):
        read_corpus(str(folder), ["/absolute/*.txt"], 0.5)
