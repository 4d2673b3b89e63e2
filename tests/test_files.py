"""Files are replaced whole or not at all, and JSON is read with its file's name in every error."""

import json
import os
import re
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.files import read_json, replace_file, to_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé\n", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


# --- replace_file ---


@pytest.mark.parametrize("content", [b"", b"\x00\xff\r\n", "", "naïve\n"])
def test_the_file_holds_exactly_the_content(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file"
    for _ in range(2):  # new, then over an old one
        replace_file(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        replace_file(str(path), "something else, and longer")
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["replace", "chmod", "fdopen"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "file"
    replace_file(path, "old")

    def fail(*arguments, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(type(error)):
            replace_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_encoded_leaves_the_old_file(tmp_path):
    replace_file(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(tmp_path / "file", "half a pair: \ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    """Read all the while it is written: each reading is one of the contents, whole."""
    path, contents, seen = tmp_path / "file", [bytes([i]) * 200_000 for i in range(3)], set()
    replace_file(path, contents[0])
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(150):
        replace_file(path, contents[i % 3])
    done.set()
    reader.join()
    assert seen
    assert seen <= set(contents)


def test_the_new_content_is_written_beside_and_moved(tmp_path, monkeypatch):
    """In the same folder, so that the move is one on the same file system; and complete before it."""
    moves, original = [], os.replace

    def spied(source, target):
        moves.append((os.path.dirname(source), Path(source).read_bytes(), str(target)))
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", spied)
        replace_file(tmp_path / "file", "new")
    assert moves == [(str(tmp_path), b"new", str(tmp_path / "file"))]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_others_may_read_the_file(tmp_path):
    """Temporary files are private; what is put in their place must not be."""
    replace_file(tmp_path / "file", "content")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
        replace_file(tmp_path / "file" / "below", "content")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "folder"))):
        replace_file(tmp_path / "folder", "content")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# --- JSON ---


@given(value=st.dictionaries(st.text("abé\n", max_size=3), JSON, max_size=4))
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    replace_file(path, to_json(value))
    assert read_json(path) == value
    assert repr(read_json(path)) == repr(value)  # -0.0, 1.0 and True too


def test_json_is_indented_readable_and_ends_its_line():
    assert to_json({"naïve": [1]}) == '{\n  "naïve": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_json_without_a_value_is_not_written(value):
    """NaN is not JSON; other programs could not read the file."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": value})


BAD_JSON = {
    "empty": b"", "cut off": b'{"a": ', "two values": b"{} {}", "trailing comma": b'{"a": 1,}',
    "not UTF-8": b'{"a": "\xff"}', "UTF-16": '{"a": 1}'.encode("utf-16"), "a list": b"[1]", "null": b"null",
    "a string": b'"a"', "a number": b"1", "deep lists": b"[" * 100_000, "deep objects": b'{"a":' * 100_000,
    "5,000 digits": b'{"a": ' + b"1" * 5000 + b"}", "NaN": b'{"a": NaN}', "infinity": b'{"a": -Infinity}',
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_JSON)
def test_anything_but_a_json_object_is_refused_and_the_file_named(tmp_path, bad):
    path = tmp_path / "config.json"
    path.write_bytes(BAD_JSON[bad])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.json"))):
        read_json(tmp_path / "none.json")


def test_any_standard_json_object_is_read(tmp_path):
    path = tmp_path / "value.json"
    path.write_text(json.dumps({"é": [1, 2.5, None, True, {"a": "\ud83d\ude00"}]}))  # escaped, as others may write it
    assert read_json(path) == {"é": [1, 2.5, None, True, {"a": "😀"}]}
