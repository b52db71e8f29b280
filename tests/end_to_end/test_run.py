"""Real runs through the command line: train, kill a rank, resume, stop, fall back."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.events import (
    Alert,
    CheckpointSaved,
    Event,
    RankExited,
    RankStarted,
    RunResumed,
    StepFinished,
    StepPlanned,
    StepSummarized,
)
from trimtab.monitor.store import EventStore

pytestmark = [pytest.mark.workers, pytest.mark.slow]

E = TypeVar("E", bound=Event)

_NUM_STEPS = 100
_JOB = """\
name: tiny
num_ranks: 2
layout: {dp: 2}
model:
  name: tiny
  num_layers: 1
  hidden: 32
  ffn_hidden: 64
  num_heads: 4
  num_kv_heads: 4
  head_dim: 8
  vocab: 259
  max_seq_tokens: 256
cluster:
  name: here
  nodes:
    - name: here
      count: 1
      gpus_per_node: 2
      island: here
      gpu: {name: cpu, memory_gib: 4, memory_gb_per_s: 10}
      intra_node: {gb_per_s: 1, latency_us: 10}
      nics: [{kind: loopback, count: 1, gbit_per_s: 8, latency_us: 10}]
profile:
  model: tiny
  num_gpus: 2
  gpus_per_node: 2
  quadratic_ms: 1.0e-4
  linear_ms: 0.01
  fixed_ms: 1.0
  alltoall_mb_per_token: 0.001
  v_gb_per_s: {"2": 0.1}
  token_cap: 200
step_planning: {time_limit_s: 0, refine_every_steps: 0}  # so that runs repeat exactly
data:
  sources: [{path: documents}]
  max_seq_tokens: 256
  held_out_fraction: 0.2
training:
  num_steps: 100
  global_batch_seqs: 6
  learning_rate: 2.0e-3
  decay: constant
  precision: fp32
checkpoint: {every_steps: 20, keep: 3}
"""


class Trimtab:
    """The command line, with runs in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.job = folder / "job.yaml"
        self.job.write_text(_JOB)
        documents = folder / "documents"
        documents.mkdir()
        for index in range(30):
            text = "".join(f"line {n} of document {index}\n" for n in range(1 + index * 7 % 12))
            (documents / f"{index:02d}.txt").write_text(text)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("trimtab")), *words],
            env={**os.environ, "TRIMTAB_RUNS_DIR": str(self.runs)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    @property
    def run(self) -> Path:
        (run,) = self.runs.iterdir()
        return run

    def events(self, kind: type[E]) -> list[E]:
        path = self.run / "events.db"
        with EventStore.open(path) as store:
            events: Iterator[Any] = store.all(kinds=(kind,))
            return list(events)

    def losses(self) -> dict[int, float]:
        """By step; a step that ran twice counts as it ran last."""
        return {event.step: event.loss for event in self.events(StepSummarized)}

    def wait_for_step(self, step: int) -> None:
        last = 0
        while last < step:
            time.sleep(0.05)
            if any(self.runs.glob("*/events.db")):
                last = max((each.step for each in self.events(StepSummarized)), default=0)


@pytest.fixture
def trimtab(tmp_path: Path) -> Trimtab:
    return Trimtab(tmp_path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Trimtab:
    """A run that nothing happens to."""
    trimtab = Trimtab(tmp_path_factory.mktemp("unbroken"))
    code, output = trimtab("submit", str(trimtab.job), "--wait")
    assert code == 0, output
    return trimtab


def test_a_run_reports_every_step_of_every_rank(unbroken: Trimtab) -> None:
    steps = list(range(1, _NUM_STEPS + 1))
    assert [event.step for event in unbroken.events(StepSummarized)] == steps
    assert [event.step for event in unbroken.events(StepPlanned)] == steps
    finished = {(event.step, event.rank) for event in unbroken.events(StepFinished)}
    assert finished == {(step, rank) for step in steps for rank in (0, 1)}
    assert [event.step for event in unbroken.events(CheckpointSaved)] == [20, 40, 60, 80, 100]
    started = unbroken.events(RankStarted)
    assert {event.peak_flop_per_s for event in started} == {None}
    assert all("CPU" in event.peak_note for event in started)


def test_a_run_executes_plans_of_mixed_degrees_on_all_tokens(unbroken: Trimtab) -> None:
    plans = unbroken.events(StepPlanned)
    assert {degree for event in plans for degree in event.plan.degrees} == {1, 2}
    for event in plans:
        done = [e.num_tokens for e in unbroken.events(StepFinished) if e.step == event.step]
        assert sum(done) == sum(event.lengths)


def test_a_killed_rank_is_named_and_the_run_resumes_with_the_same_losses(
    trimtab: Trimtab, unbroken: Trimtab
) -> None:
    words = ("restart.max_restarts=0", "--wait")
    submit = trimtab.start("submit", str(trimtab.job), *words)
    trimtab.wait_for_step(45)
    victim = next(event for event in trimtab.events(RankStarted) if event.rank == 1)
    os.kill(victim.pid, signal.SIGKILL)
    output, _ = submit.communicate(timeout=60)

    assert submit.returncode == 1
    assert re.search(r"rank 1.*SIGKILL", output), output
    assert "--resume" in output
    exited = {event.rank: event for event in trimtab.events(RankExited)}
    assert exited[1].signal == "SIGKILL"

    code, output = trimtab("submit", "--resume", trimtab.run.name, "--wait")
    assert code == 0, output
    (resumed,) = trimtab.events(RunResumed)
    assert resumed.step in (40, 60, 80)
    assert trimtab.losses() == unbroken.losses()


def test_warm_spares_take_the_place_of_killed_ranks(
    trimtab: Trimtab, unbroken: Trimtab
) -> None:
    words = ("--warm-spares", "training.num_steps=100000")
    submit = trimtab.start("submit", str(trimtab.job), *words, "--wait")
    trimtab.wait_for_step(25)
    while len(spares := spares_of(trimtab.run)) < 2:
        time.sleep(0.05)
    started = trimtab.events(RankStarted)
    os.kill(started[0].pid, signal.SIGKILL)
    while len(trimtab.events(RankStarted)) < 4:
        assert submit.poll() is None
        time.sleep(0.05)

    assert {event.pid for event in trimtab.events(RankStarted)[2:]} == spares
    trimtab.wait_for_step(100)
    while len(spares_of(trimtab.run)) < 4:  # the two are ranks now, beside two new ones
        time.sleep(0.05)
    code, output = trimtab("cancel", trimtab.run.name, "--wait")
    submit.communicate(timeout=60)
    assert code == 0, output
    assert not spares_of(trimtab.run)
    losses = trimtab.losses()
    assert {step: losses[step] for step in unbroken.losses()} == unbroken.losses()


def spares_of(run: Path) -> set[int]:
    """Processes that wait to become a rank of a run, or have become one."""
    ours = [str(run), "--warm"]
    return {
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if (process.info["cmdline"] or [])[-2:] == ours
        and process.info["status"] != psutil.STATUS_ZOMBIE
    }


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    trimtab: Trimtab, unbroken: Trimtab
) -> None:
    code, output = trimtab("submit", str(trimtab.job), "training.num_steps=40", "--wait")
    assert code == 0, output
    newest = trimtab.run / "checkpoints" / "step-00000040"
    (largest,) = sorted(newest.glob("*.distcp"), key=lambda file: file.stat().st_size)[-1:]
    os.truncate(largest, largest.stat().st_size // 2)

    code, output = trimtab(
        "submit", "--resume", trimtab.run.name, "training.num_steps=60", "--wait"
    )

    assert code == 0, output
    (resumed,) = trimtab.events(RunResumed)
    assert resumed.step == 20
    assert any("truncated" in event.message for event in trimtab.events(Alert))
    assert trimtab.losses() == {step: unbroken.losses()[step] for step in range(1, 61)}


def test_cancel_saves_the_step_under_way_and_leaves_no_process(
    trimtab: Trimtab, unbroken: Trimtab
) -> None:
    submit = trimtab.start("submit", str(trimtab.job), "training.num_steps=5000", "--wait")
    trimtab.wait_for_step(5)
    code, output = trimtab("cancel", trimtab.run.name, "--wait")
    submit.communicate(timeout=60)

    assert code == 0, output
    saved = trimtab.events(CheckpointSaved)[-1].step
    assert saved == max(trimtab.losses())
    for event in trimtab.events(RankStarted):
        assert not Path(f"/proc/{event.pid}").exists()
    shared = trimtab.losses().keys() & unbroken.losses().keys()
    assert {step: trimtab.losses()[step] for step in shared} == {
        step: unbroken.losses()[step] for step in shared
    }


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """Three steps, in a folder of a hostile name and with secrets in the environment."""

    trimtab: Trimtab
    secrets: tuple[str, ...]
    code: int
    output: str
    """Of a dry run too."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    folder = tmp_path_factory.mktemp("short") / "runs of 'mine' #1 ?a=b%20c $(x)"
    folder.mkdir()
    trimtab = Trimtab(folder)
    secrets = {"WANDB_API_KEY": "f00d" * 10, "HF_TOKEN": "hf_c0ffee"}
    words = ("submit", str(trimtab.job), "training.num_steps=3", "training.warmup_steps=10")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        _, dry_run = trimtab(*words, "--dry-run")
        code, output = trimtab(*words, "--wait")
    return ShortRun(
        trimtab=trimtab, secrets=tuple(secrets.values()), code=code, output=dry_run + output
    )


def test_a_folder_of_any_name_will_do(short: ShortRun) -> None:
    assert short.code == 0, short.output
    assert sorted(short.trimtab.losses()) == [1, 2, 3]


def test_a_run_may_end_within_its_warm_up(short: ShortRun) -> None:
    rates = [event.learning_rate for event in short.trimtab.events(StepSummarized)]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4])


def test_secrets_appear_in_no_file_and_no_output(short: ShortRun) -> None:
    for secret in short.secrets:
        assert secret not in short.output
        for file in short.trimtab.run.rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rat=1", "learning_rate"),
        ("cluster.nodes[0].intra_node.gb_per_s=-1", "gb_per_s"),
        ("data.sources=[{path: empty}]", "empty"),
        ("num_ranks=3", "2 devices"),
        ("profile.token_cap=100", "token"),
    ],
    ids=["unknown-key", "negative-bandwidth", "empty-folder", "too-many-ranks", "too-long"],
)
def test_bad_input_is_one_line_and_starts_nothing(
    trimtab: Trimtab, override: str, words: str
) -> None:
    (trimtab.job.parent / "empty").mkdir()
    code, output = trimtab("submit", str(trimtab.job), override, "--wait")

    assert code == 2
    assert output.count("\n") == 1
    assert output.startswith("error: ")
    assert words in output
    assert not trimtab.runs.exists() or not list(trimtab.runs.iterdir())
