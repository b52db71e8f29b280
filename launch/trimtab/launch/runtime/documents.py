"""Finds and reads the documents of a data source: text files and JSONL lines, as bytes.

Every rank opens the same sources and must see the same documents, so they are always in sorted
order, and a document's `key` (what decides whether it is held out) does not depend on where the
data are mounted. Megatron's tokenized files are read by `indexed_documents.py`.
"""

import hashlib
import json
import os
import stat
import sysconfig
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from trimtab.core.errors import InputError
from trimtab.core.job import STDLIB_SOURCE, DataSource

INDEXED_SUFFIXES = (".bin", ".idx")
"""Megatron's tokenized data and its index."""

_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_PACKED_SUFFIXES = [".bz2", ".gz", ".lz4", ".tar", ".tgz", ".whl", ".xz", ".zip", ".zst"]
_TABLE_SUFFIXES = [".arrow", ".npy", ".npz", ".parquet", ".pkl", ".pt", ".pth", ".safetensors"]
_OTHER_SUFFIXES = [".gif", ".jpeg", ".jpg", ".pdf", ".png", ".pyc", ".so"]
_NOT_TEXT_SUFFIXES = frozenset(_PACKED_SUFFIXES + _TABLE_SUFFIXES + _OTHER_SUFFIXES)
_STDLIB_SKIPPED_FOLDERS = frozenset(
    ["dist-packages", "idle_test", "site-packages", "test", "tests"]
)

_DIGEST_BYTES = 16

Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]


class TextDocuments(Protocol):
    """Documents that are yet to be tokenized."""

    source: str
    num_bytes: Int64Array
    """Size of every document, > 0."""

    def key(self, document: int) -> bytes:
        """What tells this document from the others, on any machine and in any order."""

    def name(self, document: int) -> str:
        """How a message calls this document."""

    def read(self, document: int, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSource:
    """What a source's path turned out to be."""

    format: Literal["text", "jsonl", "megatron"]
    root: Path
    """The folder that `paths` lie in."""
    paths: tuple[Path, ...]
    """Sorted; for `megatron`, the `.idx` and `.bin` files."""


class FileDocuments:
    """Every file is one document; empty files are left out."""

    def __init__(self, found: FoundSource, *, source: str) -> None:
        sizes = [_readable_size(path) for path in found.paths]
        kept = [(path, size) for path, size in zip(found.paths, sizes, strict=True) if size]
        if not kept:
            raise InputError(f"{source}: all {len(sizes)} files are empty; add documents")
        self.source = source
        self.num_bytes = np.array([size for _, size in kept], dtype=np.int64)
        self._root = found.root
        self._paths = [path for path, _ in kept]

    def key(self, document: int) -> bytes:
        return os.fsencode(self._paths[document].relative_to(self._root).as_posix())

    def name(self, document: int) -> str:
        return str(self._paths[document])

    def read(self, document: int, start: int, stop: int) -> bytes:
        path = self._paths[document]
        data = _read_range(path, start, stop)
        if len(data) != stop - start:
            raise InputError(
                f"{path}: expected {self.num_bytes[document]} bytes as when the job started, "
                "but it has shrunk; restore it, or start a new run"
            )
        return data


class JsonlDocuments:
    """Every line's text is one document; blank lines and empty texts are left out."""

    def __init__(self, found: FoundSource, *, source: str, text_key: str) -> None:
        self.source = source
        self._paths = found.paths
        self._text_key = text_key
        rows = array("q")
        digests = bytearray()
        for file, path in enumerate(found.paths):
            _readable_size(path)
            for line, start, raw in _lines(path):
                text = _line_text(raw, text_key=text_key, where=f"{path}:{line}")
                if text:
                    rows.extend((file, line, start, len(raw), len(text)))
                    digests += _digest(text)
        if not rows:
            raise InputError(f"{source}: no line has any text; add documents")
        table = np.array(rows, dtype=np.int64).reshape(-1, 5)
        self._file, self._line, self._start, self._size, self.num_bytes = table.T
        self._digests = bytes(digests)

    def key(self, document: int) -> bytes:
        return self._digests[document * _DIGEST_BYTES : (document + 1) * _DIGEST_BYTES]

    def name(self, document: int) -> str:
        return f"{self._paths[self._file[document]]}:{self._line[document]}"

    def read(self, document: int, start: int, stop: int) -> bytes:
        offset = int(self._start[document])
        path = self._paths[self._file[document]]
        raw = _read_range(path, offset, offset + int(self._size[document]))
        where = self.name(document)
        text = _line_text(raw, text_key=self._text_key, where=where)
        if _digest(text) != self.key(document):
            raise InputError(
                f"{where}: the line has changed since the job started; restore the file, "
                "or start a new run"
            )
        return text[start:stop]


def source_name(source: DataSource) -> str:
    """How a source is called in hashes: the last part of its path, wherever it is mounted."""
    return source.path if source.path == STDLIB_SOURCE else Path(source.path).name


def find_source(source: DataSource) -> FoundSource:
    """Look at what a source's path names and decide its format.

    Raises:
        InputError: Nothing is there, nothing matches, or the files are of mixed formats.
    """
    if source.path == STDLIB_SOURCE:
        return _find_stdlib(source.pattern)
    path = Path(os.path.expanduser(source.path))  # noqa: PTH111  Path's raises for no such user
    try:
        if path.is_dir():
            return _find_in_folder(path, source)
        return _find_file(path, source)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_text(documents: TextDocuments, document: int) -> bytes:
    """The whole of one document."""
    return documents.read(document, 0, int(documents.num_bytes[document]))


def _find_stdlib(pattern: str) -> FoundSource:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [
        path
        for path in _matching_files(root, pattern, skip=_STDLIB_SKIPPED_FOLDERS)
        if path.suffix == ".py"
    ]
    if not found:
        raise InputError(
            f"data.sources.path: {STDLIB_SOURCE} finds no .py file under {root} that matches "
            f"{pattern!r}; name a folder of documents instead"
        )
    return FoundSource(format="text", root=root, paths=tuple(found))


def _find_file(path: Path, source: DataSource) -> FoundSource:
    pair = _indexed_pair(path)
    if source.format in ("auto", "megatron") and pair is not None:
        return FoundSource(format="megatron", root=path.parent, paths=pair)
    if not path.exists():
        raise InputError(f"data.sources.path: {path} does not exist; name a file or a folder")
    if source.format == "megatron":
        raise InputError(f"data.sources.path: {path} has no .idx and .bin file beside it")
    format_ = _format_of([path], source)
    return FoundSource(format=format_, root=path.parent, paths=(path,))


def _find_in_folder(folder: Path, source: DataSource) -> FoundSource:
    found = _matching_files(folder, source.pattern, skip=frozenset())
    if source.format == "megatron":
        found = [path for path in found if path.suffix in INDEXED_SUFFIXES]
    if not found:
        raise InputError(
            f"data.sources.path: {folder} has no file that matches {source.pattern!r}; "
            "add documents, or change data.sources.pattern"
        )
    format_ = _format_of(found, source)
    return FoundSource(format=format_, root=folder, paths=tuple(found))


def _format_of(
    paths: Sequence[Path], source: DataSource
) -> Literal["text", "jsonl", "megatron"]:
    if source.format != "auto":
        return source.format
    first_of = {_format_by_suffix(path): path for path in reversed(paths)}
    if "unreadable" in first_of:
        raise InputError(
            f"data.sources.path: {first_of['unreadable']} is not plain text; unpack or convert "
            "it, or narrow data.sources.pattern (such as '**/*.txt')"
        )
    if len(first_of) > 1:
        examples = ", ".join(f"{path} ({name})" for name, path in sorted(first_of.items()))
        raise InputError(
            f"data.sources.path: files of different formats together: {examples}; "
            "narrow data.sources.pattern, or set data.sources.format"
        )
    (format_,) = first_of
    return format_  # type: ignore[return-value]  # "unreadable" was refused above


def _format_by_suffix(path: Path) -> Literal["text", "jsonl", "megatron", "unreadable"]:
    suffix = path.suffix.lower()
    if suffix in _JSONL_SUFFIXES:
        return "jsonl"
    if suffix in INDEXED_SUFFIXES:
        return "megatron"
    return "unreadable" if suffix in _NOT_TEXT_SUFFIXES else "text"


def _indexed_pair(path: Path) -> tuple[Path, Path] | None:
    """The `.bin` and `.idx` of a path that is one of them or, as Megatron names it, neither."""
    prefix = path.with_suffix("") if path.suffix in INDEXED_SUFFIXES else path
    data, index = (Path(f"{prefix}{suffix}") for suffix in INDEXED_SUFFIXES)
    named = path.suffix in INDEXED_SUFFIXES and path.exists()
    return (data, index) if named or index.is_file() else None


def _matching_files(folder: Path, pattern: str, *, skip: frozenset[str]) -> list[Path]:
    """Files under `folder` whose relative path matches, sorted; hidden ones and caches not.

    Links to folders are followed, each folder at most once, so that a loop of links ends.
    """
    parts = pattern.split("/")
    walked = _walk(folder, skip | {"__pycache__"})
    found = [path for path in walked if _matches(path.split("/"), parts)]
    return [folder / path for path in sorted(found)]


def _walk(folder: Path, skip: frozenset[str]) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in skip)
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether path parts match glob parts, where `**` is any number of folders."""
    if not pattern:
        return not names
    first, *rest = pattern
    if first == "**":
        return any(_matches(names[i:], rest) for i in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], first) and _matches(names[1:], rest)


def _readable_size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: expected a regular file; name a file or a folder of files")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it; chmod it, or leave it out")
    return status.st_size


def _read_range(path: Path, start: int, stop: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    except OSError as error:
        raise _unreadable(path, error) from error


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Line number (from 1), offset in bytes, and the line, of every line that is not blank."""
    start = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if raw.strip():
                yield line, start, raw
            start += len(raw)


def _line_text(raw: bytes, *, text_key: str, where: str) -> bytes:
    try:
        record = json.loads(raw)
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object, got {type(record).__name__}")
        if text_key not in record:
            raise InputError(
                f"{where}: no field {text_key!r} (data.sources.text_key); "
                f"the line has {', '.join(sorted(record)) or 'none'}"
            )
        text = record[text_key]
        if not isinstance(text, str):
            raise InputError(
                f"{where}: expected text in {text_key!r}, got {type(text).__name__}"
            )
        return text.encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a JSON line ({error}); mend or remove it") from error


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()


def _raise_unreadable(error: OSError) -> None:
    raise _unreadable(Path(error.filename), error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror}); mend it, or leave it out")
