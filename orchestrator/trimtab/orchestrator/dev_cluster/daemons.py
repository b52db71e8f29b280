"""The daemons of a development cluster: started, remembered in its folder, ended by us only.

`daemons.json` holds every process that was started, with its start time: a later process that
happens to have the same number is never mistaken for it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from trimtab.core import serde
from trimtab.core.errors import InputError, JobFailedError
from trimtab.orchestrator.liveness import ProcessId

_FILE: Final = "daemons.json"
_POLL_S: Final = 0.1
_END_GRACE_S: Final = 10.0


class Daemons:
    """The processes of one cluster, by name."""

    def __init__(self, folder: Path) -> None:
        """`folder`: everything of the cluster lies there.

        Raises:
            InputError: Its record of processes is damaged.
        """
        self._folder = folder
        self._processes = _read(folder / _FILE)

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of those that run, in the order in which they were started."""
        return tuple(name for name, process in self._processes.items() if process.is_alive)

    def pid(self, name: str) -> int | None:
        """The process of a daemon that runs."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.is_alive else None

    def start(
        self, name: str, argv: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a daemon that stays in the foreground; its output goes to `log/NAME.log`.

        Raises:
            JobFailedError: It could not be started.
        """
        log = self._folder / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as file:
                process = subprocess.Popen(
                    argv,
                    env={**os.environ, **(environment or {})},
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise JobFailedError(f"{argv[0]} could not be started: {error}") from error
        self._processes[name] = ProcessId.of(process.pid)
        self._write()

    def end(self, name: str) -> None:
        """SIGTERM, and SIGKILL where that does not help; returns when it has ended."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline_s = time.monotonic() + _END_GRACE_S
            while self.pid(name) is not None and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
        self.kill(name)

    def kill(self, name: str) -> None:
        """SIGKILL, as a node's death."""
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while self.pid(name) is not None:
                time.sleep(_POLL_S)
        self._processes.pop(name, None)
        self._write()

    def last_words(self, name: str) -> str:
        """The last line of a daemon's log."""
        log = self._folder / "log" / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return lines[-1] if lines else "it said nothing"

    def _write(self) -> None:
        document = {
            name: serde.to_document(process) for name, process in self._processes.items()
        }
        draft = self._folder / f".{_FILE}"
        draft.write_text(json.dumps(document, indent=2))
        draft.replace(self._folder / _FILE)


def wait_until(is_true: Callable[[], bool], *, what: str, timeout_s: float) -> None:
    """Return once `is_true`.

    Raises:
        JobFailedError: It has not become so in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline_s:
            raise JobFailedError(f"{what} is not so after {timeout_s:.0f} s")
        time.sleep(_POLL_S)


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


def _read(path: Path) -> dict[str, ProcessId]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; remove the folder") from error
    return {name: serde.from_document(ProcessId, each) for name, each in document.items()}
