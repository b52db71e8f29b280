import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.core.job import DataSource, DataSpec
from trimtab.launch.runtime.batches import BatchSampler, Corpus, _draws, open_corpus

DATA = Path(__file__).parents[1] / "data" / "documents"


def folder_of(folder: Path, *texts: str) -> DataSource:
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index:03}.txt").write_text(text)
    return DataSource(path=str(folder))


def corpus_of(*sources: DataSource, seed: int = 1, **fields: Any) -> Corpus:
    return open_corpus(DataSpec(sources=sources, **fields), seed=seed)


def texts_of(corpus: Corpus) -> list[bytes]:
    """The training sequences as text, BOS as `<` and EOS as `>`."""
    marks = {256: ord("<"), 257: ord(">")}
    return [
        bytes(marks.get(int(i), int(i)) for i in corpus.train.ids(index))
        for index in range(len(corpus.train))
    ]


def test_a_document_is_a_sequence_between_marks(tmp_path: Path) -> None:
    corpus = corpus_of(folder_of(tmp_path / "a", "one", "three"), held_out_fraction=0.0)
    assert texts_of(corpus) == [b"<one>", b"<three>"]
    assert corpus.train.lengths.tolist() == [4, 6]
    assert corpus.vocab == 259
    assert len(corpus.held_out) == 0


def test_a_long_document_is_split_so_that_each_label_comes_once(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", "abcdefgh", "xy")
    corpus = corpus_of(source, held_out_fraction=0.0, max_seq_tokens=4)
    assert texts_of(corpus) == [b"<abcd", b"defgh", b"h>", b"<xy>"]
    assert corpus.train.lengths.tolist() == [4, 4, 1, 3]


@settings(deadline=None, max_examples=50)
@given(num_bytes=st.integers(1, 60), limit=st.integers(1, 70))
def test_pieces_joined_at_their_seams_are_the_document(
    num_bytes: int, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(chr(97 + i % 26) for i in range(num_bytes))
    source = folder_of(tmp_path_factory.mktemp("data") / "a", text)
    corpus = corpus_of(source, max_seq_tokens=limit)
    first, *rest = texts_of(corpus)
    assert first + b"".join(piece[1:] for piece in rest) == b"<" + text.encode() + b">"
    assert all(1 <= length <= limit for length in corpus.train.lengths)
    assert int(corpus.train.lengths.sum()) == num_bytes + 1


def test_long_documents_may_be_cut_or_left_out(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", "abcdefgh", "xy")
    fields: dict[str, Any] = {"held_out_fraction": 0.0, "max_seq_tokens": 4}
    assert texts_of(corpus_of(source, long_documents="truncate", **fields)) == [
        b"<abcd",
        b"<xy>",
    ]
    assert texts_of(corpus_of(source, long_documents="drop", **fields)) == [b"<xy>"]
    with pytest.raises(InputError, match="no document of 1 to 2 tokens"):
        corpus_of(source, long_documents="drop", max_seq_tokens=2)


def test_megatron_ids_are_used_as_stored_and_held_against_the_models_vocabulary() -> None:
    spec = DataSpec(sources=(DataSource(path=str(DATA / "tiny")),), held_out_fraction=0.0)
    corpus = open_corpus(spec, seed=1, model_vocab=50_257)
    assert corpus.train.lengths.tolist() == [4, 6, 2]
    assert corpus.train.ids(1).tolist() == [21, 22, 23, 24, 25, 26, 27]
    with pytest.raises(InputError, match="vocab: the data need at least 50257, got 259"):
        open_corpus(spec, seed=1, model_vocab=259)


def test_held_out_documents_are_about_the_share_and_never_trained_on(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "a", *(f"{i:03} " + "x" * 23 for i in range(400)))
    corpus = corpus_of(source, held_out_fraction=0.1, max_seq_tokens=10)
    train = {tuple(corpus.train.ids(i)[:8]) for i in range(len(corpus.train))}
    held = {tuple(corpus.held_out.ids(i)[:8]) for i in range(len(corpus.held_out))}
    starts = {ids for ids in held if ids[0] == 256}
    assert 20 <= len(starts) <= 60
    assert not starts & train
    assert len(corpus.train) + len(corpus.held_out) == 3 * 400


def held_out_texts(folder: Path, lines: list[str]) -> set[bytes]:
    folder.mkdir()
    path = folder / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    held = corpus_of(DataSource(path=str(path)), held_out_fraction=0.3).held_out
    return {held.ids(i).tobytes() for i in range(len(held))}


def test_what_is_held_out_depends_on_neither_order_nor_place(tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(40)]
    forward = held_out_texts(tmp_path / "a", lines)
    assert forward == held_out_texts(tmp_path / "b", lines[::-1])
    assert forward & held_out_texts(tmp_path / "c", lines[:20]) == held_out_texts(
        tmp_path / "d", lines[:20]
    )


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_both_sides_have_a_document_if_there_are_two(fraction: float, tmp_path: Path) -> None:
    corpus = corpus_of(folder_of(tmp_path / "a", "one", "two"), held_out_fraction=fraction)
    assert (len(corpus.train), len(corpus.held_out)) == (1, 1)


def test_no_source_is_held_out_whole(tmp_path: Path) -> None:
    single, several = folder_of(tmp_path / "a", "only"), folder_of(tmp_path / "b", *"xyz")
    corpus = corpus_of(single, several, held_out_fraction=1 - 1e-9)
    assert b"<only>" in texts_of(corpus)
    assert len(corpus.train) == 2
    assert len(corpus.held_out) == 2


def test_evaluation_takes_the_same_held_out_sequences_each_time(tmp_path: Path) -> None:
    corpus = corpus_of(folder_of(tmp_path / "a", *"abcdefgh"), held_out_fraction=0.5)
    sampler = BatchSampler(corpus, seed=3, global_batch_seqs=2)
    assert sampler.evaluation_batch(2).tolist() == [0, 1]
    assert len(sampler.evaluation_batch(1000)) == len(corpus.held_out)


def test_evaluation_without_held_out_documents_says_what_to_do(tmp_path: Path) -> None:
    corpus = corpus_of(folder_of(tmp_path / "a", "only"), held_out_fraction=0.5)
    sampler = BatchSampler(corpus, seed=3, global_batch_seqs=2)
    with pytest.raises(InputError, match="fraction: evaluation needs held-out"):
        sampler.evaluation_batch(4)


@pytest.fixture(scope="module")
def blended(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two sources, of 7 and 30 sequences, 1 : 3."""
    folder = tmp_path_factory.mktemp("blended")
    small = folder_of(folder / "small", *(f"s{i}" for i in range(7)))
    large = folder_of(folder / "large", *(f"large {i}" for i in range(30)))
    weighted = DataSource(path=large.path, weight=3.0)
    return corpus_of(small, weighted, held_out_fraction=0.0)


def test_a_batch_depends_on_seed_and_step_alone(blended: Corpus) -> None:
    forward = BatchSampler(blended, seed=5, global_batch_seqs=6)
    backward = BatchSampler(blended, seed=5, global_batch_seqs=6)
    other = BatchSampler(blended, seed=6, global_batch_seqs=6)
    batches = [forward.batch(step).tolist() for step in range(50)]
    assert batches == [backward.batch(step).tolist() for step in reversed(range(50))][::-1]
    assert batches != [other.batch(step).tolist() for step in range(50)]
    assert forward.batch_lengths(3) == tuple(blended.train.lengths[batches[3]])


def test_batches_stay_the_same_from_version_to_version(blended: Corpus) -> None:
    sampler = BatchSampler(blended, seed=5, global_batch_seqs=6)
    assert [sampler.batch(step).tolist() for step in (0, 1, 10**6)] == [
        [28, 4, 20, 14, 23, 3],
        [13, 33, 24, 5, 25, 21],
        [20, 3, 15, 34, 22, 5],
    ]


def test_no_sequence_repeats_within_an_epoch_and_epochs_differ(blended: Corpus) -> None:
    sampler = BatchSampler(blended, seed=5, global_batch_seqs=4)
    drawn = np.concatenate([sampler.batch(step) for step in range(100)])
    small = [int(index) for index in drawn if index < 7]
    epochs = [small[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


weights_of = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6).map(np.array)


@settings(deadline=None, max_examples=50)
@given(weights=weights_of, first=st.integers(0, 10**7), count=st.integers(1, 40))
def test_draws_of_a_window_are_those_of_its_parts(weights: Any, first: int, count: int) -> None:
    source, rank = _draws(weights, first, count)
    parts = [_draws(weights, first + i, 1) for i in range(count)]
    assert source.tolist() == [int(part[0][0]) for part in parts]
    assert rank.tolist() == [int(part[1][0]) for part in parts]


@settings(deadline=None, max_examples=50)
@given(weights=weights_of, count=st.integers(1, 200))
def test_draws_follow_the_weights_at_all_times(weights: Any, count: int) -> None:
    source, rank = _draws(weights, 0, count)
    shares = weights / weights.sum()
    seen: Counter[int] = Counter()
    for n, (s, r) in enumerate(zip(source.tolist(), rank.tolist(), strict=True), 1):
        assert r == seen[s]
        seen[s] += 1
        for i, share in enumerate(shares):
            assert abs(seen[i] - share * n) <= 0.5 + share * len(shares) / 2 + 1e-9


@settings(deadline=None, max_examples=50)
@given(weights=weights_of, first=st.integers(0, 2**40))
def test_far_draws_are_near_their_share_too(weights: Any, first: int) -> None:
    source, rank = _draws(weights, first, 1)
    share = weights[source[0]] / weights.sum()
    assert abs(int(rank[0]) - share * first) <= 1.5 + share * len(weights) / 2 + 1e-3


def test_equal_weights_take_turns() -> None:
    source, rank = _draws(np.array([1.0, 1.0]), 0, 6)
    assert source.tolist() == [0, 1, 0, 1, 0, 1]
    assert rank.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_fingerprint_tells_corpora_apart(tmp_path: Path) -> None:
    one, same = (folder_of(tmp_path / name / "x", "a", "bc") for name in _made(tmp_path, 2))
    fingerprints = [corpus_of(source).fingerprint for source in (one, same)]
    assert fingerprints[0] == fingerprints[1]
    (Path(same.path) / "000.txt").write_text("aa")
    assert corpus_of(same).fingerprint != fingerprints[0]
    assert corpus_of(one, seed=2).fingerprint != fingerprints[0]


def _made(folder: Path, count: int) -> list[str]:
    names = [f"place{i}" for i in range(count)]
    for name in names:
        (folder / name).mkdir()
    return names


def test_the_standard_library_has_a_long_tail(tmp_path: Path) -> None:
    corpus = corpus_of(DataSource(path="stdlib:"), max_seq_tokens=8192)
    lengths = corpus.train.lengths
    assert len(lengths) > 500
    assert int(lengths.max()) == 8192
    assert int(np.median(lengths)) > 2 * int(np.percentile(lengths, 5))
    assert len(corpus.held_out) > 0
    assert len(corpus.train.ids(0)) == lengths[0] + 1
