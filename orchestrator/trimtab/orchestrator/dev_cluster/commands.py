"""Programs of this machine that a development cluster needs."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from trimtab.core.errors import InputError

_DAEMON_FOLDERS: Final = "/usr/sbin:/usr/local/sbin:/sbin"
"""Not in the PATH of every user."""


def check_installed(names: Iterable[str], *, packages: str) -> None:
    """Refuse where programs are missing.

    Raises:
        InputError: With what to install.
    """
    missing = [name for name in names if _found(name) is None]
    if missing:
        raise InputError(
            f"dev-cluster: {', '.join(missing)} not found; it needs what Debian and Ubuntu "
            f"have as: apt-get install {packages}"
        )


def program(name: str) -> str:
    """The path of a program that `check_installed` has found."""
    path = _found(name)
    assert path is not None, f"{name} was there a moment ago"
    return path


def run(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, *, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with further variables, whatever its exit code."""
    return subprocess.run(
        argv,
        env={**os.environ, **(environment or {})},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def _found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_DAEMON_FOLDERS)
