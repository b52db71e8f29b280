import json
import os
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import DataSource
from trimtab.launch.runtime.documents import (
    FileDocuments,
    JsonlDocuments,
    find_source,
    read_text,
)


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files(path: Path, pattern: str = "**/*") -> FileDocuments:
    found = find_source(DataSource(path=str(path), pattern=pattern))
    assert found.format == "text"
    return FileDocuments(found, source=str(path))


def names(documents: FileDocuments) -> list[str]:
    return [documents.key(document).decode() for document in range(len(documents.num_bytes))]


def jsonl(path: Path, *, text_key: str = "text") -> JsonlDocuments:
    found = find_source(DataSource(path=str(path)))
    assert found.format == "jsonl"
    return JsonlDocuments(found, source=str(path), text_key=text_key)


def find_error(path: Path | str, **fields: str) -> str:
    with pytest.raises(InputError) as caught:
        find_source(DataSource(path=str(path), **fields))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_come_in_sorted_order_without_hidden_ones_caches_and_empty_ones(
    tmp_path: Path,
) -> None:
    write(tmp_path, b_py="bb", a_py="a", sub__c_py="ccc", empty_py="", __pycache____d_py="d")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "e.py").write_text("e")
    (tmp_path / ".hidden.py").write_text("f")

    documents = files(tmp_path)

    assert names(documents) == ["a.py", "b.py", "sub/c.py"]
    assert documents.num_bytes.tolist() == [1, 2, 3]
    assert read_text(documents, 2) == b"ccc"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.py", ["a.py", "sub/b.py", "sub/deep/c.py"]),
        ("*.py", ["a.py"]),
        ("sub/**", ["sub/b.py", "sub/d.txt", "sub/deep/c.py"]),
        ("sub/**/c.py", ["sub/deep/c.py"]),
        ("**/[ab].*", ["a.py", "sub/b.py"]),
        ("sub/?.py", ["sub/b.py"]),
    ],
)
def test_a_pattern_picks_files(pattern: str, expected: list[str], tmp_path: Path) -> None:
    write(tmp_path, a_py="a", sub__b_py="b", sub__deep__c_py="c", sub__d_txt="d")
    assert names(files(tmp_path, pattern)) == expected


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, data__a_txt="a", elsewhere__b_txt="b")
    data = tmp_path / "data"
    (data / "loop").symlink_to(data)
    (data / "itself").symlink_to(data / "itself")
    (data / "dangling.txt").symlink_to(data / "nothing")
    (data / "more").symlink_to(tmp_path / "elsewhere")

    assert names(files(data)) == ["a.txt", "more/b.txt"]


def test_any_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\x00caf\xc3\xa9\r\n")
    documents = files(tmp_path / "a.txt")
    assert documents.num_bytes.tolist() == [9]
    assert read_text(documents, 0) == b"\xff\x00caf\xc3\xa9\r\n"
    assert documents.read(0, 2, 5) == b"caf"


def test_keys_do_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write(tmp_path / place, sub__a_txt=place)
    assert names(files(tmp_path / "here")) == names(files(tmp_path / "there"))


def test_the_standard_library_is_found_without_its_tests_and_packages() -> None:
    found = find_source(DataSource(path="stdlib:"))
    relative = [path.relative_to(found.root) for path in found.paths]
    assert "argparse.py" in map(str, relative)
    assert all(path.suffix == ".py" for path in relative)
    assert not {"test", "tests", "site-packages", "__pycache__"} & {
        part for path in relative for part in path.parts
    }


def test_each_line_of_jsonl_is_a_document_and_blank_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": ""}\n{"id": 7, "text": "caf\\u00e9 \\n"}')
    documents = jsonl(path)
    assert documents.num_bytes.tolist() == [3, 7]
    assert [read_text(documents, index) for index in (0, 1)] == [b"one", "café \n".encode()]
    assert documents.name(1) == f"{path}:4"


def test_jsonl_keys_are_of_the_text_wherever_its_line_is(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("one", "two", "three")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(lines)))
    forward, backward = jsonl(tmp_path / "a.jsonl"), jsonl(tmp_path / "b.jsonl")
    assert [forward.key(i) for i in range(3)] == [backward.key(i) for i in (2, 1, 0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "not a JSON line"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b'{"content": "x"}', "no field 'text' (data.sources.text_key); the line has content"),
        (b'{"text": 5}', "expected text in 'text', got int"),
        (b'{"text": "\xff"}', "not a JSON line"),
        (b'{"text": "\\ud800"}', "not a JSON line"),
        (b"[" * 100_000, "not a JSON line"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(
    line: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError) as caught:
        jsonl(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_a_file_that_shrinks_while_training_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_txt="long enough", b_jsonl='{"text": "one"}\n')
    documents, lines = files(tmp_path / "a.txt"), jsonl(tmp_path / "b.jsonl")
    write(tmp_path, a_txt="short", b_jsonl='{"text": "two"}\n')
    with pytest.raises(InputError, match=r"a\.txt: expected 11 bytes"):
        read_text(documents, 0)
    with pytest.raises(InputError, match=r"b\.jsonl:1: the line has changed"):
        read_text(lines, 0)


def test_what_cannot_be_found_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "does not exist; name a file" in find_error(tmp_path / "nowhere")
    assert "does not exist" in find_error("~no-such-user/texts")
    assert "cannot be read (File name too long)" in find_error(tmp_path / ("x" * 300))
    assert "has no file that matches '**/*'" in find_error(tmp_path / "empty")
    assert "change data.sources.pattern" in find_error(tmp_path / "empty", pattern="*.md")
    assert "stdlib: finds no .py file" in find_error("stdlib:", pattern="*.rs")


def test_only_empty_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, a_txt="", b_txt="", c_jsonl="\n\n")
    with pytest.raises(InputError, match="all 2 files are empty"):
        files(tmp_path, "*.txt")
    with pytest.raises(InputError, match="no line has any text"):
        jsonl(tmp_path / "c.jsonl")


def test_mixed_and_packed_files_are_refused_with_an_example(tmp_path: Path) -> None:
    write(tmp_path, a_txt="a", b_jsonl="{}")
    message = find_error(tmp_path)
    assert "a.txt (text)" in message
    assert "b.jsonl (jsonl)" in message
    write(tmp_path, c_parquet="x")
    assert "c.parquet is not plain text" in find_error(tmp_path)
    found = find_source(DataSource(path=str(tmp_path), format="text"))
    assert len(found.paths) == 3


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="expected a regular file"):
        files(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_txt="a")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(InputError, match=r"a\.txt: no permission to read it"):
        files(tmp_path)
