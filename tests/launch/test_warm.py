"""Real spares of a small program, in the place of a rank that has imported its modules."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trimtab.launch import warm
from trimtab.launch.processes import RankOrder
from trimtab.launch.warm import Spare

PROGRAM = """
import os, socket, sys
from trimtab.launch.warm import await_order
assert sys.argv[1:] == ["a run's folder", "--warm"], sys.argv
if not await_order():
    sys.exit(7)
print(os.getcwd(), flush=True)
print(ascii(sorted(os.environ.items())), file=sys.stderr, flush=True)
print(repr(sys.stdin.read()), flush=True)
if "TRIMTAB_STORE_FD" in os.environ:
    with socket.socket(fileno=int(os.environ["TRIMTAB_STORE_FD"])) as store:
        print("holds port", store.getsockname()[1], "of", store.accept()[1][0])
sys.stdout.flush()
os.execvp("env", ["env"])
"""


@pytest.fixture
def started() -> Iterator[Callable[..., Spare]]:
    """`started()`: a spare, which is gone after the test."""
    with ExitStack() as stack:

        def start(program: str = PROGRAM) -> Spare:
            argv = [sys.executable, "-P", "-c", program, "a run's folder"]
            spare = Spare(argv, environment={**os.environ, "OLD": "1"}, held_fds=())
            stack.callback(spare.end)
            return spare

        yield start


def order(folder: Path, **environment: str) -> RankOrder:
    return RankOrder(
        rank=3,
        argv=("not", "looked", "at"),
        folder=folder,
        environment={"PATH": os.environ["PATH"], **environment},
        log=folder / "logs" / "rank-0003.log",
        attempt=2,
    )


def output(spare: Spare, given: RankOrder) -> list[str]:
    """What the spare has written into the log of its order, to its end."""
    process = spare.hand_over(given)
    assert process is not None
    assert process.wait() == 0, given.log.read_text()
    return given.log.read_text(errors="surrogateescape").splitlines()


def test_a_spare_takes_over_folder_environment_and_log(
    started: Callable[..., Spare], tmp_path: Path
) -> None:
    folder = tmp_path / "it's $(here)"
    folder.mkdir()
    given = order(folder, TOKEN="line\nof a secret \udcff", RANK="3")
    first, cwd, environment, stdin = output(started(), given)[:4]
    assert first.startswith("--- attempt 2:")
    assert environment == ascii(sorted(given.environment.items()))
    assert cwd == str(folder)
    assert stdin == "''"


def test_the_native_side_sees_the_new_environment(
    started: Callable[..., Spare], tmp_path: Path
) -> None:
    lines = output(started(), order(tmp_path, GLOO_SOCKET_IFNAME="lo"))
    assert "GLOO_SOCKET_IFNAME=lo" in lines
    assert not any(line.startswith("OLD=") for line in lines)


def test_the_socket_of_the_store_is_passed_on(
    started: Callable[..., Spare], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        given = order(tmp_path, TRIMTAB_STORE_FD=str(store.fileno()))
        process = started().hand_over(given)
    assert process is not None
    with socket.create_connection(("127.0.0.1", port)):
        assert process.wait() == 0, given.log.read_text()
    assert f"holds port {port} of 127.0.0.1" in given.log.read_text()


def test_an_order_of_any_size_arrives_whole(
    started: Callable[..., Spare], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_HAND_OVER_S", 60.0)
    values = {f"V{index}": chr(0xE4) * 20_000 for index in range(20)}
    lines = set(output(started(), order(tmp_path, **values)))
    assert {f"{name}={value}" for name, value in values.items()} <= lines


def test_an_order_waits_for_a_spare_that_still_imports(
    started: Callable[..., Spare], tmp_path: Path
) -> None:
    spare = started("import time; time.sleep(1)\n" + PROGRAM)
    assert output(spare, order(tmp_path))[1] == str(tmp_path)


def test_a_spare_that_has_ended_takes_no_order(
    started: Callable[..., Spare], tmp_path: Path
) -> None:
    spare = started("raise SystemExit(3)")
    os.waitid(os.P_PID, spare.pid, os.WEXITED | os.WNOWAIT)
    assert spare.hand_over(order(tmp_path)) is None


def test_a_spare_ends_without_a_word_when_its_agent_dies(tmp_path: Path) -> None:
    agent = (
        "import os, sys, time\n"
        "from trimtab.launch.warm import Spare\n"
        "program = 'import os, sys, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n'"
        " f'os.write({sys.argv[2]}, b\"up\")\\n' + sys.argv[1]\n"
        "spare = Spare([sys.executable, '-c', program, \"a run's folder\"],"
        " environment=os.environ, held_fds=[int(sys.argv[2])])\n"
        "assert os.read(int(sys.argv[3]), 2) == b'up'\n"
        "os.kill(os.getpid(), 9)"
    )
    read, write = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", agent, PROGRAM, str(write), str(read)],
        pass_fds=(write, read),
        capture_output=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == -9
    assert os.read(read, 1) == b"", "the spare's end of the pipe closes when it ends"
    os.close(read)
    assert done.stdout + done.stderr == b""
