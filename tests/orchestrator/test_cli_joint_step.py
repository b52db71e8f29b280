import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.core import serde
from trimtab.core.staged import StagedLayout, StagedPrices
from trimtab.orchestrator.cli.main import main
from trimtab.planners.staged.staged_bounds import priced_bound_s

ROOT = Path(__file__).parents[2]
JOB = ROOT / "configs" / "gpt-7b-staged.yaml"
CLUSTER = ROOT / "clusters" / "holmes-ib-roce.yaml"
LENGTHS = [60_000, 20_000, 9_000, 7_000, *range(300, 3_300, 50)]


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.txt"
    path.write_text("".join(f"{length}\n" for length in LENGTHS))
    return path


def _argv(lengths: Path, *, job: Path = JOB, cluster: Path = CLUSTER) -> list[str]:
    return [
        "plan-step", "--cluster", str(cluster), "--job", str(job), "--lengths", str(lengths),
        "--time-limit", "0.1",
    ]  # fmt: skip


def _refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    return " ".join(error.split())


def test_a_stranger_can_price_the_bound_again(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    assert main([*_argv(lengths), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    staged = serde.from_document(StagedLayout, document["layout"])
    prices = serde.from_document(StagedPrices, document["prices"])
    bound_s = priced_bound_s(prices, document["lengths"], staged=staged)
    assert document["lower_bound_ms"] == pytest.approx(1e3 * bound_s)
    assert document["lower_bound_ms"] <= document["step_ms"] <= document["first_step_ms"]
    assert document["step_ms"] <= document["apart_ms"]
    placed = sorted(i for one in document["micro_batches"] for i in one["sequences"])
    assert placed == list(range(len(document["lengths"])))
    assert sum(staged.stage_layers) == 32


def test_long_documents_are_split_as_the_job_says(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    assert main([*_argv(lengths), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["lengths"][:3] == [32_768, 60_000 - 32_768, 20_000]


def test_the_step_is_drawn(capsys: pytest.CaptureFixture[str], lengths: Path) -> None:
    assert main(_argv(lengths)) == 0
    shown = capsys.readouterr().out
    assert "stage 0" in shown
    assert "stage 1" in shown
    assert "best possible" in " ".join(shown.split())
    assert "█" in shown


def test_both_forms_at_once_are_refused(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    assert "got both" in _refused(capsys, [*_argv(lengths), "--gpus", "8"])


def test_stages_of_equal_gpus_are_refused_where_the_job_has_its_own(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    assert "set layout.pp in the job" in _refused(capsys, [*_argv(lengths), "--pp", "4"])


def test_half_a_form_is_refused(capsys: pytest.CaptureFixture[str], lengths: Path) -> None:
    argv = ["plan-step", "--lengths", str(lengths), "--cluster", str(CLUSTER)]
    assert "got --cluster" in _refused(capsys, argv)
    assert "got neither" in _refused(capsys, ["plan-step", "--lengths", str(lengths)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("layout: {pp: 2}", "layout: {pp: 16}"), "layout.pp: 16 stages need as many nodes"),
        (("layout: {pp: 2}", "layout: {pp: 2, tp: 3, dp: 1}"), "layout"),
        (("layout: {pp: 2}", "layout: {pp: 2, zero: 3}"), "layout.zero: expected 1"),
        (("layout: {pp: 2}", ""), "layout: missing from the job"),
        (
            ("training:", "stage_paths: {skip_fractions: [0.5, 0]}\n\ntraining:"),
            "the first and the last stage are never left out",
        ),
        (
            ("training:", "stage_paths: {skip_fractions: [0, .nan]}\n\ntraining:"),
            "stage_paths.skip_fractions[1]: expected a number >= 0 and < 1, got nan",
        ),
        (
            ("training:", "stage_paths: {skip_fractions: [0]}\n\ntraining:"),
            "expected one number for each of 2 stages, got 1",
        ),
        (("split", "drop"), "[1] markup [bold]"),
        (("max_seq_tokens: 32768", "max_seq_tokens: 10"), "expected at least one document"),
    ],
)
def test_a_job_that_cannot_be_planned_is_one_line(
    change: tuple[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    lengths: Path,
    tmp_path: Path,
) -> None:
    text = JOB.read_text().replace("models/", f"{ROOT}/configs/models/")
    text = text.replace("../clusters/", f"{ROOT}/clusters/")
    assert change[0] in text
    text = text.replace(*change)
    if "max_seq_tokens: 10" in text:
        text = text.replace("split", "drop")
    job = tmp_path / "job.yaml"
    job.write_text(text)
    if "markup" in message:
        hostile = tmp_path / message
        hostile.write_text("1e9\n")
        assert message in _refused(capsys, _argv(hostile, job=job))
        return
    assert message in _refused(capsys, _argv(lengths, job=job))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gb_per_s: 12.5", "gb_per_s: 0"), "expected a finite number > 0"),
        (("gb_per_s: 12.5", "gb_per_s: .nan"), "expected a finite number > 0"),
        (("memory_gib: 80", "memory_gib: 12"), "memory"),
        (("islands: [infiniband, roce]", "islands: [infiniband, moon]"), "moon"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line(
    change: tuple[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    lengths: Path,
    tmp_path: Path,
) -> None:
    text = CLUSTER.read_text()
    assert change[0] in text
    cluster = tmp_path / "it's a cluster.yaml"
    cluster.write_text(text.replace(*change))
    assert message in _refused(capsys, _argv(lengths, cluster=cluster))


def test_islands_that_nothing_joins_are_refused(
    capsys: pytest.CaptureFixture[str], lengths: Path, tmp_path: Path
) -> None:
    text = (ROOT / "clusters" / "holmes-mix.yaml").read_text()
    kept = [line for line in text.splitlines() if "[infiniband, ethernet]" not in line]
    cut = [line for line in kept if "[roce, ethernet]" not in line]
    cluster = tmp_path / "cut.yaml"
    cluster.write_text("\n".join(cut))
    assert "no way leads" in _refused(capsys, _argv(lengths, cluster=cluster))
