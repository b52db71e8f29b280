import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.launch.ray.actor_watch import ACTOR_VARIABLE, ActorWatch

ACTOR = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1], sys.argv[2]],
    env={**os.environ, "TRIMTAB_ACTOR_PID": str(os.getpid())},
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
print(child.stdout.readline(), end="", flush=True)
sys.stdin.readline()
os._exit(0)
"""
AGENT = """
import os, sys, time
from pathlib import Path
from trimtab.launch.ray.actor_watch import ActorWatch
watch = ActorWatch.of_this_process()
print(watch.failure(), flush=True)
while watch.failure() is None:
    time.sleep(0.01)
draft = Path(sys.argv[1] + ".draft")
draft.write_text(watch.failure())
draft.rename(sys.argv[1])
"""


def test_a_process_that_no_actor_has_started_has_none_to_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ACTOR_VARIABLE, raising=False)
    assert ActorWatch.of_this_process() is None


def test_the_actors_end_is_noticed(tmp_path: Path) -> None:
    noticed = tmp_path / "noticed"
    actor = subprocess.Popen(
        [sys.executable, "-c", ACTOR, AGENT, str(noticed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with actor:
        assert actor.stdout is not None
        assert actor.stdout.readline() == "None\n"
        assert actor.stdin is not None
        actor.stdin.write("die\n")
    while not noticed.exists():
        time.sleep(0.01)  # the test's own time limit ends it
    assert noticed.read_text() == (
        f"the Ray actor that kept the node for the job (pid {actor.pid}) has died"
    )
