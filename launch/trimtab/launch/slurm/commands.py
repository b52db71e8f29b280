"""Running Slurm's commands: argument lists, time limits and Slurm's own words on errors."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.core.errors import InputError

TIMEOUT_S: Final = 60.0
"""slurmctld answers in milliseconds; under load its own limit is MessageTimeout, 10 s, with
repeats."""

_UNREACHABLE: Final = re.compile(
    r"unable to contact slurm|unable to establish|connection refused|zero bytes were "
    r"transmitted|socket timed out|could not establish a configuration|failed to fetch config"
    r"|unable to connect to|protocol authentication error|communication connection failure"
    r"|unable to process configuration",
    re.IGNORECASE,
)
"""Source: slurm_errno.c, and what the commands of Slurm 22.05 print without a controller."""
_DEFAULTS: Final = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
"""Variables by which a user has these commands show, or take, something else."""
_PREFIX: Final = re.compile(r"^(?:s[a-z]+|slurm_[a-z_]+): (?:error: |fatal: )?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command said."""

    exit_code: int
    output: str
    errors: str

    @property
    def words(self) -> str:
        """Slurm's own words of what went wrong, in one line."""
        lines = (_PREFIX.sub("", line).strip() for line in self.errors.splitlines())
        said = list(dict.fromkeys(line for line in lines if line))
        return "; ".join(said) or f"exit code {self.exit_code}, without a word"


def ask(
    argv: Sequence[str],
    *,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
) -> Answer:
    """Run one of Slurm's commands to its end, whatever its exit code.

    Args:
        argv: Its command line.
        text: Its standard input.
        environment: Its whole environment; None: this process's own.
        folder: Its working directory; None: this process's own.

    Raises:
        InputError: It is not installed here, does not end, or cannot reach the cluster.
    """
    command = argv[0]
    try:
        ended = subprocess.run(
            argv,
            input="" if text is None else text,
            env=_without_defaults(os.environ if environment is None else environment),
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise InputError(
            f"slurm: this machine has no command {command}; submit from a login node of the "
            "cluster, or with another --scheduler"
        ) from error
    except OSError as error:
        raise InputError(f"slurm: {command} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"slurm: {command} has not answered for {TIMEOUT_S:.0f} s; see with sinfo whether "
            "the cluster is up"
        ) from error
    answer = Answer(exit_code=ended.returncode, output=ended.stdout, errors=ended.stderr)
    if answer.exit_code and _UNREACHABLE.search(answer.errors):
        raise InputError(f"slurm: the cluster cannot be reached: {command}: {answer.words}")
    return answer


def output_of(argv: Sequence[str]) -> str:
    """What a command prints.

    Raises:
        InputError: As `ask`; or the command failed.
    """
    answer = ask(argv)
    if answer.exit_code:
        raise InputError(f"slurm: {argv[0]}: {answer.words}")
    return answer.output


def _without_defaults(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if not name.startswith(_DEFAULTS)
    }
