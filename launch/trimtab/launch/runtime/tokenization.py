"""Turns documents into token ids: bytes as they are, or by a Hugging Face `tokenizer.json`.

A document becomes `[BOS] + tokens + [EOS]`. Lengths are known without tokenizing twice: the
byte tokenizer's are file sizes; a `tokenizer.json` is run once over everything, and its ids are
kept in memory or in a cache folder that all ranks of a machine share.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trimtab.core.errors import InputError, MissingExtraError
from trimtab.core.job import BYTE_TOKENIZER
from trimtab.launch.runtime.documents import Int64Array, TextDocuments, read_text

BYTE_BOS, BYTE_EOS, BYTE_PAD, BYTE_VOCAB = 256, 257, 258, 259

_CACHE_VERSION = b"1"
_CHUNK_BYTES = 2**22
_BOS_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>")
_EOS_NAMES = ("<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|endoftext|>")

TokenArray = np.ndarray[tuple[int], np.dtype[np.uint32]]


class IdDocuments(Protocol):
    """The documents of one source as token ids, marks of beginning and end included."""

    source: str
    vocab: int
    """One more than the largest id."""
    num_ids: Int64Array

    def key(self, document: int) -> bytes:
        """What tells this document from the others, on any machine and in any order."""

    def name(self, document: int) -> str:
        """How a message calls this document."""

    def ids(self, document: int, start: int, stop: int) -> Int64Array:
        """Ids `start` to `stop` of a document, shape `[stop - start]`."""


class ByteDocuments:
    """Every byte is its own token: 256 of them, then BOS, EOS and PAD."""

    vocab = BYTE_VOCAB

    def __init__(self, documents: TextDocuments) -> None:
        self.source = documents.source
        self.num_ids: Int64Array = documents.num_bytes + 2
        self._documents = documents
        self.key = documents.key
        self.name = documents.name

    def ids(self, document: int, start: int, stop: int) -> Int64Array:
        num_bytes = int(self.num_ids[document]) - 2
        first, last = max(start - 1, 0), min(stop - 1, num_bytes)
        data = self._documents.read(document, first, max(first, last))
        tokens = np.frombuffer(data, dtype=np.uint8)
        return _with_marks(
            tokens, start=start, stop=stop, length=num_bytes, bos=BYTE_BOS, eos=BYTE_EOS
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonTokenizer:
    """A Hugging Face `tokenizer.json` and its marks of beginning and end."""

    path: Path
    vocab: int
    bos: int
    eos: int
    encoder: Any
    """A `tokenizers.Tokenizer`."""
    digest: bytes
    """Differs where the tokens it makes may differ."""


class TokenizedDocuments:
    """Documents run through a `tokenizer.json`, once."""

    def __init__(
        self, documents: TextDocuments, tokenizer: JsonTokenizer, *, cache_dir: Path | None
    ) -> None:
        self.source = documents.source
        self.vocab = tokenizer.vocab
        self.key = documents.key
        self.name = documents.name
        self._tokenizer = tokenizer
        if cache_dir is None:
            self._tokens, self._ends = _tokenize(documents, tokenizer)
        else:
            self._tokens, self._ends = _tokenize_cached(documents, tokenizer, cache_dir)
        self.num_ids: Int64Array = np.diff(self._ends) + 2

    def ids(self, document: int, start: int, stop: int) -> Int64Array:
        begin, end = int(self._ends[document]), int(self._ends[document + 1])
        tokens = self._tokens[begin + max(start - 1, 0) : min(begin + max(stop - 1, 0), end)]
        return _with_marks(
            tokens,
            start=start,
            stop=stop,
            length=end - begin,
            bos=self._tokenizer.bos,
            eos=self._tokenizer.eos,
        )


def load_json_tokenizer(path: str) -> JsonTokenizer:
    """Load a `tokenizer.json`, or the one in a folder.

    BOS and EOS come from `tokenizer_config.json` beside it, else from the special tokens by
    their usual names. A tokenizer without BOS (GPT-2, Qwen2) begins documents with its EOS.

    Raises:
        InputError: The file is missing or broken, or has no token that ends a document.
        MissingExtraError: The `tokenizers` package is not installed.
    """
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    encoder = _load_encoder(file)
    ids: dict[str, int] = encoder.get_vocab(with_added_tokens=True)
    added = encoder.get_added_tokens_decoder().values()
    special = {str(token.content) for token in added if token.special}
    named = _named_marks(file.with_name("tokenizer_config.json"))
    eos = _mark_id(named.get("eos_token"), _EOS_NAMES, special=special, ids=ids)
    if eos is None:
        raise InputError(
            f"data.tokenizer: {file} has no special token that ends a document (looked for "
            f"{', '.join(_EOS_NAMES)}); name it as eos_token in tokenizer_config.json beside it"
        )
    bos = _mark_id(named.get("bos_token"), _BOS_NAMES, special=special, ids=ids)
    bos = eos if bos is None else bos
    digest = hashlib.blake2b(file.read_bytes() + f"{bos} {eos}".encode()).digest()
    return JsonTokenizer(
        path=file,
        vocab=max(ids.values()) + 1,
        bos=bos,
        eos=eos,
        encoder=encoder,
        digest=digest,
    )


def save_tokenizer(tokenizer: str, folder: Path) -> tuple[int, int]:
    """Write what `data.tokenizer` names so that transformers loads it; return BOS and EOS.

    Raises:
        InputError: As `load_json_tokenizer`.
    """
    if tokenizer == BYTE_TOKENIZER:
        names = {BYTE_BOS: "<bos>", BYTE_EOS: "<eos>", BYTE_PAD: "<pad>"}
        bos, eos = BYTE_BOS, BYTE_EOS
        _byte_encoder(names).save(str(folder / "tokenizer.json"))
    else:
        loaded = load_json_tokenizer(tokenizer)
        bos, eos = loaded.bos, loaded.eos
        names = {mark: loaded.encoder.id_to_token(mark) for mark in (bos, eos)}
        shutil.copyfile(loaded.path, folder / "tokenizer.json")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[bos],
        "eos_token": names[eos],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return bos, eos


def _byte_encoder(names: Mapping[int, str]) -> Any:
    """The byte tokenizer as a `tokenizers.Tokenizer` that begins texts with BOS.

    Byte-level BPE without merges; its letters for bytes are GPT-2's: printable Latin-1 stands
    for itself, the other bytes, in order, for U+0100 and on.
    Source: `bytes_to_unicode` in encoder.py of openai/gpt-2.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + order) for order, byte in enumerate(others)}
    encoder = Tokenizer(models.BPE({letters[byte]: byte for byte in range(256)}, []))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens(
        [AddedToken(names[mark], special=True) for mark in sorted(names)]
    )
    encoder.post_processor = processors.TemplateProcessing(
        single=f"{names[BYTE_BOS]} $A", special_tokens=[(names[BYTE_BOS], BYTE_BOS)]
    )
    return encoder


def _with_marks(
    tokens: np.ndarray[tuple[int], Any],
    *,
    start: int,
    stop: int,
    length: int,
    bos: int,
    eos: int,
) -> Int64Array:
    """Positions `start` to `stop` of `[BOS] + document + [EOS]`; `tokens` lie inside."""
    ids = np.empty(stop - start, dtype=np.int64)
    begin = 1 if start == 0 else 0
    ids[begin : begin + len(tokens)] = tokens
    if start == 0:
        ids[0] = bos
    if stop == length + 2:
        ids[-1] = eos
    return ids


def _load_encoder(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            "data.tokenizer: a tokenizer.json needs the tokenizers package; "
            "pip install 'trimtab[train]', or use the byte tokenizer"
        ) from error
    if not file.is_file():
        raise InputError(
            f"data.tokenizer: {file} is not a file; expected 'byte' or the path of a "
            "tokenizer.json"
        )
    try:
        encoder = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception
        raise InputError(f"data.tokenizer: {file} is no tokenizer.json ({error})") from error
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True  # "</s>" in a text is text, not an end
    return encoder


def _named_marks(config: Path) -> dict[str, str]:
    """`bos_token` and `eos_token` of a `tokenizer_config.json`, where it names them."""
    if not config.is_file():
        return {}
    try:
        document = json.loads(config.read_bytes())
        marks = {name: document.get(name) for name in ("bos_token", "eos_token")}
    except (ValueError, AttributeError) as error:
        raise InputError(f"data.tokenizer: {config} is not JSON ({error})") from error
    texts = {name: m.get("content") if isinstance(m, dict) else m for name, m in marks.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _mark_id(
    named: str | None, usual: tuple[str, ...], *, special: set[str], ids: dict[str, int]
) -> int | None:
    if named is not None and named in ids:
        return ids[named]
    return next((ids[name] for name in usual if name in special), None)


def _tokenize(
    documents: TextDocuments, tokenizer: JsonTokenizer
) -> tuple[TokenArray, Int64Array]:
    """All tokens end to end, and where each document ends (0 first)."""
    parts: list[TokenArray] = []
    for texts in _chunks(documents, tokenizer):
        encodings = tokenizer.encoder.encode_batch_fast(texts, add_special_tokens=False)
        parts.extend(np.array(encoding.ids, dtype=np.uint32) for encoding in encodings)
    ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return np.concatenate(parts), ends


def _chunks(documents: TextDocuments, tokenizer: JsonTokenizer) -> Iterator[list[str]]:
    """Texts, a few megabytes at a time: enough for the encoder's threads."""
    chunk: list[str] = []
    size = 0
    for document, num_bytes in enumerate(documents.num_bytes):
        chunk.append(_text(documents, document, tokenizer))
        size += int(num_bytes)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _text(documents: TextDocuments, document: int, tokenizer: JsonTokenizer) -> str:
    try:
        return read_text(documents, document).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{documents.name(document)}: not UTF-8 (byte {error.start}), which "
            f"{tokenizer.path.name} needs; convert it, narrow data.sources.pattern, or set "
            "data.tokenizer: byte"
        ) from error


def _tokenize_cached(
    documents: TextDocuments, tokenizer: JsonTokenizer, cache_dir: Path
) -> tuple[TokenArray, Int64Array]:
    """As `_tokenize`, from the cache where it is; one process makes it and the others wait.

    On a file system without locks each process makes it, and the first one's is used.
    """
    digest = hashlib.blake2b(_CACHE_VERSION + tokenizer.digest, digest_size=16)
    for document, num_bytes in enumerate(documents.num_bytes):
        digest.update(int(num_bytes).to_bytes(8, "little"))
        digest.update(read_text(documents, document))
    folder = cache_dir / f"tokens-{digest.hexdigest()}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: each node makes it
            fcntl.flock(lock, fcntl.LOCK_EX)
        cached = _load_cached(folder)
        if cached is None:
            _save_cached(folder, *_tokenize(documents, tokenizer))
            cached = _load_cached(folder)
    assert cached is not None
    return cached


def _load_cached(folder: Path) -> tuple[TokenArray, Int64Array] | None:
    try:
        tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        ends = np.load(folder / "ends.npy")
    except (OSError, ValueError):
        return None
    return tokens, ends


def _save_cached(folder: Path, tokens: TokenArray, ends: Int64Array) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tokens-") as parent:
        made = Path(parent, "made")
        made.mkdir()
        np.save(made / "tokens.npy", tokens)
        np.save(made / "ends.npy", ends)
        try:
            made.rename(folder)
        except OSError:
            if _load_cached(folder) is None:  # broken; else another node was faster
                shutil.rmtree(folder, ignore_errors=True)
                made.rename(folder)
