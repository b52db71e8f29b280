"""What can go wrong in a way the user can mend, and the exit code each kind ends with.

`TrimtabError`
├── `InputError`        a file, key, value or argument is wrong
├── `InfeasibleError`   the input is well formed, but no plan can satisfy it
├── `RunDirError`       a run directory is missing, broken or of another version
├── `MissingExtraError` a feature needs a package that is not installed
├── `JobFailedError`    the job ran and failed; running it again may help
└── `NoRestartError`    the job ran and failed in a way that will repeat
"""

import contextlib
import difflib
import enum
from collections.abc import Iterable, Iterator

_MOST_SHOWN = 40


class ExitCode(enum.IntEnum):
    """Every exit code a Trimtab process ends with on purpose."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    DO_NOT_RESTART = 93
    FAILED_JOB = 100
    """`status` and `logs` of a job that failed."""
    UNFINISHED_JOB = 101
    """`status` and `logs` of a job that is pending or running."""
    NO_SUCH_JOB = 102
    CANCELLED_JOB = 103


class TrimtabError(Exception):
    """A problem the user can mend: the message says what was expected, and what to do."""

    exit_code: ExitCode = ExitCode.USAGE


class InputError(TrimtabError):
    """A file, key, value or argument is wrong."""


class InfeasibleError(TrimtabError):
    """The input is well formed, but no plan can satisfy it; the message says what is short."""


class RunDirError(TrimtabError):
    """A run directory is missing, broken or written by another version."""


class MissingExtraError(TrimtabError):
    """A feature needs a package that is not installed; the message names the extra."""


class JobFailedError(TrimtabError):
    """The job ran and failed; running it again may help."""

    exit_code = ExitCode.JOB_FAILED


class NoRestartError(TrimtabError):
    """The job ran and failed in a way that will repeat, so it must not be restarted."""

    exit_code = ExitCode.DO_NOT_RESTART


def shown(value: object) -> str:
    """A value as a message repeats it: as Python writes it, at most 40 characters of it.

    >>> shown(10**399)
    '1000000000000000000000000000000000000000... (400 characters)'
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes out no whole number of over 4,300 digits
        return "a number of thousands of digits"
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """One line of `text` that cannot move a terminal's cursor or change its colours."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for char in " ".join(text.split())
    )


@contextlib.contextmanager
def placed(place: object) -> Iterator[None]:
    """Put `place`, a file or a field, in front of the message of an `InputError` inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist, with the nearest that does.

    >>> unknown_name_message("key", "num_layer", ["num_layers", "hidden"])
    "unknown key 'num_layer'; did you mean 'num_layers'?"
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if nearest:
        return f"unknown {kind} {shown(name)}; did you mean {nearest[0]!r}?"
    return f"unknown {kind} {shown(name)}; expected one of {', '.join(names)}"
