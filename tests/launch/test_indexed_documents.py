import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import DataSource
from trimtab.launch.runtime.documents import find_source
from trimtab.launch.runtime.indexed_documents import IndexedDocuments

DATA = Path(__file__).parents[1] / "data" / "documents"


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for suffix in (".bin", ".idx"):
        shutil.copy(DATA / f"tiny{suffix}", tmp_path)
    return tmp_path / "tiny"


def opened(path: Path, *, model_vocab: int | None = None) -> IndexedDocuments:
    found = find_source(DataSource(path=str(path)))
    assert found.format == "megatron"
    return IndexedDocuments(found, source=str(path), model_vocab=model_vocab)


def open_error(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, offset: int, data: bytes) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:offset] + data + raw[offset + len(data) :])


@pytest.mark.parametrize("name", ["tiny", "tiny.bin", "tiny.idx", "."])
def test_documents_that_megatron_wrote_are_read_by_any_of_their_names(
    name: str, pair: Path
) -> None:
    documents = opened(pair.parent / name)
    assert documents.num_ids.tolist() == [5, 7, 3]
    assert documents.ids(0, 0, 5).tolist() == [11, 12, 13, 14, 15]
    assert documents.ids(1, 0, 7).tolist() == [21, 22, 23, 24, 25, 26, 27]
    assert documents.ids(1, 2, 5).tolist() == [23, 24, 25]
    assert documents.ids(2, 0, 3).dtype == np.int64
    assert documents.vocab == 50257


def test_pairs_of_a_folder_follow_one_another(pair: Path) -> None:
    for suffix in (".bin", ".idx"):
        shutil.copy(f"{pair}{suffix}", pair.parent / f"second{suffix}")
    documents = opened(pair.parent)
    assert documents.num_ids.tolist() == [5, 7, 3, 5, 7, 3]
    assert documents.ids(3, 0, 5).tolist() == [11, 12, 13, 14, 15]
    assert documents.key(3) == b"tiny.bin:0"


def test_an_id_beyond_the_models_vocabulary_is_named(pair: Path) -> None:
    documents = opened(pair, model_vocab=50_000)
    assert documents.ids(2, 0, 2).tolist() == [31, 32]
    with pytest.raises(InputError, match=r"tiny\.bin document 2: token id 50256 is outside"):
        documents.ids(2, 0, 3)


def test_a_truncated_file_is_named(pair: Path) -> None:
    data, index = pair.with_suffix(".bin"), pair.with_suffix(".idx")
    whole = data.read_bytes()
    data.write_bytes(whole[:-2])
    assert open_error(pair) == (
        f"{data}: truncated, its index needs 30 bytes, got 28; copy or make it again"
    )
    data.write_bytes(whole)
    index.write_bytes(index.read_bytes()[:60])
    assert f"{index}: truncated, expected 114 bytes for 4 sequences, got 60" in open_error(pair)
    index.write_bytes(index.read_bytes()[:20])
    assert f"{index}: truncated in its header" in open_error(pair)


def test_a_file_of_another_kind_is_named(pair: Path) -> None:
    index = pair.with_suffix(".idx")
    change(index, 0, b"TNTIDX\x00\x00\x00")
    assert f"{index}: not a Megatron index (it starts with b'TNTIDX" in open_error(pair)
    index.write_bytes(b"")
    assert f"{index}: not a Megatron index" in open_error(pair)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (9, struct.pack("<Q", 2), "expected index version 1, got 2"),
        (17, b"\x07", "expected token ids of an integer type (codes 1, 2, 3, 4, 5, 8), got"),
        (18, struct.pack("<Q", 2**60), "truncated, expected"),
        (34, struct.pack("<i", -5), "broken, its lengths"),
        (50, struct.pack("<q", -8), "broken, its lengths"),
        (82, struct.pack("<q", 9), "broken, its lengths"),
    ],
)
def test_a_broken_index_is_refused(offset: int, data: bytes, message: str, pair: Path) -> None:
    change(pair.with_suffix(".idx"), offset, data)
    assert message in open_error(pair)


def test_an_index_without_documents_is_refused(pair: Path) -> None:
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 0, 1) + struct.pack("<q", 0)
    pair.with_suffix(".idx").write_bytes(header)
    pair.with_suffix(".bin").write_bytes(b"")
    assert "the index has no documents" in open_error(pair)


def test_half_a_pair_is_refused(pair: Path) -> None:
    pair.with_suffix(".bin").unlink()
    assert f"{pair.with_suffix('.bin')}: missing beside tiny.idx" in open_error(pair)
