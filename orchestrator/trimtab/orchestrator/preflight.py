"""What can be known of a job's inputs before any rank starts, so that bad ones fail at once.

The ranks check the same again; this only says it sooner. Documents are counted, not read: with
a `tokenizer.json` their lengths are not known yet, and only their presence is checked.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Final

from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout
from trimtab.orchestrator.step_planning import step_planner

_SAMPLED_STEPS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLengths:
    """What the data say about a job's batches."""

    longest: int
    """Of all sequences, in tokens."""
    typical_batch: tuple[int, ...]
    """A batch of the median number of tokens among the first steps."""


def check_inputs(job: JobSpec, layout: Layout) -> KnownLengths | None:
    """Look at data, start weights and step planning of a job about to run.

    Returns:
        The lengths of its sequences, or None where only a tokenizer can tell them.

    Raises:
        InputError: Data or start weights are missing or empty, or there is nothing to plan
            steps with.
        InfeasibleError: A sequence is longer than any group can hold.
    """
    start_from = job.checkpoint.start_from
    if start_from is not None and not Path(start_from).is_dir():
        raise InputError(
            f"checkpoint.start_from: expected a Hugging Face folder, but {start_from} is none"
        )
    lengths = known_lengths(job)
    planner = step_planner(job, layout)
    if lengths is not None:
        planner.fallback([lengths.longest])
    return lengths


def known_lengths(job: JobSpec) -> KnownLengths | None:
    """The lengths of a job's sequences, or None where only a tokenizer can tell them.

    Raises:
        InputError: A source of documents, or the tokenizer, is missing or empty.
    """
    from trimtab.launch.runtime.batches import BatchSampler, open_corpus
    from trimtab.launch.runtime.documents import find_source
    from trimtab.launch.runtime.tokenization import BYTE_TOKENIZER

    if job.data.tokenizer != BYTE_TOKENIZER:
        if not Path(job.data.tokenizer).is_file():
            raise InputError(
                f"data.tokenizer: expected {BYTE_TOKENIZER!r} or a tokenizer.json, but "
                f"{job.data.tokenizer} is no file"
            )
        for source in job.data.sources:
            find_source(source)
        return None
    training = job.training
    corpus = open_corpus(job.data, seed=training.seed, model_vocab=job.model.vocab)
    sampler = BatchSampler(
        corpus, seed=training.seed, global_batch_seqs=training.global_batch_seqs
    )
    num_steps = min(training.num_steps, _SAMPLED_STEPS)
    batches = [sampler.batch_lengths(step) for step in range(1, num_steps + 1)]
    middle = median_low(sum(batch) for batch in batches)
    return KnownLengths(
        longest=int(corpus.train.lengths.max()),
        typical_batch=next(batch for batch in batches if sum(batch) == middle),
    )
