import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.core import serde
from trimtab.core.stage_paths import PathSchedule
from trimtab.core.timeline import LaneTimeline
from trimtab.orchestrator.cli.main import main
from trimtab.planners.paths.path_instance import instance_from_document
from trimtab.planners.paths.path_times import path_times, schedule_problems

CASES = Path(__file__).parents[1] / "data" / "skippipe"
SIX = CASES / "n06_s4_skip50.instance.json"
SIX_ARRANGED = CASES / "n06_s4_skip50.upstream.json"


def _plan(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main(["plan-paths", *map(str, argv), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def _schedule(document: dict[str, Any]) -> PathSchedule:
    return PathSchedule(
        partitions=tuple(map(tuple, document["partitions"])),
        paths=tuple(map(tuple, document["paths"])),
        release_s=tuple(document["release_s"]),
    )


def test_a_stranger_can_simulate_the_plan_again(capsys: pytest.CaptureFixture[str]) -> None:
    document = _plan(capsys, SIX, "--time-limit", 0.5)
    instance = instance_from_document(document["instance"])
    schedule = _schedule(document)
    assert schedule_problems(instance, schedule) == []
    assert path_times(instance, schedule).iteration_s == document["iteration_s"]
    assert document["lower_bound_s"] <= document["iteration_s"] <= document["first_step_s"]
    assert document["gap"] == pytest.approx(document["step_s"] / document["lower_bound_s"] - 1)
    timeline = serde.from_document(LaneTimeline, document["timeline"])
    assert timeline.end_s == pytest.approx(document["iteration_s"])


def test_fixed_stages_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    document = _plan(capsys, SIX, "--fixed-stages", SIX_ARRANGED, "--time-limit", 0.5)
    stored = json.loads(SIX_ARRANGED.read_text())["arrangement"]["partitions"]
    assert [sorted(nodes) for nodes in document["partitions"]] == list(map(sorted, stored))
    assert document["iteration_s"] == pytest.approx(53.5829, abs=1e-3)


def test_in_stage_delays_stay_below_those_of_an_arrangement(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit = ("--most-in-stage-delay", SIX_ARRANGED)
    document = _plan(capsys, SIX, *limit, "--time-limit", 0.5)
    assert document["in_stage_delay_s"] <= 2.81838
    document = _plan(capsys, SIX, "--most-in-stage-delay", 2.7, "--time-limit", 0.5)
    assert document["in_stage_delay_s"] <= 2.7


def test_a_node_is_lost_from_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = _plan(capsys, SIX, "--time-limit", 0.3)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(before))
    lost = before["partitions"][1][0]
    after = _plan(capsys, plan, "--from", plan, "--without", lost)
    assert after["lost_node"] == lost
    assert all(lost not in path for path in after["paths"])
    assert after["lower_bound_s"] <= after["step_s"]
    instance = instance_from_document(after["instance"])
    assert schedule_problems(instance, _schedule(after)) == []
    assert after["rungs"][0]["name"] == "reroute"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([4, 99], "paths[0]: expected nodes from 0 to 5, got 99"),
        ([], "paths[0]: expected at least one entry, got none"),
        (None, "paths[0]: expected a list, got None"),
    ],
)
def test_a_plan_with_a_path_of_no_nodes_is_refused(
    path: Any, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = _plan(capsys, SIX, "--time-limit", 0)
    before["paths"][0] = path
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(before))
    assert message in _error(capsys, plan, "--from", plan, "--without", 1)


def test_people_see_nodes_paths_and_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan-paths", str(SIX), "--time-limit", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "6 nodes, 4 stages, 18 micro-batches that skip 50%" in out
    assert "over the best possible" in out
    assert "path   8" in out
    assert main(["plan-paths", str(SIX), "--time-limit", "0.2", "--without", "0"]) == 0
    assert "without node 0, planned in" in capsys.readouterr().out


def test_skipping_more_than_published_is_refused_unless_allowed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fields = json.loads(SIX.read_text())
    fields |= {"path_len": 1, "skip_ratio": 0.75}
    instance = tmp_path / "instance.json"
    instance.write_text(json.dumps(fields))
    assert main(["plan-paths", str(instance), "--time-limit", "0"]) == 2
    assert "--allow skips" in capsys.readouterr().err
    document = _plan(capsys, instance, "--time-limit", 0, "--allow", "skips")
    assert [one["rule"] for one in document["guidance"]["broken"]] == ["skips"]


def _error(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["plan-paths", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SIX.read_text()[:900], "expected a JSON document"),
        ("", "expected a JSON document"),
        ("[1, 2]", "instance: expected an object"),
        ('{"n_nodes": NaN}', "n_nodes: expected a whole number >= 1, got nan"),
        ('{"n_nodes": Infinity}', "n_nodes: expected a whole number >= 1, got inf"),
        ('{"waves": 1, "waves": 2}', "'waves': the key is given twice"),
        ('{"[bold]": 1}', "unknown key '[bold]'"),
        ("[" * 100_000, "expected a JSON document"),
    ],
)
def test_broken_files_end_in_one_line(
    text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "instance.json"
    path.write_text(text)
    error = _error(capsys, path)
    assert message in error
    assert str(path) in error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"op_gap_s": None}, "op_gap_s: expected a finite number >= 0, got None"),
        ({"op_gap_first_s": 10**30}, "op_gap_first_s: expected a number from 0 to 100000"),
        ({"backward_factor": 1e308}, "backward_factor: expected a number from 0 to 100"),
        ({"forward_s": [1.76] * 5 + [1e308]}, "forward_s[5]: expected a number from 1e-09"),
        ({"samples_per_microbatch": "x"}, "samples_per_microbatch: expected a whole number"),
        (
            {"microbatches_per_origin": 10**12, "memory": 10**12},
            "microbatches_per_origin: at most 100,000 micro-batches",
        ),
        (
            {"latency_ms": [[None] * 6] * 6},
            "latency_ms[0][1], bandwidth_GiBps[0][1]: one is null",
        ),
        ({"bandwidth_GiBps": [[5e-324] * 6] * 6}, "bandwidth_GiBps[0][1]: expected a number"),
    ],
)
def test_figures_that_no_time_can_come_of_are_refused_by_name(
    changed: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(json.loads(SIX.read_text()) | changed))
    assert f"{path}: {message}" in _error(capsys, path)


def test_whole_numbers_are_as_good_as_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fields = json.loads(SIX.read_text())
    plans = []
    for wave_offset_s in (2, 2.0):
        path = tmp_path / "instance.json"
        path.write_text(json.dumps(fields | {"wave_offset_s": wave_offset_s, "op_gap_s": 0}))
        plans.append(_plan(capsys, path, "--time-limit", 0))
    assert plans[0]["instance"] == plans[1]["instance"]
    assert isinstance(plans[0]["instance"]["op_gap_s"], float)
    assert plans[0]["paths"] == plans[1]["paths"]


def test_a_stage_without_a_link_within_has_no_in_stage_delay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fields = json.loads(SIX.read_text())
    for i in range(6):
        fields["delay_s"][i][2] = None if i in (0, 5) else fields["delay_s"][i][2]
    fields["partition_sizes"] = [2, 1, 1, 2]
    arranged = tmp_path / "stages.json"
    arranged.write_text('{"partitions": [[1, 3], [4], [5], [0, 2]]}')
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(fields))
    document = _plan(capsys, path, "--fixed-stages", arranged, "--time-limit", 0)
    assert document["in_stage_delay_s"] is None
    assert document["instance"]["delay_s"][0][2] is None


def test_a_disconnected_node_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fields = json.loads(SIX.read_text())
    for other in range(6):
        fields["delay_s"][4][other] = fields["delay_s"][other][4] = None
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(fields))
    assert "node 4 is disconnected" in _error(capsys, path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([SIX, "--time-limit", "-1"], "--time-limit: expected seconds >= 0"),
        ([SIX, "--time-limit", "nan"], "--time-limit: expected seconds >= 0"),
        ([SIX, "--allow", "everything"], "--allow: expected one of skips"),
        ([SIX, "--without", "6"], "--without: expected a node from 0 to 5, got 6"),
        ([SIX, "--from", SIX_ARRANGED], "--from: says what ran before a node was lost"),
        ([SIX, "--without", "0", "--from", SIX_ARRANGED], "paths: missing"),
        ([SIX, "--fixed-stages", SIX], "partitions: missing"),
        ([SIX, "--most-in-stage-delay", "nan"], "expected seconds >= 0 or a file"),
        ([SIX, "--most-in-stage-delay", "nowhere"], "No such file"),
        ([SIX, "--most-in-stage-delay", "0.1"], "no arrangement was found"),
        ([CASES], "Is a directory"),
        (["nowhere.json"], "No such file"),
    ],
)
def test_wrong_options_end_in_one_line(
    argv: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _error(capsys, *argv)
