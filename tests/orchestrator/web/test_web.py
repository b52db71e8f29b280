import asyncio
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from starlette.testclient import TestClient

from trimtab.core.errors import InputError
from trimtab.core.events import (
    AnyEvent,
    AttemptEnded,
    CoefficientsRefined,
    NodeLost,
    RankExited,
    StepFinished,
)
from trimtab.core.job import JobState
from trimtab.core.profile import StepProfile
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.web.server import STATIC, bind, create_app, make_server


class Sample(Protocol):
    root: Path
    job_id: str
    dir: RunDir

    def start(self, *, peak: float | None = None) -> "Sample": ...
    def resume(self, *, peak: float | None = None, num_ranks: int = 4) -> None: ...
    def become_script(self, *argv: str) -> None: ...
    def steps(self, first: int, last: int, *, num_ranks: int = 4) -> "Sample": ...
    def append(self, *events: AnyEvent) -> None: ...
    def finish(self, state: JobState = ..., *, reason: str = ...) -> None: ...


@contextmanager
def client_of(sample: Sample) -> Iterator[TestClient]:
    with TestClient(create_app(sample.root), base_url="http://127.0.0.1") as client:
        yield client


def get(sample: Sample, path: str) -> Any:
    with client_of(sample) as client:
        return client.get(path)


def snapshot(sample: Sample, query: str = "") -> dict[str, Any]:
    response = get(sample, f"/api/runs/{sample.job_id}{query}")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_list_has_every_run_with_its_state(sample: Sample) -> None:
    sample.finish(JobState.FAILED, reason="rank 2 was killed by SIGKILL")
    (sample.root / "20200101-000000-broken").mkdir()
    (sample.root / "20200101-000000-broken" / "state.json").write_text("{")
    runs = get(sample, "/api/runs").json()["runs"]
    assert [(run["job_id"], run["state"]) for run in runs] == [
        (sample.job_id, "failed"),
        ("20200101-000000-broken", "broken"),
    ]
    assert runs[0]["reason"] == "rank 2 was killed by SIGKILL"


def test_a_run_without_events_is_shown_as_it_is(sample: Sample) -> None:
    run = snapshot(sample)
    assert run["id"] == 0
    assert run["series"]["step"] == []
    assert run["head"]["state"] == "running"
    assert run["head"]["num_steps_done"] == 0
    assert run["head"]["mfu"]["reason"] == "the ranks have not told their devices yet"


def test_a_run_whose_store_is_not_there_yet_is_shown_too(sample: Sample) -> None:
    for file in sample.root.rglob("events.db*"):
        file.unlink()
    assert snapshot(sample)["series"]["step"] == []


def test_the_series_holds_each_finished_step(sample: Sample) -> None:
    run = snapshot(sample.start().steps(1, 20))
    series = run["series"]
    assert series["step"] == list(range(1, 21))
    assert series["bucket"] == 1
    parts = [sum(part[4] for part in series["parts"])]
    assert parts == pytest.approx([series["step_s"][4]])
    assert run["evaluations"][0]["step"] == 20
    assert run["checkpoints"][0]["path"] == "checkpoints/step-000020"
    assert run["head"]["productive_s"] == pytest.approx(sum(series["step_s"]))
    assert [note["severity"] for note in run["notes"]] == ["info", "warning"]


def test_parts_are_a_mean_over_ranks_or_of_one_rank(sample: Sample) -> None:
    sample.start().steps(1, 3)
    mean = snapshot(sample)["series"]["parts"]
    single = [snapshot(sample, f"?rank={rank}")["series"]["parts"] for rank in range(4)]
    assert mean[1][2] == pytest.approx(sum(parts[1][2] for parts in single) / 4)
    assert len({parts[1][2] for parts in single}) == 4


def test_mfu_is_blank_with_the_ranks_own_reason(sample: Sample) -> None:
    run = snapshot(sample.start().steps(1, 2))
    assert run["series"]["mfu"] == [None, None]
    assert run["head"]["mfu"]["reason"] == (
        "the peak of 'CPU process' in fp32 is unknown: the cluster file gives none"
    )


def test_mfu_is_model_flops_over_time_and_the_peak_of_all_ranks(sample: Sample) -> None:
    run = snapshot(sample.start(peak=1e12).steps(1, 1))
    flops_per_s = 9e6 * run["series"]["tokens_per_s"][0]
    assert run["series"]["mfu"] == [pytest.approx(flops_per_s / 4e12)]
    assert run["head"]["mfu"]["peak"] == "4 x 1 TFLOP/s dense fp32 (datasheet)"


def test_many_steps_are_merged_but_the_newest_are_not(sample: Sample) -> None:
    series = snapshot(sample.start().steps(1, 1_500))["series"]
    assert series["num_merged"] == len(series["step"]) - 100
    assert 500 <= len(series["step"]) <= 600
    assert series["step"][0] == series["bucket"] == 3
    assert series["step"][-100:] == list(range(1_401, 1_501))


def test_a_resumed_run_shows_its_steps_as_they_ran_last(sample: Sample) -> None:
    sample.start().steps(1, 10)
    sample.resume()
    run = snapshot(sample.steps(6, 7))
    assert run["series"]["step"] == [1, 2, 3, 4, 5, 6, 7]
    assert sum(part[6] for part in run["series"]["parts"]) == pytest.approx(
        run["series"]["step_s"][6]
    )
    assert run["head"]["num_steps_done"] == 7


def test_a_restart_on_fewer_ranks_keeps_the_earlier_steps_as_they_ran(sample: Sample) -> None:
    sample.start(peak=1e9).steps(1, 4)
    reason, decision = "the node n2 is lost", "starting again from the last checkpoint"
    sample.append(
        NodeLost(time_s=9.0, node="n2", reason="its agent does not answer"),
        AttemptEnded(time_s=9.0, attempt=1, reason=reason, decision=decision),
    )
    sample.resume(peak=1e9, num_ranks=2)
    run = snapshot(sample.steps(3, 4, num_ranks=2))
    assert run["head"]["num_ranks"] == 2
    assert run["head"]["num_steps_done"] == 4
    assert [rank["rank"] for rank in run["ranks"]] == [0, 1]
    shares = [mfu * step_s for mfu, step_s in zip(*_columns(run, "mfu", "step_s"), strict=True)]
    flops = [9e6 * tokens for tokens in _tokens(run)]
    peaks = [flop / share for flop, share in zip(flops, shares, strict=True)]
    assert peaks == pytest.approx([4e9, 4e9, 2e9, 2e9])
    plans = [get(sample, f"/api/runs/{sample.job_id}/plans/{step}").json() for step in (2, 3)]
    assert [plan["num_ranks"] for plan in plans] == [4, 2]
    texts = [note["text"] for note in run["notes"]]
    assert "attempt 1: 4 ranks, layout tp1 pp1 dp4, on n1, n2" in texts
    assert "node n2 is lost: its agent does not answer" in texts
    assert f"attempt 1 ended: {reason}; {decision}" in texts


def _columns(run: dict[str, Any], *names: str) -> list[list[float]]:
    return [run["series"][name] for name in names]


def _tokens(run: dict[str, Any]) -> list[float]:
    rates, times = _columns(run, "tokens_per_s", "step_s")
    return [rate * step_s for rate, step_s in zip(rates, times, strict=True)]


def test_a_script_is_shown_as_what_it_is(sample: Sample) -> None:
    sample.become_script("python", "my train.py", "--lr", "1e-3")
    run = snapshot(sample.start())
    assert run["head"]["script"] == "python 'my train.py' --lr 1e-3"
    assert (run["head"]["name"], run["head"]["num_steps"]) == ("my script", None)
    assert len(run["ranks"]) == 4
    assert run["head"]["mfu"]["reason"] == "Trimtab does not know the steps of a script"
    missing = get(sample, f"/api/runs/{sample.job_id}/plans/1")
    assert (missing.status_code, missing.json()) == (404, {"error": "step 1 has no plan yet"})


def test_a_dead_rank_and_its_last_words_are_noted(sample: Sample) -> None:
    sample.start().append(
        RankExited(time_s=9.0, rank=2, exit_code=None, signal="SIGKILL", last_words="")
    )
    run = snapshot(sample)
    assert run["ranks"][2]["state"] == "failed"
    assert run["notes"][-1]["text"] == "rank 2 was killed by SIGKILL"
    assert run["notes"][-1]["severity"] == "critical"


def test_refined_costs_are_noted(sample: Sample) -> None:
    profile = StepProfile(
        name="tiny", num_gpus=4, gpus_per_node=4, quadratic_s=0.0, linear_s=1e-3, fixed_s=0.0,
        alltoall_bytes_per_token=0.0, bandwidths=(), token_cap=9,
    )  # fmt: skip
    sample.start().append(
        CoefficientsRefined(
            time_s=9.0, step=21, profile=profile, num_groups=80, error_before=0.25,
            error_after=0.06,
        )
    )  # fmt: skip
    note = snapshot(sample)["notes"][-1]
    assert "from step 21 on, by 80 measured groups: predictions were off by 25%" in note["text"]
    assert note["severity"] == "info"


def test_a_plan_has_every_group_with_its_predicted_time(sample: Sample) -> None:
    sample.start().steps(1, 3)
    plan = get(sample, f"/api/runs/{sample.job_id}/plans/3").json()
    assert plan["num_ranks"] == 4
    waves = plan["waves"]
    assert sum(g["num_sequences"] for wave in waves for g in wave["groups"]) == 12
    assert sum(g["num_tokens"] for wave in waves for g in wave["groups"]) == plan["num_tokens"]
    for wave in waves:
        assert wave["seconds"] == max(group["seconds"] for group in wave["groups"])
    assert sum(wave["seconds"] for wave in waves) + 0.05 == pytest.approx(plan["predicted_s"])
    assert plan["measured_s"] > 0


def test_a_step_without_a_plan_says_so(sample: Sample) -> None:
    response = get(sample.start(), f"/api/runs/{sample.job_id}/plans/3")
    assert response.status_code == 404
    assert response.json() == {"error": "step 3 has no plan yet"}
    assert get(sample, f"/api/runs/{sample.job_id}/plans/{10**30}").status_code == 404


@pytest.mark.parametrize(
    "run_id",
    ["..", "%2e%2e", "..%2f..%2fetc", ".hidden", "a%00b", "a%5cb", "x" * 300, "no-such-run"],
)
def test_what_is_no_run_id_is_not_found(sample: Sample, run_id: str) -> None:
    for path in (f"/api/runs/{run_id}", f"/api/runs/{run_id}/stream"):
        assert get(sample, path).status_code == 404


@pytest.mark.parametrize("path", ["/static/../server.py", "/static/%2e%2e/server.py"])
def test_files_beside_the_static_ones_are_not_served(sample: Sample, path: str) -> None:
    assert get(sample, path).status_code == 404


def test_a_run_directory_of_another_version_is_explained(sample: Sample) -> None:
    path = sample.dir.path / "state.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))
    response = get(sample, f"/api/runs/{sample.job_id}")
    assert response.status_code == 409
    assert "it has schema 9, this Trimtab reads 1" in response.json()["error"]


def test_a_rank_that_is_no_number_is_refused(sample: Sample) -> None:
    response = get(sample, f"/api/runs/{sample.job_id}?rank=two")
    assert response.status_code == 400
    assert response.json()["error"].startswith("rank: expected a whole number")


@pytest.mark.parametrize("path", ["/", "/runs/any", "/api/runs", "/static/app.css", "/nothing"])
def test_every_answer_carries_the_security_headers(sample: Sample, path: str) -> None:
    headers = get(sample, path).headers
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8517", 200),
        ("localhost:9000", 200),
        ("[::1]:8517", 200),
        ("192.168.1.7", 200),
        ("evil.example", 421),
        ("evil.example:8517", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_only_requests_that_name_this_machine_are_answered(
    sample: Sample, host: str, status: int
) -> None:
    with client_of(sample) as client:
        assert client.get("/api/runs", headers={"host": host}).status_code == status


def test_the_page_names_no_outside_address() -> None:
    own = [path for path in STATIC.rglob("*") if path.suffix in (".html", ".css", ".js")]
    assert len(own) >= 8
    for path in own:
        if path.parent.name != "vendor":
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"""https?:|["'(]//""", text)


def test_a_busy_port_is_one_clear_line() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port: cannot listen on port {port} of 127"):
            bind("127.0.0.1", port)


@contextmanager
def served(sample: Sample) -> Iterator[str]:
    """A real server: the test client cannot read an endless answer."""
    listener = bind("127.0.0.1", 0)
    server = make_server(sample.root, host="127.0.0.1")
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def updates(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Id and content of each update of a stream."""
    event_id = -1
    for line in lines:
        if line.startswith("id: "):
            event_id = int(line[4:])
        if line.startswith("data: "):
            yield event_id, json.loads(line[6:])


@contextmanager
def stream_of(
    sample: Sample, query: str, **headers: str
) -> Iterator[Iterator[tuple[int, dict[str, Any]]]]:
    with served(sample) as address:
        url = f"{address}/api/runs/{sample.job_id}/stream?{query}"
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            yield updates(line.decode().rstrip("\n") for line in response)


def test_new_steps_are_sent_as_they_are_stored(sample: Sample) -> None:
    after = snapshot(sample.start().steps(1, 5))["id"]
    with stream_of(sample, f"after={after}") as stream:
        _, first = next(stream)
        assert first["series"]["step"] == []
        sample.steps(6, 7)
        event_id, change = next(stream)
    assert change["series"]["step"] == [6, 7]
    assert change["head"]["num_steps_done"] == 7
    assert event_id == change["id"] > after


def test_a_stream_goes_on_after_the_last_event_the_browser_received(sample: Sample) -> None:
    after = snapshot(sample.start().steps(1, 5))["id"]
    sample.steps(6, 6)
    with stream_of(sample, "after=0", **{"Last-Event-ID": str(after)}) as stream:
        _, change = next(stream)
    assert change["series"]["step"] == [6]


def test_a_late_rank_changes_the_mean_of_a_step_already_sent(sample: Sample) -> None:
    sample.start().steps(1, 2)
    after = snapshot(sample)["id"]
    late = StepFinished(time_s=1.0, step=2, rank=3, step_s=9.0, parts=(), num_tokens=1)
    with stream_of(sample, f"after={after}") as stream:
        next(stream)
        sample.append(late)
        _, change = next(stream)
    assert change["series"]["step"] == [2]


def test_a_stream_of_one_rank_carries_its_parts(sample: Sample) -> None:
    after = snapshot(sample.start().steps(1, 2))["id"]
    with stream_of(sample, f"after={after}&rank=3") as stream:
        next(stream)
        sample.steps(3, 3)
        _, change = next(stream)
    assert change["series"]["parts"] == [
        [part[2]] for part in snapshot(sample, "?rank=3")["series"]["parts"]
    ]


def test_a_resume_asks_the_page_to_load_the_run_again(sample: Sample) -> None:
    after = snapshot(sample.start().steps(1, 10))["id"]
    sample.resume()
    with stream_of(sample, f"after={after}") as stream:
        _, change = next(stream)
    assert change["reset"] is True


def test_the_end_of_a_run_is_sent_though_no_step_follows(sample: Sample) -> None:
    after = snapshot(sample.start().steps(1, 2))["id"]
    with stream_of(sample, f"after={after}") as stream:
        next(stream)
        sample.finish()
        heads = [change["head"]["state"] for _, change in _until_final(stream)]
    assert heads[-1] == "succeeded"


def _until_final(
    stream: Iterator[tuple[int, dict[str, Any]]],
) -> Iterator[tuple[int, dict[str, Any]]]:
    for item in stream:
        yield item
        if item[1]["head"]["ended_s"] is not None:
            return


def test_a_live_page_does_not_keep_the_server_from_ending(sample: Sample) -> None:
    with stream_of(sample.start(), "after=0") as stream:
        next(stream)
    # The server has ended here; had it waited for the page, the test's time limit would tell.
