"""What can be known of a job's inputs before any rank starts, so that bad ones fail at once.

The ranks check the same again; this only says it sooner. Documents are counted, not read: where
a `tokenizer.json` makes the tokens, lengths are not known yet, and the longest allowed counts.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Final

from trimtab.core.errors import InfeasibleError, InputError, MissingExtraError, placed
from trimtab.core.job import BYTE_TOKENIZER, DataSpec, JobSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.launch.remote import RemoteFolder
from trimtab.orchestrator.config import read_mapping
from trimtab.orchestrator.step_planning import StepPlanner, step_planner

if TYPE_CHECKING:
    from trimtab.launch.runtime.batches import BatchSampler, Corpus

_SAMPLED_STEPS: Final = 32
_START_TYPES: Final = ("llama", "mistral", "qwen2")
"""Model types whose weights `trimtab.launch.runtime.huggingface`, which needs torch, loads."""
_START_FILES: Final = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLengths:
    """What the data say about a job's batches."""

    longest: int
    """Of all sequences to train on and of the evaluation batch, in tokens."""
    typical_batch: tuple[int, ...]
    """A batch of the median number of tokens among the first steps."""


def check_inputs(job: JobSpec, layout: Layout) -> KnownLengths | None:
    """Look at data, start weights and step planning of a job about to run.

    Returns:
        The lengths of its sequences, or None where only a tokenizer can tell them.

    Raises:
        InputError: Data, tokenizer or start weights are missing or empty, nothing is held out
            for the evaluation, there is nothing to plan steps with, or the checkpoints'
            address has a protocol that is not known here.
        InfeasibleError: A sequence is, or may be, longer than any group can hold.
    """
    if job.checkpoint.address is not None:
        with suppress(MissingExtraError):  # the nodes may have what this machine lacks
            RemoteFolder.at(job.checkpoint.address)
    if job.checkpoint.start_from is not None:
        _check_start(Path(job.checkpoint.start_from), job.model)
    lengths = known_lengths(job)
    planner = step_planner(job, layout)
    if lengths is None:
        _check_longest_allowed(job, planner)
    else:
        planner.fallback([lengths.longest])
    return lengths


def _check_start(folder: Path, model: ModelSpec) -> None:
    """Raise where a folder of start weights is plainly of another model, or not whole."""
    field = "checkpoint.start_from"
    if not folder.is_dir():
        raise InputError(f"{field}: expected a Hugging Face folder, but {folder} is none")
    with placed(field):
        config = read_mapping(folder / "config.json")
    if config.get("model_type") not in _START_TYPES:
        raise InputError(
            f"{field}: {folder / 'config.json'} has model_type {config.get('model_type')!r}; "
            f"expected one of {', '.join(_START_TYPES)}"
        )
    for key, ours in (
        ("num_hidden_layers", model.num_layers),
        ("hidden_size", model.hidden),
        ("intermediate_size", model.ffn_hidden),
        ("num_attention_heads", model.num_heads),
        ("vocab_size", model.vocab),
    ):
        if config.get(key) != ours:
            raise InputError(
                f"{field}: {folder / 'config.json'} has {key} = {config.get(key)}, but the "
                f"job's model has {ours}; describe the same model"
            )
    if not any((folder / name).is_file() for name in _START_FILES):
        raise InputError(
            f"{field}: {folder} has neither {' nor '.join(_START_FILES)}; download the "
            "safetensors files of the model"
        )


def known_lengths(job: JobSpec) -> KnownLengths | None:
    """The lengths of a job's sequences, or None where only a tokenizer can tell them.

    Raises:
        InputError: A source of documents, or the tokenizer, is missing or empty, or the job
            evaluates and no document is held out.
    """
    if _needs_json_tokenizer(job.data):
        _check_tokenizer(job)
        return None
    training = job.training
    corpus, sampler = _open(job)
    longest = int(corpus.train.lengths.max())
    if training.evaluate_every_steps:
        evaluated = sampler.evaluation_batch(training.evaluation_seqs)
        longest = max(longest, int(corpus.held_out.lengths[evaluated].max()))
    batches = _first_batches(sampler, num_steps=min(training.num_steps, _SAMPLED_STEPS))
    return KnownLengths(longest=longest, typical_batch=typical_batch(batches))


def step_lengths(job: JobSpec) -> tuple[tuple[int, ...], ...]:
    """Lengths of the sequences of every step of a run, which are known before it starts.

    Raises:
        InputError: The data are missing or empty.
    """
    _, sampler = _open(job)
    return _first_batches(sampler, num_steps=job.training.num_steps)


def typical_batch(batches: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The batch of the median number of tokens: what a forecast is made for."""
    middle = median_low(sum(batch) for batch in batches)
    return next(batch for batch in batches if sum(batch) == middle)


def _open(job: JobSpec) -> "tuple[Corpus, BatchSampler]":
    """The data as the ranks open them."""
    from trimtab.launch.runtime.batches import BatchSampler, open_corpus

    seed, batch_seqs = job.training.seed, job.training.global_batch_seqs
    corpus = open_corpus(job.data, seed=seed, model_vocab=job.model.vocab)
    return corpus, BatchSampler(corpus, seed=seed, global_batch_seqs=batch_seqs)


def _first_batches(sampler: "BatchSampler", *, num_steps: int) -> tuple[tuple[int, ...], ...]:
    """Lengths of the first steps: the sampler counts from 0 what a run counts from 1."""
    return tuple(sampler.batch_lengths(index) for index in range(num_steps))


def _needs_json_tokenizer(data: DataSpec) -> bool:
    """Whether any source is text that a `tokenizer.json` is to make tokens of."""
    from trimtab.launch.runtime.documents import find_source

    formats = {find_source(source).format for source in data.sources}
    return data.tokenizer != BYTE_TOKENIZER and formats != {"megatron"}


def _check_tokenizer(job: JobSpec) -> None:
    from trimtab.launch.runtime.tokenization import load_json_tokenizer

    tokenizer = load_json_tokenizer(job.data.tokenizer)
    if tokenizer.vocab > job.model.vocab:
        raise InputError(
            f"model.vocab: {tokenizer.path} needs at least {tokenizer.vocab}, got "
            f"{job.model.vocab}"
        )


def _check_longest_allowed(job: JobSpec, planner: StepPlanner) -> None:
    """Raise where `data.max_seq_tokens` admits sequences that no group could hold."""
    degree, token_cap = planner.degrees[-1], planner.profile.token_cap
    if job.data.max_seq_tokens > degree * token_cap:
        raise InfeasibleError(
            f"data.max_seq_tokens: a sequence of {job.data.max_seq_tokens} tokens fits in no "
            f"group: the largest, {degree} ranks, holds {degree} x {token_cap} tokens; set "
            f"data.max_seq_tokens={degree * token_cap} or fewer, or raise "
            "step_planning.token_cap"
        )
