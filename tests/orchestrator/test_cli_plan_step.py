import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from trimtab.core import serde
from trimtab.core.certificate import BoundCertificate
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.schemas import PLAN_STEP_SCHEMA
from trimtab.planners.calibration import profile_from_document
from trimtab.planners.steps.bounds import area_bound_s, certified_bound_s

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "flexsp_7b_a100.json"
LENGTHS = [60_000, 20_000, 9_000, 7_000, *range(300, 3_300, 50)]


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.txt"
    path.write_text("".join(f"{length}\n" for length in LENGTHS))
    return path


def _plan_step(capsys: pytest.CaptureFixture[str], lengths: Path, *argv: str) -> dict[str, Any]:
    options = ["--profile", str(PROFILE), "--lengths", str(lengths), "--json"]
    options += ["--time-limit", "0.2"]  # a later one counts
    assert main(["plan-step", *options, *argv]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_json_follows_its_schema(capsys: pytest.CaptureFixture[str], lengths: Path) -> None:
    jsonschema.validate(_plan_step(capsys, lengths, "--gpus", "16"), PLAN_STEP_SCHEMA)


@pytest.mark.parametrize("num_gpus", [16, 24, 64])
def test_the_plan_keeps_every_promise(
    num_gpus: int, capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    document = _plan_step(capsys, lengths, "--gpus", str(num_gpus))
    token_cap = json.loads(PROFILE.read_text())["token_cap"]
    placed = []
    for wave in document["waves"]:
        ranks = [rank for group in wave["groups"] for rank in group["ranks"]]
        assert len(ranks) == len(set(ranks))
        assert set(ranks) <= set(range(num_gpus))
        for group in wave["groups"]:
            assert len(group["ranks"]) == group["degree"]
            tokens = sum(LENGTHS[line] for line in group["sequences"])
            assert tokens == group["tokens"] <= group["degree"] * token_cap
            placed += group["sequences"]
    assert sorted(placed) == list(range(len(LENGTHS)))


def test_times_are_milliseconds_of_the_published_formula(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    document = _plan_step(capsys, lengths, "--gpus", "16")
    coefficients = json.loads(PROFILE.read_text())
    step_ms = 0.0
    for wave in document["waves"]:
        times_ms = []
        for group in wave["groups"]:
            degree, sizes = group["degree"], [LENGTHS[line] for line in group["sequences"]]
            time_ms = coefficients["fixed_ms"]
            for size in sizes:
                work = coefficients["quadratic_ms"] * size**2 + coefficients["linear_ms"] * size
                time_ms += work / degree
                if degree > 1:
                    # a million bytes at one GB/s take one millisecond
                    traffic = coefficients["alltoall_mb_per_token"] * size / degree
                    time_ms += traffic / coefficients["v_gb_per_s"][str(degree)]
            assert group["time_ms"] == pytest.approx(time_ms)
            times_ms.append(time_ms)
        assert wave["time_ms"] == pytest.approx(max(times_ms))
        step_ms += max(times_ms)
    assert document["step_ms"] == pytest.approx(step_ms)
    gap = document["step_ms"] / document["lower_bound_ms"] - 1
    assert document["gap"] == pytest.approx(gap)
    assert document["lower_bound_ms"] <= document["step_ms"] <= document["uniform"]["step_ms"]


def test_a_stranger_can_price_the_certificate_again(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    document = _plan_step(capsys, lengths, "--gpus", "16")
    certificate = serde.from_document(BoundCertificate, document["certificate"])
    profile = profile_from_document(json.loads(PROFILE.read_text()))
    bound_s = certified_bound_s(certificate, LENGTHS, profile=profile, num_ranks=16)
    assert document["lower_bound_ms"] == pytest.approx(1e3 * bound_s)
    assert bound_s >= area_bound_s(LENGTHS, profile=profile, num_ranks=16)


def test_more_time_never_gives_a_longer_step(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    first = _plan_step(capsys, lengths, "--gpus", "16", "--time-limit", "0")
    assert first["certificate"] is None
    assert first["first_step_ms"] == first["step_ms"]
    later = _plan_step(capsys, lengths, "--gpus", "16", "--time-limit", "0.5")
    assert later["first_step_ms"] == first["step_ms"]
    assert later["lower_bound_ms"] <= later["step_ms"] <= first["step_ms"]
    assert later["first_plan_s"] <= later["solve_s"]


def test_a_batch_keeps_the_line_numbers_of_the_file(
    capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    document = _plan_step(capsys, lengths, "--gpus", "8", "--batch", "4:10")
    placed = [
        line
        for wave in document["waves"]
        for group in wave["groups"]
        for line in group["sequences"]
    ]
    assert sorted(placed) == [4, 5, 6, 7, 8, 9]


def test_the_drawing_shows_groups_over_ranks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("20000\n6000\n6000\n")
    argv = ["plan-step", "-p", str(PROFILE), "-l", str(path), "-n", "6", "--time-limit", "0"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "1 x degree 4  2 x degree 1" in text
    assert "    0 ███▌▌▌\n" in text
    assert "best uniform degree 4" in text


@pytest.mark.parametrize(
    ("content", "argv", "message"),
    [
        ("", [], "expected one length a line, got an empty file"),
        ("5\nfive\n", [], "line 2: expected a whole number >= 1, got 'five'"),
        ("5\n0\n", [], "line 2: expected a whole number >= 1, got '0'"),
        ("5\n-1\n", [], "line 2: expected a whole number >= 1, got '-1'"),
        ("9000000\n", [], "9000000"),
        ("50000\n", ["--gpus", "4"], "50000"),
        (
            "5\n" * 6 + "50000\n5\n",
            ["--gpus", "4", "--batch", "4:8"],
            "lengths.txt, line 7: a sequence of 50000 tokens fits in no group",
        ),
        ("5\n", ["--gpus", "0"], "--gpus: expected a whole number >= 1, got 0"),
        ("5\n", ["--gpus", "-8"], "--gpus: expected a whole number >= 1, got -8"),
        ("5\n", ["--gpus", "1000001"], "--gpus: at most 1,000,000 can be planned, got 1000001"),
        ("5\n", ["--time-limit", "-1"], "--time-limit: expected seconds >= 0, got -1"),
        ("5\n", ["--time-limit", "nan"], "--time-limit: expected seconds >= 0, got nan"),
        ("5\n", ["--time-limit", "inf"], "--time-limit: expected seconds >= 0, got inf"),
        ("5\n", ["--batch", "1"], "--batch: expected START:END with 0 <= START < END, got '1'"),
        ("5\n", ["--batch", "3:2"], "got '3:2'"),
        ("5\n", ["--batch", "0:2"], "it has 1 lines, got the range 0:2"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    content: str,
    argv: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text(content)
    options = ["--profile", str(PROFILE), "--lengths", str(path), "--gpus", "16"]
    assert main(["plan-step", *options, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_ms": -1.0}, "linear_ms"),
        ({"linear_ms": float("nan")}, "linear_ms"),
        ({"linear_ms": "fast"}, "linear_ms"),
        ({"v_gb_per_s": {"2": -119.5}}, "v_gb_per_s[2]"),
        ({"token_cap": 0}, "token_cap: expected a whole number >= 1, got 0"),
        ({"liner_ms": 1.0}, "did you mean 'linear_ms'?"),
    ],
)
def test_a_wrong_profile_is_one_line_and_exit_2(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    lengths: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(json.loads(PROFILE.read_text()) | changes))
    argv = ["--profile", str(profile), "--lengths", str(lengths), "--gpus", "16"]
    assert main(["plan-step", *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("vpp", [1, 2])
def test_stages_are_in_the_json(
    vpp: int, capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    document = _plan_step(capsys, lengths, "--gpus", "64", "--pp", "4", "--vpp", str(vpp))
    jsonschema.validate(document, PLAN_STEP_SCHEMA)
    pipeline = document["pipeline"]
    assert (pipeline["pp"], pipeline["vpp"], pipeline["stage_layers"]) == (4, vpp, [8] * 4)
    assert len(pipeline["micro_batches"]) == len(document["waves"])
    for wave, micro in zip(document["waves"], pipeline["micro_batches"], strict=True):
        both = sum(micro["forward_ms"]) + sum(micro["backward_ms"])
        assert both == pytest.approx(wave["time_ms"])
        assert max(rank for group in wave["groups"] for rank in group["ranks"]) < 16
    for peak, limit in zip(pipeline["peak_tokens"], pipeline["token_limits"], strict=True):
        assert peak <= limit * (1 + 1e-6)
    assert max(pipeline["busy_ms"]) < document["step_ms"]
    assert document["lower_bound_ms"] <= document["step_ms"] <= document["uniform"]["step_ms"]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--pp", "0"], "--pp: expected a whole number >= 1, got 0"),
        (["--vpp", "0"], "--vpp: expected a whole number >= 1, got 0"),
        (["--pp", "3"], "--pp: expected a divisor of --gpus 64, got 3"),
        (["--vpp", "2"], "pipeline.vpp: chunks are interleaved over equal stages of pp > 1"),
        (["--pp", "64"], "pipeline.pp: 64 stages are more than the 32 layers"),
        (["--pp", "8", "--vpp", "3"], "pipeline.vpp: pp x vpp = 24 does not divide"),
    ],
)
def test_stages_that_cannot_be_are_refused(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str], lengths: Path
) -> None:
    options = ["--profile", str(PROFILE), "--lengths", str(lengths), "--gpus", "64"]
    assert main(["plan-step", *options, *argv]) == 2
    assert named in capsys.readouterr().err
