"""Reads Megatron's tokenized documents: a `.bin` of token ids and its `.idx`.

The index is, little-endian: `MMIDIDX` and two zero bytes; u64 version, 1; u8 code of the ids'
type; u64 number of sequences S; u64 number of document ends D; S x i32 lengths in ids; S x i64
offsets in bytes into the `.bin`; D x i64 document ends, the first of which is 0: document d is
sequences `ends[d]` to `ends[d + 1]`. Bytes after that (modes) are not read.

Source: `_IndexWriter` and `DType` in megatron/core/datasets/indexed_dataset.py of megatron-core
0.16.1.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.core.errors import InputError
from trimtab.launch.runtime.documents import INDEXED_SUFFIXES, FoundSource, Int64Array

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_ID_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_HEADER_BYTES = len(_MAGIC) + 8 + 1 + 8 + 8
_VOCAB_SCAN_IDS = 2**28
"""How many ids of a file are looked at for the vocabulary: about a second of reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """One `.bin` and what its `.idx` says."""

    path: Path
    ids: np.ndarray[tuple[int], np.dtype[np.integer]]
    lengths: np.ndarray[tuple[int], np.dtype[np.int32]]
    offsets: Int64Array
    ends: Int64Array


class IndexedDocuments:
    """The documents of one or more `.bin`/`.idx` pairs, as the ids they are stored as."""

    def __init__(self, found: FoundSource, *, source: str, model_vocab: int | None) -> None:
        self.source = source
        self._model_vocab = model_vocab
        prefixes = sorted({path.with_suffix("") for path in found.paths})
        self._pairs = [_open_pair(prefix) for prefix in prefixes]
        self._root = found.root
        counts = [len(pair.ends) - 1 for pair in self._pairs]
        self._first_document = np.concatenate([[0], np.cumsum(counts)])
        if not self._first_document[-1]:
            raise InputError(f"{source}: the index has no documents; tokenize some text first")
        self.num_ids = np.concatenate([_document_ids(pair) for pair in self._pairs])
        self.vocab = 1 + max(
            int(pair.ids[:_VOCAB_SCAN_IDS].max(initial=0)) for pair in self._pairs
        )

    def key(self, document: int) -> bytes:
        pair, index = self._find(document)
        return f"{pair.path.relative_to(self._root).as_posix()}:{index}".encode()

    def name(self, document: int) -> str:
        pair, index = self._find(document)
        return f"{pair.path} document {index}"

    def ids(self, document: int, start: int, stop: int) -> Int64Array:
        """Ids `start` to `stop` of a document.

        Raises:
            InputError: An id is outside the model's vocabulary.
        """
        pair, index = self._find(document)
        parts = [
            _sequence_ids(pair, sequence)
            for sequence in range(int(pair.ends[index]), int(pair.ends[index + 1]))
        ]
        ids = np.concatenate(parts)[start:stop].astype(np.int64)
        if ids.min() < 0 or (self._model_vocab is not None and ids.max() >= self._model_vocab):
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise InputError(
                f"{self.name(document)}: token id {bad} is outside 0..model.vocab - 1; set "
                "model.vocab to that of the tokenizer which made the file"
            )
        return ids

    def _find(self, document: int) -> tuple[_Pair, int]:
        pair = int(np.searchsorted(self._first_document, document, side="right")) - 1
        return self._pairs[pair], document - int(self._first_document[pair])


def _open_pair(prefix: Path) -> _Pair:
    data, index = (Path(f"{prefix}{suffix}") for suffix in INDEXED_SUFFIXES)
    for path, other in ((data, index), (index, data)):
        if not path.is_file():
            raise InputError(f"{path}: missing beside {other.name}; copy both files")
    raw = _map(index)
    dtype, num_sequences, num_ends = _header(index, raw)
    sizes = (num_sequences * 4, num_sequences * 8, num_ends * 8)
    if _HEADER_BYTES + sum(sizes) > len(raw):
        raise InputError(
            f"{index}: truncated, expected {_HEADER_BYTES + sum(sizes)} bytes for "
            f"{num_sequences} sequences, got {len(raw)}; copy or make it again"
        )
    starts = np.cumsum((_HEADER_BYTES, *sizes))
    lengths, offsets, ends = (
        raw[start:stop].view(kind)
        for start, stop, kind in zip(
            starts[:-1], starts[1:], ("<i4", "<i8", "<i8"), strict=True
        )
    )
    stored = _map(data)
    _check_index(index, lengths=lengths, offsets=offsets, ends=ends, itemsize=dtype.itemsize)
    needed = int((offsets + lengths.astype(np.int64) * dtype.itemsize).max(initial=0))
    if needed > len(stored):
        raise InputError(
            f"{data}: truncated, its index needs {needed} bytes, got {len(stored)}; "
            "copy or make it again"
        )
    whole = len(stored) - len(stored) % dtype.itemsize
    return _Pair(
        path=data, ids=stored[:whole].view(dtype), lengths=lengths, offsets=offsets, ends=ends
    )


def _map(path: Path) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    try:
        if path.stat().st_size == 0:
            return np.zeros(0, dtype=np.uint8)
        return np.memmap(path, mode="r", dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _header(
    path: Path, raw: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> tuple[np.dtype[np.integer], int, int]:
    """Type of the ids, number of sequences, number of document ends."""
    head = raw[:_HEADER_BYTES].tobytes()
    if not head.startswith(_MAGIC):
        raise InputError(
            f"{path}: not a Megatron index (it starts with {head[:9]!r}, not {_MAGIC!r}); "
            "make it with Megatron's tools/preprocess_data.py"
        )
    if len(head) < _HEADER_BYTES:
        raise InputError(f"{path}: truncated in its header; copy or make it again")
    version = int.from_bytes(head[9:17], "little")
    if version != _VERSION:
        raise InputError(f"{path}: expected index version {_VERSION}, got {version}")
    if head[17] not in _ID_TYPES:
        raise InputError(
            f"{path}: expected token ids of an integer type (codes "
            f"{', '.join(map(str, _ID_TYPES))}), got code {head[17]}"
        )
    num_sequences, num_ends = (int.from_bytes(head[i : i + 8], "little") for i in (18, 26))
    return np.dtype(_ID_TYPES[head[17]]), num_sequences, num_ends


def _check_index(
    path: Path,
    *,
    lengths: np.ndarray[tuple[int], np.dtype[np.int32]],
    offsets: Int64Array,
    ends: Int64Array,
    itemsize: int,
) -> None:
    sound = (
        (lengths >= 0).all()
        and (offsets >= 0).all()
        and not (offsets % itemsize).any()
        and (len(ends) == 0 or (ends[0] == 0 and ends[-1] == len(lengths)))
        and (np.diff(ends) >= 0).all()
    )
    if not sound:
        raise InputError(
            f"{path}: broken, its lengths, offsets or document ends contradict one another; "
            "make it again"
        )


def _document_ids(pair: _Pair) -> Int64Array:
    """Number of ids of every document."""
    until = np.concatenate([[0], np.cumsum(pair.lengths, dtype=np.int64)])
    return np.diff(until[pair.ends])


def _sequence_ids(pair: _Pair, sequence: int) -> np.ndarray[tuple[int], np.dtype[np.integer]]:
    start = int(pair.offsets[sequence]) // pair.ids.itemsize
    return pair.ids[start : start + int(pair.lengths[sequence])]
