"""Actors that start a node's agent and keep the node's resources while it lives."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trimtab.launch import locks
from trimtab.launch.agent import NODE_VARIABLE, TOKEN_VARIABLE
from trimtab.launch.api import AgentOrder, AllocatedNode
from trimtab.launch.ray.actor_watch import ACTOR_VARIABLE
from trimtab.launch.ray.demand import CPU, GPU

_ORPHAN_GRACE_S: Final = 30.0
"""How long ranks whose agent was killed may take to save and end."""
_END_S: Final = 50.0
"""How long the agents of all nodes may take to be ended, locks and kills included."""
_STRAGGLER_S: Final = 15.0
"""How long agents may report after the first of those started with them has ended."""


class AgentHost:
    """Runs in a process of Ray's on the node; two of its methods run at the same time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self, argv: Sequence[str], environment: Mapping[str, str], run_dir: str
    ) -> int | str:
        """Run the agent to its end; its exit code, or why it cannot be started.

        It is not tied to this process: it sees by itself when that is gone, and its ranks can
        still write a checkpoint then.
        """
        logs = Path(run_dir) / "logs"
        try:
            with (logs / "agents.log" if logs.is_dir() else Path(os.devnull)).open("ab") as log:
                self._process = subprocess.Popen(
                    argv,
                    env={**os.environ, **environment, ACTOR_VARIABLE: str(os.getpid())},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            return str(error)
        return self._process.wait()

    def end(self, run_dir: str, node: str) -> None:
        """End the agent at once, and what it leaves behind."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.kill()
        self._process.wait()
        with locks.open_node_lock(Path(run_dir), node) as lock:
            locks.take_over(lock, grace_s=_ORPHAN_GRACE_S)


class RayStep:
    """Agents that were started together, each by an actor on its bundle."""

    def __init__(self, order: AgentOrder, *, run_dir: str) -> None:
        """Start none yet.

        Args:
            order: What the agents are told.
            run_dir: The run directory.
        """
        import ray

        self._ray = ray
        self._order = order
        self._run_dir = run_dir
        self._actors: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        """The node of every `AgentHost.run` that has not ended as far as `poll` knows."""
        self._ended: list[str] = []
        self._first_end_s = 0.0

    def start(
        self, node: AllocatedNode, *, group: Any, bundle: int, demand: Mapping[str, float]
    ) -> None:
        """Start the agent of one node, with all that its bundle holds; returns at once."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        others = {name: much for name, much in demand.items() if name not in (CPU, GPU)}
        actor = (
            self._ray.remote(AgentHost)
            .options(
                num_cpus=demand.get(CPU, 0),
                num_gpus=demand.get(GPU, 0),
                resources=others,
                max_restarts=0,
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=bundle
                ),
            )
            .remote()
        )
        environment = {NODE_VARIABLE: node.name, TOKEN_VARIABLE: self._order.token}
        self._actors[node.name] = actor
        running = actor.run.remote(self._order.argv, environment, self._run_dir)
        self._runs[running] = node.name

    def poll(self) -> str | None:
        """Why it has ended: all agents have, or one has and the others had time to report."""
        self._note_ends()
        if not self._ended:
            return None
        if self._runs and time.monotonic() - self._first_end_s < _STRAGGLER_S:
            return None
        return "; ".join(self._ended)

    def end(self) -> None:
        """End what still runs, at once; on a dead node there is nobody left to ask."""
        self._note_ends()
        asked = [
            self._actors[node].end.remote(self._run_dir, node) for node in self._runs.values()
        ]
        if asked:
            self._ray.wait(asked, num_returns=len(asked), timeout=_END_S, fetch_local=False)
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._runs.clear()

    def _note_ends(self) -> None:
        if not self._runs:
            return
        runs = list(self._runs)
        ended, _ = self._ray.wait(runs, num_returns=len(runs), timeout=0)
        for run in ended:
            if not self._ended:
                self._first_end_s = time.monotonic()
            self._ended.append(f"node {self._runs.pop(run)}: {self._how(run)}")

    def _how(self, run: Any) -> str:
        try:
            outcome = self._ray.get(run)
        except self._ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[0]
        if isinstance(outcome, str):
            return f"the agent could not be started: {outcome}"
        return f"the agent ended with {outcome}; see logs/agents.log"
