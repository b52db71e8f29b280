"""Documents become sequences, sequences become batches.

A sequence is a run of ids of one document: inputs `ids[:-1]`, labels `ids[1:]`. A document
that is too long is split so that each piece begins with the id that the piece before ended
with: then every label of the document is a label of exactly one piece.

Batches draw the sequences of several sources in proportion to their weights, by the
Sainte-Lague (Webster) rule: the k-th draw (k from 0) of a source of weight w is due at time
(k + 1/2) / w, and draws come in the order of their times. It keeps every source near its share
at all times, as Megatron's largest-error rule does (`build_blending_indices`, megatron-core),
but the draws of a step can be found without replaying those before.
Source: Balinski & Young (1982), Fair Representation, Webster's method.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.core.job import BYTE_TOKENIZER, DataSource, DataSpec, LongDocuments
from trimtab.launch.runtime.documents import (
    FileDocuments,
    Int64Array,
    JsonlDocuments,
    find_source,
    source_name,
)
from trimtab.launch.runtime.indexed_documents import IndexedDocuments
from trimtab.launch.runtime.tokenization import (
    ByteDocuments,
    IdDocuments,
    JsonTokenizer,
    TokenizedDocuments,
    load_json_tokenizer,
)

Float64Array = np.ndarray[tuple[int], np.dtype[np.float64]]
BoolArray = np.ndarray[tuple[int], np.dtype[np.bool_]]


class SequenceSet:
    """Sequences of token ids, read when they are asked for."""

    def __init__(self, sources: Sequence[IdDocuments], rows: Int64Array) -> None:
        """Keep `rows` of (source, document, start, number of inputs), shape `[n, 4]`."""
        self.lengths: Int64Array = np.ascontiguousarray(rows[:, 3])
        """Number of input tokens of every sequence: its ids less one."""
        self.source_of: Int64Array = np.ascontiguousarray(rows[:, 0])
        """Which source every sequence is of."""
        self._sources = sources
        self._rows = rows

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, index: int) -> Int64Array:
        """The ids of one sequence, shape `[lengths[index] + 1]`.

        Raises:
            InputError: The document cannot be read any more, or has an id out of range.
        """
        source, document, start, length = (int(value) for value in self._rows[index])
        return self._sources[source].ids(document, start, start + length + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What a job trains and evaluates on."""

    vocab: int
    """The vocabulary a model needs: one more than the largest id."""
    train: SequenceSet
    """Ordered by source, then by document."""
    held_out: SequenceSet
    """In an order that mixes the sources."""
    weights: tuple[float, ...]
    """Weight of every source."""
    fingerprint: str
    """Equal where documents, lengths and split are equal: for ranks to agree, and a resume."""


def open_corpus(
    spec: DataSpec,
    *,
    seed: int,
    model_vocab: int | None = None,
    cache_dir: Path | None = None,
) -> Corpus:
    """Find the documents of all sources and cut them into sequences.

    Args:
        spec: Sources, tokenizer and lengths.
        seed: Decides, together with each document's name, which documents are held out.
        model_vocab: The model's vocabulary, for ids to be checked against; None: unchecked.
        cache_dir: Where a `tokenizer.json`'s ids are kept for the other ranks and the next
            start; None: in memory only.

    Raises:
        InputError: A source is missing, empty or broken, or an id exceeds the vocabulary.
    """
    tokenizers: dict[str, JsonTokenizer] = {}
    sources = [
        _open_source(source, spec, tokenizers, model_vocab=model_vocab, cache_dir=cache_dir)
        for source in spec.sources
    ]
    vocab = max(source.vocab for source in sources)
    if model_vocab is not None and vocab > model_vocab:
        raise InputError(f"model.vocab: the data need at least {vocab}, got {model_vocab}")
    rows = [
        _cut(documents, source, limit=spec.max_seq_tokens, long_documents=spec.long_documents)
        for source, documents in enumerate(sources)
    ]
    shares = [
        _shares(documents, part, name=source_name(source), seed=seed)
        for documents, part, source in zip(sources, rows, spec.sources, strict=True)
    ]
    held = _held_out(rows, shares, fraction=spec.held_out_fraction)
    train = np.concatenate([part[~mask] for part, mask in zip(rows, held, strict=True)])
    out = np.concatenate([part[mask] for part, mask in zip(rows, held, strict=True)])
    out_shares = np.concatenate([part[mask] for part, mask in zip(shares, held, strict=True)])
    out = out[np.argsort(out_shares, kind="stable")]
    return Corpus(
        vocab=vocab,
        train=SequenceSet(sources, train),
        held_out=SequenceSet(sources, out),
        weights=tuple(source.weight for source in spec.sources),
        fingerprint=_fingerprint(train, out, *shares),
    )


class BatchSampler:
    """The sequences of every step: a pure function of the seed and the step.

    Within one epoch of a source no sequence repeats, and every epoch has another order.
    """

    def __init__(self, corpus: Corpus, *, seed: int, global_batch_seqs: int) -> None:
        self._seed = seed
        self._batch_seqs = global_batch_seqs
        self._train_lengths = corpus.train.lengths
        self._num_held_out = len(corpus.held_out)
        self._weights = np.array(corpus.weights)
        bounds = np.searchsorted(corpus.train.source_of, np.arange(len(corpus.weights) + 1))
        self._firsts, self._counts = bounds[:-1], np.diff(bounds)
        self._order = functools.lru_cache(maxsize=4 * len(corpus.weights))(self._shuffled)

    def batch(self, step: int) -> Int64Array:
        """Indices into `corpus.train` of one step's sequences, shape `[global_batch_seqs]`.

        `step` is any whole number from 0.
        """
        source, draw = _draws(self._weights, step * self._batch_seqs, self._batch_seqs)
        epoch, position = np.divmod(draw, self._counts[source])
        indices = np.empty(self._batch_seqs, dtype=np.int64)
        for pair in np.unique(np.stack([source, epoch]), axis=1).T:
            mine = (source == pair[0]) & (epoch == pair[1])
            order = self._order(int(pair[0]), int(pair[1]))
            indices[mine] = self._firsts[pair[0]] + order[position[mine]]
        return indices

    def batch_lengths(self, step: int) -> tuple[int, ...]:
        """Number of input tokens of every sequence of `batch(step)`, in its order."""
        return tuple(int(length) for length in self._train_lengths[self.batch(step)])

    def evaluation_batch(self, num_seqs: int) -> Int64Array:
        """Indices into `corpus.held_out`: always the same, at most `num_seqs` of them.

        Raises:
            InputError: No document is held out.
        """
        if not self._num_held_out:
            raise InputError(
                "data.held_out_fraction: evaluation needs held-out documents, but there are "
                "none; raise the fraction, give more documents, or set "
                "training.evaluate_every_steps: 0"
            )
        return np.arange(min(num_seqs, self._num_held_out), dtype=np.int64)

    def _shuffled(self, source: int, epoch: int) -> Int64Array:
        """An order of a source's sequences.

        Raw bits of a bit generator are the one stream that NumPy keeps the same in all
        versions (NEP 19), so a resume on another NumPy draws the same sequences.
        """
        bits = np.random.PCG64([self._seed, source, epoch]).random_raw(
            int(self._counts[source])
        )
        return np.argsort(bits, kind="stable")


def _open_source(
    source: DataSource,
    spec: DataSpec,
    tokenizers: dict[str, JsonTokenizer],
    *,
    model_vocab: int | None,
    cache_dir: Path | None,
) -> IdDocuments:
    found = find_source(source)
    if found.format == "megatron":
        return IndexedDocuments(found, source=source.path, model_vocab=model_vocab)
    documents = (
        JsonlDocuments(found, source=source.path, text_key=source.text_key)
        if found.format == "jsonl"
        else FileDocuments(found, source=source.path)
    )
    if spec.tokenizer == BYTE_TOKENIZER:
        return ByteDocuments(documents)
    if not tokenizers:
        tokenizers[spec.tokenizer] = load_json_tokenizer(spec.tokenizer)
    return TokenizedDocuments(documents, tokenizers[spec.tokenizer], cache_dir=cache_dir)


def _cut(
    documents: IdDocuments, source: int, *, limit: int, long_documents: LongDocuments
) -> Int64Array:
    """Sequences of one source: rows of (source, document, start, number of inputs)."""
    num_inputs = documents.num_ids - 1
    document = np.flatnonzero(
        (num_inputs > 0) & ((num_inputs <= limit) | (long_documents != "drop"))
    )
    if not len(document):
        raise InputError(
            f"data source {documents.source!r}: no document of 1 to {limit} tokens; add "
            "documents, or change data.max_seq_tokens or data.long_documents"
        )
    length = num_inputs[document]
    pieces = -(-length // limit) if long_documents == "split" else np.ones_like(length)
    first = np.cumsum(pieces) - pieces
    piece = np.arange(int(pieces.sum())) - np.repeat(first, pieces)
    start = piece * limit
    size = np.minimum(np.repeat(length, pieces) - start, limit)
    return np.stack(
        [np.full_like(start, source), np.repeat(document, pieces), start, size], axis=1
    )


def _shares(documents: IdDocuments, rows: Int64Array, *, name: str, seed: int) -> Float64Array:
    """A number in [0, 1) for every sequence, the same for all of a document.

    It depends on the seed, the source's name and the document's key only.
    """
    salt = hashlib.blake2b(f"{seed}\0{name}\0".encode())
    documents_of, index = np.unique(rows[:, 1], return_inverse=True)
    shares = np.empty(len(documents_of))
    for i, document in enumerate(documents_of):
        digest = salt.copy()
        digest.update(documents.key(int(document)))
        shares[i] = int.from_bytes(digest.digest()[:6], "little") / 2**48
    return shares[index]


def _held_out(
    rows: Sequence[Int64Array], shares: Sequence[Float64Array], *, fraction: float
) -> list[BoolArray]:
    """Which sequences are held out; a source always keeps a document to train on.

    If the fraction is above zero, at least one document is held out where any source can spare
    one.
    """
    held = [share < fraction for share in shares]
    for mask, share, part in zip(held, shares, rows, strict=True):
        if mask.all():
            mask &= part[:, 1] != part[int(np.argmax(share)), 1]
    if fraction > 0 and not any(mask.any() for mask in held):
        spare = [i for i, part in enumerate(rows) if part[0, 1] != part[-1, 1]]
        if spare:
            source = min(spare, key=lambda i: float(shares[i].min()))
            lowest = int(np.argmin(shares[source]))
            held[source] = rows[source][:, 1] == rows[source][lowest, 1]
    return held


def _fingerprint(*arrays: np.ndarray[Any, Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for values in arrays:
        digest.update(f"{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _draws(weights: Float64Array, first: int, count: int) -> tuple[Int64Array, Int64Array]:
    """Draws `first` to `first + count` of the blend: each one's source, and its rank there."""
    shares = weights / weights.sum()
    start = _time_of_draw(shares, first)
    before = _num_due(shares, start)
    skip = first - int(before.sum())
    candidates = np.floor(shares * (skip + count + len(shares))).astype(np.int64) + 2
    source = np.repeat(np.arange(len(shares)), candidates)
    offset = np.arange(len(source)) - np.repeat(np.cumsum(candidates) - candidates, candidates)
    rank = before[source] + offset
    order = np.lexsort((source, _due(shares[source], rank)))[skip : skip + count]
    return source[order], rank[order]


def _due(shares: Float64Array, rank: Int64Array) -> Float64Array:
    return (rank + 0.5) / shares


def _num_due(shares: Float64Array, time: float) -> Int64Array:
    """How many draws of each source are due before `time`, exactly as `_due` rounds."""
    count = np.floor(shares * time + 0.5).astype(np.int64)
    count -= _due(shares, count - 1) >= time
    count += _due(shares, count) < time
    return count


def _time_of_draw(shares: Float64Array, draw: int) -> float:
    """The latest time before which at most `draw` draws are due."""
    low, high = 0.0, float(draw + len(shares) + 1)
    while (middle := (low + high) / 2) not in (low, high):
        if int(_num_due(shares, middle).sum()) <= draw:
            low = middle
        else:
            high = middle
    return low
