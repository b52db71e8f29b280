import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import DataSource
from trimtab.launch.runtime.documents import FileDocuments, find_source
from trimtab.launch.runtime.tokenization import (
    ByteDocuments,
    TokenizedDocuments,
    _save_cached,
    load_json_tokenizer,
    save_tokenizer,
)

TEXTS = {"a.txt": "the cat sat", "b.txt": "the </s> mat", "c.txt": "caf\u00e9"}


def text_files(folder: Path) -> FileDocuments:
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    found = find_source(DataSource(path=str(folder), pattern="*.txt"))
    return FileDocuments(found, source=str(folder))


def tokenizer_file(folder: Path, *, special: tuple[str, ...] = ("<s>", "</s>")) -> Path:
    """A byte-level BPE that knows the words of a sentence, and cuts and pads by default."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 10, trainer)
    tokenizer.enable_truncation(max_length=2)
    tokenizer.enable_padding(length=64)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("length", [1, 2, 5])
def test_bytes_between_marks_are_the_same_however_they_are_cut(
    length: int, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(bytes(range(250, 250 + length - 1)) + b"\x00")
    found = find_source(DataSource(path=str(tmp_path / "a")))
    documents = ByteDocuments(FileDocuments(found, source="a"))
    whole = [256, *(tmp_path / "a").read_bytes(), 257]

    assert documents.num_ids.tolist() == [length + 2]
    for start in range(length + 2):
        for stop in range(start + 1, length + 3):
            assert documents.ids(0, start, stop).tolist() == whole[start:stop]


def test_a_tokenizer_json_gives_its_own_ids_between_its_marks(tmp_path: Path) -> None:
    documents = text_files(tmp_path)
    tokenizer = load_json_tokenizer(str(tokenizer_file(tmp_path)))
    tokenized = TokenizedDocuments(documents, tokenizer, cache_dir=None)

    ids = tokenized.ids(0, 0, int(tokenized.num_ids[0]))

    assert (tokenizer.bos, tokenizer.eos) == (0, 1)
    assert ids[0] == 0
    assert ids[-1] == 1
    assert tokenizer.encoder.decode(ids[1:-1].tolist()) == TEXTS["a.txt"]
    assert len(ids) < len(TEXTS["a.txt"])
    assert tokenized.vocab == tokenizer.encoder.get_vocab_size()
    assert tokenized.ids(0, 1, 3).tolist() == ids[1:3].tolist()


def test_a_mark_written_in_a_text_stays_text(tmp_path: Path) -> None:
    tokenizer = load_json_tokenizer(str(tokenizer_file(tmp_path)))
    tokenized = TokenizedDocuments(text_files(tmp_path), tokenizer, cache_dir=None)
    ids = tokenized.ids(1, 1, int(tokenized.num_ids[1]) - 1)
    assert tokenizer.eos not in ids
    assert tokenizer.encoder.decode(ids.tolist()) == TEXTS["b.txt"]


def test_a_tokenizer_without_bos_begins_documents_with_its_eos(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path, special=("<unk>", "<|endoftext|>"))
    tokenizer = load_json_tokenizer(str(path.parent))
    assert (tokenizer.bos, tokenizer.eos) == (1, 1)


def test_a_tokenizer_config_names_the_marks(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path, special=("<s>", "</s>", "<begin>", "<end>"))
    config = {"bos_token": "<begin>", "eos_token": {"content": "<end>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_json_tokenizer(str(path))
    assert (tokenizer.bos, tokenizer.eos) == (2, 3)


def test_a_tokenizer_without_an_end_says_what_was_looked_for(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path, special=("<pad>",))
    with pytest.raises(InputError, match=r"no special token that ends a document.*</s>"):
        load_json_tokenizer(str(path))


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 'byte' or the path of"):
        load_json_tokenizer(str(tmp_path / "gpt2"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json is no tokenizer\.json"):
        load_json_tokenizer(str(tmp_path))


def test_text_that_is_not_utf_8_is_named_with_the_byte(tmp_path: Path) -> None:
    tokenizer = load_json_tokenizer(str(tokenizer_file(tmp_path)))
    (tmp_path / "d.txt").write_bytes(b"fine \xff")
    documents = text_files(tmp_path)
    with pytest.raises(InputError, match=r"d\.txt: not UTF-8 \(byte 5\).*data.tokenizer: byte"):
        TokenizedDocuments(documents, tokenizer, cache_dir=None)


def all_ids(documents: TokenizedDocuments) -> list[list[int]]:
    return [documents.ids(i, 0, int(n)).tolist() for i, n in enumerate(documents.num_ids)]


def test_cached_ids_are_used_again_until_text_or_tokenizer_change(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    tokenizer = load_json_tokenizer(str(tokenizer_file(tmp_path)))
    cache = tmp_path / "cache"

    def tokenize() -> list[list[int]]:
        documents = text_files(tmp_path / "texts")
        return all_ids(TokenizedDocuments(documents, tokenizer, cache_dir=cache))

    first = tokenize()
    fresh = TokenizedDocuments(text_files(tmp_path / "texts"), tokenizer, cache_dir=None)
    assert first == all_ids(fresh)
    (folder,) = cache.glob("tokens-*[!k]")
    stored = np.load(folder / "tokens.npy")
    np.save(folder / "tokens.npy", stored + 1)
    assert tokenize() != first

    (folder / "tokens.npy").write_bytes(b"cut short")
    assert tokenize() == first
    (tmp_path / "texts" / "d.txt").write_text("another")
    assert len(tokenize()) == 4
    assert not list(cache.glob(".*"))


def test_four_ranks_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    documents = text_files(tmp_path / "texts")
    tokenizer = load_json_tokenizer(str(tokenizer_file(tmp_path)))
    cache = tmp_path / "cache"

    def tokenize(_rank: int) -> list[list[int]]:
        return all_ids(TokenizedDocuments(documents, tokenizer, cache_dir=cache))

    with ThreadPoolExecutor(4) as ranks:  # flock tells open files apart, not processes
        answers = list(ranks.map(tokenize, range(4)))

    assert answers == [all_ids(TokenizedDocuments(documents, tokenizer, cache_dir=None))] * 4
    assert len(list(cache.glob("tokens-*[!k]"))) == 1


def test_what_another_node_has_made_meanwhile_stays(tmp_path: Path) -> None:
    folder = tmp_path / "tokens-1"
    tokens, ends = np.arange(5, dtype=np.uint32), np.array([5])
    _save_cached(folder, tokens, ends)
    made = (folder / "tokens.npy").stat().st_ino
    _save_cached(folder, tokens, ends)
    assert (folder / "tokens.npy").stat().st_ino == made
    assert [path.name for path in tmp_path.iterdir()] == ["tokens-1"]


def test_a_saved_tokenizer_gives_the_same_ids_and_marks(tmp_path: Path) -> None:
    path = tokenizer_file(tmp_path, special=("<unk>", "<|endoftext|>"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "bytes").mkdir()

    assert save_tokenizer(str(path), tmp_path / "copy") == (1, 1)
    assert save_tokenizer("byte", tmp_path / "bytes") == (256, 257)

    again = load_json_tokenizer(str(tmp_path / "copy"))
    assert (again.bos, again.eos, again.vocab) == (1, 1, load_json_tokenizer(str(path)).vocab)
    of_bytes = load_json_tokenizer(str(tmp_path / "bytes"))
    assert (of_bytes.bos, of_bytes.eos, of_bytes.vocab) == (256, 257, 259)
    text = "".join(map(chr, range(0x3000)))
    assert of_bytes.encoder.encode(text, add_special_tokens=False).ids == list(text.encode())
