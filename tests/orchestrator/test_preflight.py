import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.job import CheckpointSpec, DataSource, DataSpec, JobSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.launch.runtime.batches import BatchSampler, open_corpus
from trimtab.orchestrator import preflight

MEGATRON = Path(__file__).parents[1] / "data" / "documents" / "tiny"
PROFILE = StepProfile(
    name="made up",
    num_gpus=2,
    gpus_per_node=2,
    quadratic_s=1e-7,
    linear_s=1e-4,
    fixed_s=1e-3,
    alltoall_bytes_per_token=1e5,
    bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=1e8),),
    token_cap=100,
)
LAYOUT = Layout(dp=2)


@pytest.fixture
def job(small_job: JobSpec, tmp_path: Path) -> JobSpec:
    """Documents of 11 to 80 tokens."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for size in range(10, 80):
        (folder / f"{size}.txt").write_bytes(b"x" * size)
    data = DataSpec(sources=(DataSource(path=str(folder)),), max_seq_tokens=128)
    return replace(small_job, num_ranks=2, data=data, profile=PROFILE)


def tokenizer_of(folder: Path) -> Path:
    """Words for tokens: 3 of them, with the mark that ends documents."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"x": 0, "y": 1}, unk_token="y"))
    tokenizer.add_special_tokens(["</s>"])
    folder.mkdir()
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def held_out_job(job: JobSpec, *, evaluate_every_steps: int) -> JobSpec:
    """`job` with a seed at which the longest document is held out."""
    for seed in range(100_000):
        corpus = open_corpus(job.data, seed=seed)
        if 80 in corpus.held_out.lengths:
            break
    training = replace(job.training, seed=seed, evaluate_every_steps=evaluate_every_steps)
    return replace(job, training=training)


def test_the_sampled_batches_are_those_of_the_run(job: JobSpec) -> None:
    corpus = open_corpus(job.data, seed=job.training.seed)
    sampler = BatchSampler(corpus, seed=job.training.seed, global_batch_seqs=4)
    one_step = replace(job, training=replace(job.training, num_steps=1))
    lengths = preflight.known_lengths(one_step)
    assert lengths is not None
    assert lengths.typical_batch == sampler.batch_lengths(0)
    batches = preflight.step_lengths(job)
    assert batches == tuple(sampler.batch_lengths(index) for index in range(6))


def test_the_typical_batch_is_of_the_median_size() -> None:
    assert preflight.typical_batch(((9, 9), (1, 1), (2, 3))) == (2, 3)
    assert preflight.typical_batch(((9, 9), (1, 1))) == (1, 1)


def test_a_held_out_document_counts_where_the_job_evaluates(job: JobSpec) -> None:
    quiet = held_out_job(job, evaluate_every_steps=0)
    without = preflight.known_lengths(quiet)
    evaluating = preflight.known_lengths(held_out_job(job, evaluate_every_steps=2))
    assert without is not None
    assert evaluating is not None
    assert without.longest < evaluating.longest == 80


def test_a_held_out_document_that_no_group_holds_is_refused(job: JobSpec) -> None:
    evaluating = held_out_job(job, evaluate_every_steps=2)
    short = replace(evaluating, profile=replace(PROFILE, token_cap=39))
    with pytest.raises(InfeasibleError, match="80 tokens fits in no group"):
        preflight.check_inputs(short, LAYOUT)


def test_an_evaluation_without_held_out_documents_is_refused(
    job: JobSpec, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("the only document")
    data = replace(job.data, sources=(DataSource(path=str(tmp_path / "one.txt")),))
    training = replace(job.training, evaluate_every_steps=500)
    with pytest.raises(InputError, match=r"data\.held_out_fraction: evaluation needs"):
        preflight.check_inputs(replace(job, data=data, training=training), LAYOUT)


def test_a_folder_may_name_the_tokenizer_in_it(job: JobSpec, tmp_path: Path) -> None:
    path = tokenizer_of(tmp_path / "tokenizer")
    for tokenizer in (path, path.parent):
        data = replace(job.data, tokenizer=str(tokenizer))
        assert preflight.check_inputs(replace(job, data=data), LAYOUT) is None


def test_a_tokenizer_that_is_missing_or_too_large_is_refused(
    job: JobSpec, tmp_path: Path
) -> None:
    missing = replace(job, data=replace(job.data, tokenizer=str(tmp_path / "none.json")))
    with pytest.raises(InputError, match=r"data\.tokenizer: .*none\.json is not a file"):
        preflight.check_inputs(missing, LAYOUT)
    path = tokenizer_of(tmp_path / "tokenizer")
    data = replace(job.data, tokenizer=str(path))
    small = replace(job, data=data, model=replace(job.model, vocab=2))
    with pytest.raises(InputError, match=r"model\.vocab: .* needs at least 3, got 2"):
        preflight.check_inputs(small, LAYOUT)


def test_unknown_lengths_may_be_as_long_as_the_job_allows(job: JobSpec, tmp_path: Path) -> None:
    path = tokenizer_of(tmp_path / "tokenizer")
    data = replace(job.data, tokenizer=str(path), max_seq_tokens=201)
    message = r"data\.max_seq_tokens: .* 2 x 100 tokens; set data\.max_seq_tokens=200 or fewer"
    with pytest.raises(InfeasibleError, match=message):
        preflight.check_inputs(replace(job, data=data), LAYOUT)


def test_megatron_data_need_no_tokenizer(job: JobSpec, tmp_path: Path) -> None:
    for suffix in (".bin", ".idx"):
        shutil.copyfile(MEGATRON.with_suffix(suffix), tmp_path / f"tiny{suffix}")
    data = replace(
        job.data,
        sources=(DataSource(path=str(tmp_path / "tiny")),),
        tokenizer="/no/tokenizer.json",
    )
    gpt2 = replace(job.model, vocab=50_257)
    assert preflight.check_inputs(replace(job, data=data, model=gpt2), LAYOUT) is not None


def test_missing_data_are_refused_whatever_the_tokenizer(job: JobSpec) -> None:
    for tokenizer in ("byte", "/no/tokenizer.json"):
        source = DataSource(path="/no/documents")
        data = replace(job.data, sources=(source,), tokenizer=tokenizer)
        with pytest.raises(InputError, match=r"data\.sources\.path: /no/documents does not"):
            preflight.check_inputs(replace(job, data=data), LAYOUT)


def test_start_weights_must_be_there_and_of_the_same_model(
    job: JobSpec, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    starting = replace(job, checkpoint=CheckpointSpec(start_from=str(folder)))
    model = job.model
    config = {
        "model_type": "llama",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn_hidden,
        "num_attention_heads": model.num_heads,
        "vocab_size": model.vocab,
    }

    def refusal() -> str:
        with pytest.raises(InputError, match=r"^checkpoint\.start_from: ") as caught:
            preflight.check_inputs(starting, LAYOUT)
        return str(caught.value)

    assert "expected a Hugging Face folder" in refusal()
    folder.mkdir()
    assert "config.json: no such file" in refusal()
    written = folder / "config.json"
    written.write_text(json.dumps(config | {"model_type": "bert"}))
    assert "model_type 'bert'; expected one of llama" in refusal()
    written.write_text(json.dumps(config | {"hidden_size": 7}))
    assert f"hidden_size = 7, but the job's model has {model.hidden}" in refusal()
    written.write_text(json.dumps(config))
    assert "neither model.safetensors nor" in refusal()
    (folder / "model.safetensors").touch()
    assert preflight.check_inputs(starting, LAYOUT) is not None


def test_an_address_of_an_unknown_protocol_is_refused(job: JobSpec) -> None:
    checkpoint = replace(job.checkpoint, address="nowhere://bucket/folder")
    with pytest.raises(InputError, match=r"checkpoint\.address: .*nowhere"):
        preflight.check_inputs(replace(job, checkpoint=checkpoint), LAYOUT)
