import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab import orchestrator
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.plan import Layout
from trimtab.orchestrator import api
from trimtab.orchestrator.step_planning import step_planner

CONFIGS = Path(__file__).parents[2] / "configs"
FLEXSP_7B = CONFIGS / "profiles" / "flexsp_7b_a100.json"

NO_HEAVY_IMPORTS = """
import sys
from trimtab.orchestrator import load_job, load_profile, plan, plan_step
plan(load_job(sys.argv[1]))
plan_step([3000] * 8, profile=load_profile(sys.argv[2]), num_ranks=8)
heavy = {"torch", "megatron", "ray", "deepspeed", "wandb", "starlette", "transformers"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or None)
"""


def test_planning_needs_neither_torch_nor_a_server_nor_a_scheduler() -> None:
    command = [sys.executable, "-c", NO_HEAVY_IMPORTS]
    job = str(CONFIGS / "llama-3-8b.yaml")
    done = subprocess.run([*command, job, str(FLEXSP_7B)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_imports_no_planner() -> None:
    program = "import sys, trimtab.orchestrator; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_every_documented_name_is_there() -> None:
    documented = (CONFIGS.parent / "docs" / "api.md").read_text(encoding="utf-8")
    for name in orchestrator.__all__:
        assert callable(getattr(orchestrator, name))
        assert f"`{name}(" in documented
    with pytest.raises(AttributeError):
        orchestrator.no_such_name  # noqa: B018  # reading it is the test


def test_a_job_without_a_layout_gets_one_that_fills_its_ranks() -> None:
    job = api.load_job(CONFIGS / "llama-3-8b.yaml")
    job_plan = api.plan(job)
    assert job_plan.layout.num_ranks == 16
    assert len(job_plan.placement.rank_nodes) == 16
    parts_s = sum(part.seconds for part in job_plan.forecast.parts)
    assert parts_s == pytest.approx(job_plan.forecast.step_s)


def test_the_layout_of_a_job_is_kept() -> None:
    changes = ["layout={tp: 4, pp: 2, micro_batch_seqs: 16}"]
    job = api.load_job(CONFIGS / "llama-3-8b.yaml", changes)
    with pytest.raises(InfeasibleError, match=r"it fits with layout\.recompute full"):
        api.plan(job)
    changes = ["layout={tp: 4, pp: 2, recompute: selective}"]
    job = api.load_job(CONFIGS / "llama-3-8b.yaml", changes)
    assert api.plan(job).layout == Layout(tp=4, pp=2, dp=2, recompute="selective")


def test_every_setting_of_a_layout_is_kept() -> None:
    job = api.load_job(CONFIGS / "llama-3-8b.yaml", ["layout={tp: 8, recompute: full}"])
    assert api.plan(job).layout == Layout(tp=8, dp=2, recompute="full")


def test_a_run_is_forecast_in_the_groups_its_ranks_form() -> None:
    job = api.load_job(
        CONFIGS / "demo.yaml",
        [
            f"profile={FLEXSP_7B}",
            "profile.hidden=128",
            "profile.num_layers=2",
            "step_planning={grouping: uniform, uniform_degree: 4}",
        ],
    )
    layout = Layout(dp=4)
    run = api.plan_run(job, layout, lengths=[900] * 16)
    step = step_planner(job, layout).plan([900] * 16, step=1)
    assert run.layout == layout
    assert run.forecast.step_s == pytest.approx(step.step_s)
    free = replace(job, step_planning=replace(job.step_planning, grouping="planned"))
    assert api.plan_run(free, layout, lengths=[900] * 16).forecast.step_s < step.step_s


def test_a_run_of_equal_lengths_needs_no_batch_that_dp_divides() -> None:
    job = api.load_job(CONFIGS / "llama-3-8b.yaml", ["training.global_batch_seqs=13"])
    plan = api.plan_run(job, Layout(dp=16))
    assert plan.layout == Layout(dp=16)
    assert plan.forecast.num_tokens == 13 * job.data.max_seq_tokens
    assert plan.forecast.verdict != "oom"


def test_a_fixed_degree_leaves_the_others_to_the_planner() -> None:
    job = api.load_job(CONFIGS / "llama-3-8b.yaml")
    layout = api.plan(job, fixed={"tp": 8}).layout
    assert layout.tp == 8
    assert layout.num_ranks == 16


def test_a_model_that_fits_no_layout_says_what_is_short() -> None:
    job = api.load_job(CONFIGS / "llama-3-70b.yaml", ["num_ranks=8"])
    with pytest.raises(InfeasibleError, match=r"short by [\d.]+ GiB"):
        api.plan(job)


def test_a_step_plan_holds_every_sequence_once() -> None:
    profile = api.load_profile(FLEXSP_7B)
    lengths = [30_000, 12_000, *[900] * 40]
    step_plan = api.plan_step(lengths, profile=profile, num_ranks=16)
    groups = [group for wave in step_plan.waves for group in wave.groups]
    assert sorted(s for group in groups for s in group.sequences) == list(range(42))
    assert step_plan.lower_bound_s <= step_plan.step_s


def test_the_best_uniform_degree_is_no_faster_than_the_plan() -> None:
    profile = api.load_profile(FLEXSP_7B)
    lengths = [30_000, 12_000, *[900] * 40]
    step_plan = api.plan_step(lengths, profile=profile, num_ranks=16)
    uniform = api.best_uniform_step(lengths, profile=profile, num_ranks=16)
    assert uniform is not None
    assert uniform.degrees == (8,)
    assert uniform.step_s >= step_plan.step_s


def test_a_batch_without_lengths_says_what_it_assumes() -> None:
    job = api.load_job(CONFIGS / "llama-3-8b.yaml", ["training.global_batch_seqs=2"])
    batch = api.planning_batch(job)
    assert batch.profile.lengths == (8192, 8192)
    assert "assumed: 2 sequences of data.max_seq_tokens = 8192" in batch.note


@pytest.mark.parametrize(
    ("long_documents", "lengths", "expected"),
    [
        ("split", [20_000, 5], (8192, 8192, 3616)),
        ("truncate", [20_000, 5, 7], (8192, 5, 7)),
        ("drop", [20_000, 5, 7], (5, 7, 5)),
        ("split", [5], (5, 5, 5)),
    ],
)
def test_given_documents_become_the_sequences_of_one_batch(
    long_documents: str, lengths: list[int], expected: tuple[int, ...]
) -> None:
    overrides = ["training.global_batch_seqs=3", f"data.long_documents={long_documents}"]
    job = api.load_job(CONFIGS / "llama-3-8b.yaml", overrides)
    assert api.planning_batch(job, lengths).profile.lengths == expected


def test_a_batch_of_dropped_documents_is_refused() -> None:
    job = api.load_job(CONFIGS / "llama-3-8b.yaml", ["data.long_documents=drop"])
    with pytest.raises(InputError, match="at most 8192 tokens"):
        api.planning_batch(job, [9000])


def test_lengths_are_read_as_given(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("3\n 1 \n2\n\n")
    assert api.load_lengths(path) == (3, 1, 2)
    assert api.load_lengths(path, start=1) == (1, 2)
    assert api.load_lengths(path, start=0, end=2) == (3, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected one length a line, got an empty file"),
        (b"\n\n", "got an empty file"),
        (b"3\nx\n", "line 2: expected a whole number >= 1, got 'x'"),
        (b"3\n\n3\n", "line 2: expected a whole number >= 1, got ''"),
        (b"0\n", "line 1: expected a whole number >= 1, got '0'"),
        (b"-5\n", "line 1: expected a whole number >= 1, got '-5'"),
        (b"1.5\n", "got '1.5'"),
        (b"1_000\n", "got '1_000'"),
        (b"99999999999999999999\n", "got '99999999999999999999'"),
        ("٣\n".encode(), "line 1: expected a whole number >= 1"),
        (b"\xff\n", "expected UTF-8 text"),
    ],
)
def test_a_wrong_lengths_file_names_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "lengths.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        api.load_lengths(path)
    assert message in str(caught.value)


def test_a_range_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("1\n2\n")
    with pytest.raises(InputError, match=r"it has 2 lines, got the range 1:3"):
        api.load_lengths(path, start=1, end=3)


def test_a_layout_given_whole_is_planned_whole() -> None:
    job = api.load_job(CONFIGS / "gpt-7b.yaml", ["training.global_batch_seqs=64"])
    assert api.plan(job, lengths=[500] * 64).layout == Layout(dp=64, zero=3)


def test_a_batch_too_large_to_plan_is_refused_at_once() -> None:
    job = api.load_job(
        CONFIGS / "llama-3-8b.yaml", ["training.global_batch_seqs=1000000000000"]
    )
    message = "at most 1,000,000 sequences can be planned, got 1,000,000,000,000"
    with pytest.raises(InputError, match=message):
        api.plan(job)
