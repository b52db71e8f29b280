"""Real ranks as an agent starts them, cold and warm."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from trimtab.core.errors import ExitCode
from trimtab.core.events import Alert, AnyEvent, CheckpointSaved, RankStarted, StepSummarized
from trimtab.core.job import Request
from trimtab.core.plan import Layout
from trimtab.launch.api import RankExit
from trimtab.launch.processes import RankOrder, RankProcesses
from trimtab.launch.warm import Spare
from trimtab.monitor.collector import Collector
from trimtab.orchestrator.config import load_job
from trimtab.orchestrator.rundir import request_text

pytestmark = [pytest.mark.workers, pytest.mark.slow]

JOB = """\
name: tiny
num_ranks: 2
model: {name: tiny, num_layers: 1, hidden: 32, ffn_hidden: 64, num_heads: 4, num_kv_heads: 4,
        head_dim: 8, vocab: 259, max_seq_tokens: 256}
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
profile: {model: tiny, num_gpus: 2, gpus_per_node: 2, quadratic_ms: 1.0e-4, linear_ms: 0.01,
          fixed_ms: 1.0, alltoall_mb_per_token: 0.001, v_gb_per_s: {"2": 0.1}, token_cap: 256}
data: {sources: [{path: documents}], max_seq_tokens: 256, held_out_fraction: 0.2}
training: {num_steps: 4, global_batch_seqs: 6, learning_rate: 2.0e-3, precision: fp32}
"""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "CUDA_VISIBLE_DEVICES": "",
}


class Ranks:
    """The ranks of a job, and the events they send."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.run_dir = folder / "run"
        self.events: list[AnyEvent] = []
        self._collector = Collector("token")
        self._processes = RankProcesses()
        self._spares: list[Spare] = []
        self._store = socket.create_server(("127.0.0.1", 0))
        (folder / "documents").mkdir()
        for index in range(12):
            (folder / "documents" / f"{index}.txt").write_text(f"document {index}\n" * 9)
        (folder / "job.yaml").write_text(JOB)
        job = load_job(folder / "job.yaml", list(overrides))
        self._argv = (
            sys.executable,
            "-P",
            "-m",
            "trimtab.orchestrator.rank",
            str(self.run_dir),
        )
        self._num_ranks = job.num_ranks
        request = Request(
            scheduler="local",
            run_dir=str(self.run_dir),
            argv=self._argv,
            environment=(),
            num_ranks=job.num_ranks,
            num_nodes=1,
            job=job,
            layout=Layout(dp=job.num_ranks),
        )
        self.run_dir.mkdir()
        (self.run_dir / "request.json").write_text(request_text(request))

    def prepare_spares(self) -> None:
        environment = {**os.environ, **ENVIRONMENT}
        self._spares = [
            Spare(self._argv, environment=environment, held_fds=())
            for _ in range(self._num_ranks)
        ]

    def start(self) -> None:
        for rank in range(self._num_ranks):
            order = self._order(rank)
            if self._spares:
                process = self._spares.pop().hand_over(order)
                assert process is not None
                self._processes.adopt(order, process)
            else:
                self._processes.start(order)

    def until_ended(self) -> list[RankExit]:
        exits: list[RankExit] = []
        while self._processes.running:
            exits += self._processes.poll()
            self.events += self._collector.drain()
            time.sleep(0.02)
        self._collector.close()
        self.events += self._collector.drain()
        return sorted(exits, key=lambda ended: ended.rank)

    def until(self, kind: type[AnyEvent]) -> None:
        while not any(isinstance(event, kind) for event in self.events):
            assert self._processes.running
            self.events += self._collector.drain()
            time.sleep(0.02)

    def stop(self) -> None:
        self._processes.stop()

    def log(self, rank: int) -> str:
        return self._order(rank).log.read_text()

    def close(self) -> None:
        for spare in self._spares:
            spare.end()
        self._processes.kill()
        self._processes.wait()
        self._store.close()

    def _order(self, rank: int) -> RankOrder:
        fd = self._store.fileno()
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "RANK": str(rank),
            "WORLD_SIZE": str(self._num_ranks),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(self._num_ranks),
            "TRIMTAB_COLLECTOR": self._collector.address,
            "TRIMTAB_COLLECTOR_TOKEN": "token",
            "TRIMTAB_RENDEZVOUS": f"tcp://127.0.0.1:{self._store.getsockname()[1]}",
            "TRIMTAB_REQUEST": str(self.run_dir / "request.json"),
            **({"TRIMTAB_STORE_FD": str(fd)} if rank == 0 else {}),
        }
        return RankOrder(
            rank=rank,
            argv=self._argv,
            folder=self.run_dir,
            environment=environment,
            log=self.run_dir / "logs" / f"rank-{rank:04d}.log",
            attempt=1,
            inherited_fds=(fd,) if rank == 0 else (),
        )


@pytest.fixture
def ranks_of(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """`ranks_of("a.b=c", ...)`: the ranks of the job with these changes."""
    with ExitStack() as stack:

        def make(*overrides: str) -> Ranks:
            ranks = Ranks(tmp_path, *overrides)
            stack.callback(ranks.close)
            return ranks

        yield make


def of(kind: type[Any], events: list[AnyEvent]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_warm_ranks_train_and_stop_as_cold_ones_do(ranks_of: Callable[..., Ranks]) -> None:
    ranks = ranks_of("training.num_steps=100000")
    ranks.prepare_spares()
    ranks.start()
    ranks.until(StepSummarized)
    ranks.stop()
    exits = ranks.until_ended()

    assert exits == [RankExit(rank=rank, exit_code=0) for rank in (0, 1)], ranks.log(0)
    last = of(StepSummarized, ranks.events)[-1].step
    assert [event.step for event in of(CheckpointSaved, ranks.events)] == [last]
    assert {event.rank for event in of(RankStarted, ranks.events)} == {0, 1}
    assert f"ends after step {last} of 100000" in ranks.log(1)


def test_a_rank_without_memory_ends_with_what_to_do_and_is_not_to_be_restarted(
    ranks_of: Callable[..., Ranks],
) -> None:
    ranks = ranks_of("num_ranks=1", f"model.ffn_hidden={2**40}")
    ranks.start()
    (ended,) = ranks.until_ended()

    assert ended.exit_code == ExitCode.DO_NOT_RESTART
    assert ranks.log(0).splitlines()[-1].startswith("error: rank 0 ran out of memory (")
    (alert,) = of(Alert, ranks.events)
    assert alert.severity == "critical"
    assert "step_planning.token_cap" in alert.message


def test_gpus_that_torch_does_not_see_are_told_before_the_ranks_meet(
    ranks_of: Callable[..., Ranks],
) -> None:
    ranks = ranks_of("num_ranks=1", "cluster.nodes.0.gpu.name=NVIDIA H100 SXM5 80GB")
    ranks.start()
    (ended,) = ranks.until_ended()

    assert ended.exit_code == ExitCode.USAGE
    last = ranks.log(0).splitlines()[-1]
    assert last.startswith(f"error: cluster: node {socket.gethostname()} is to have a GPU")
    assert "sees 0 there with CUDA_VISIBLE_DEVICES=''; install a torch build" in last
