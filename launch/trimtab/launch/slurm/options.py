"""The user's Slurm options: read in Slurm's own forms, and refused before Slurm is asked.

Source: sbatch(1).
"""

import re
from dataclasses import fields
from typing import Final

from trimtab.core.errors import InputError, shown
from trimtab.core.scheduling import SlurmOptions

DEFAULT_SIGNAL: Final = "B:USR2@90"
"""To the batch script alone, where the keeper is; USR1 would be caught by NCCL."""

_MOST_BYTES: Final = 8_000
"""sbatch before 23.02 reads one option into a buffer of 8,192 bytes."""
_MOST_MINUTES: Final = 2**31 - 1
_LARGEST_INDEX: Final = 4_000_000
"""Of a job array: MaxArraySize is at most 4,000,001 (slurm.conf(5))."""
_MOST_TASKS: Final = 10_000
"""Of a job array, each with a run directory; more is taken for a mistake."""
_SIGNAL_SLACK_S: Final = 60
"""How much earlier than asked Slurm may send a signal (sbatch(1), --signal)."""
_UNLIMITED: Final = ("unlimited", "infinite", "-1")

_TIME_FORMS: Final = (
    "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or "
    "days-hours:minutes:seconds"
)
_TIME: Final = re.compile(
    r"(?:(?P<days>\d+)-(?P<d_hours>\d+)(?::(?P<d_minutes>\d+)(?::(?P<d_seconds>\d+))?)?"
    r"|(?P<hours>\d+):(?P<h_minutes>\d+):(?P<h_seconds>\d+)"
    r"|(?P<minutes>\d+)(?::(?P<seconds>\d+))?)",
    re.ASCII,
)
_ARRAY_PART: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_SIGNAL: Final = re.compile(r"[RB]{1,2}:(?:SIG)?(?:USR2|12)(?:@(\d{1,5}))?", re.ASCII | re.I)
_JOBS: Final = r"\d+(?:_\d+|_\*)?(?:\+\d+)?"
_DEPENDENCY: Final = re.compile(
    rf"(?:after|afterany|afterburstbuffer|aftercorr|afternotok|afterok)(?::{_JOBS})+|singleton",
    re.ASCII,
)
_GPUS_PER_NODE: Final = re.compile(r"(?:[\w.-]+:)?(\d{1,5})", re.ASCII)
_GPU_GRES: Final = re.compile(
    r"(?:gres[:/])?gpu(?:[:=][A-Za-z][\w.-]*)?(?:[:=](\d{1,5}))?", re.ASCII
)


def check_options(options: SlurmOptions) -> None:
    """Refuse what Slurm would refuse, misread, or take as something else than meant.

    Raises:
        InputError: A value has another form than Slurm's.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, str):
            check_text(f"slurm.{field.name}", value)
    limit_s = None if options.time is None else time_limit_s(options.time)
    warned_s = warning_s(options)
    if limit_s is not None and limit_s < warned_s + _SIGNAL_SLACK_S:
        raise InputError(
            f"slurm.time: a limit of {limit_s} s leaves no time to train: Slurm warns the job "
            f"{warned_s} s before it, and up to {_SIGNAL_SLACK_S} s earlier; raise it, or set "
            "slurm.signal=B:USR2@30, say"
        )
    if options.array is not None:
        array_indices(options.array)
    if options.dependency is not None:
        _check_dependency(options.dependency)
    _check_container(options)


def time_limit_s(text: str) -> int | None:
    """Slurm's time limit in seconds; None: unlimited.

    >>> time_limit_s("1-12:30")
    131400

    Raises:
        InputError: It has none of Slurm's forms, or is zero, which Slurm takes for no limit.
    """
    if text.casefold() in _UNLIMITED:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise InputError(f"slurm.time: expected {_TIME_FORMS}, got {shown(text)}")
    part = {name: int(digits) for name, digits in match.groupdict(default="0").items()}
    hours = part["days"] * 24 + part["d_hours"] + part["hours"]
    minutes = part["d_minutes"] + part["h_minutes"] + part["minutes"]
    seconds = part["d_seconds"] + part["h_seconds"] + part["seconds"]
    limit_s = (hours * 60 + minutes) * 60 + seconds
    if limit_s == 0:
        raise InputError(
            f"slurm.time: expected more than no time, got {shown(text)}; leave it out for the "
            "partition's own limit"
        )
    if limit_s > _MOST_MINUTES * 60:
        raise InputError(
            f"slurm.time: expected at most {_MOST_MINUTES} minutes, got {shown(text)}"
        )
    return limit_s


def array_indices(text: str) -> tuple[int, ...]:
    """The indices of a job array, in ascending order.

    >>> array_indices("0-6:3,4%2")
    (0, 3, 4, 6)

    Raises:
        InputError: It has another form than Slurm's, or names too many tasks.
    """
    parts, percent, at_once = text.partition("%")
    if percent and not (at_once.isascii() and at_once.isdigit() and int(at_once)):
        raise InputError(
            f"slurm.array: expected a number of tasks at once after %, got {shown(text)}"
        )
    indices: set[int] = set()
    for part in parts.split(","):
        indices |= set(_array_part(part, text))
        if len(indices) > _MOST_TASKS:
            raise InputError(
                f"slurm.array: expected at most {_MOST_TASKS} tasks, got {shown(text)}"
            )
    return tuple(sorted(indices))


def warning_s(options: SlurmOptions) -> int:
    """How long before its end Slurm warns the job, in seconds.

    Raises:
        InputError: `signal` is not one the job's keeper waits for.
    """
    text = options.signal or DEFAULT_SIGNAL
    match = _SIGNAL.fullmatch(text)
    if match is None or "B" not in text.partition(":")[0].upper():
        raise InputError(
            "slurm.signal: expected B:USR2@SECONDS, the signal on which the job saves and goes "
            f"back to the queue, sent to the batch script, got {shown(text)}"
        )
    return int(match[1] or _SIGNAL_SLACK_S)


def gpus_per_node(options: SlurmOptions) -> int | None:
    """How many GPUs of a node the options ask for; None: they say nothing of GPUs.

    Raises:
        InputError: `gpus_per_node` or `gres` has another form than Slurm's.
    """
    if options.gpus_per_node is not None:
        match = _GPUS_PER_NODE.fullmatch(options.gpus_per_node)
        if match is None:
            raise InputError(
                "slurm.gpus_per_node: expected a number or TYPE:NUMBER, got "
                f"{shown(options.gpus_per_node)}"
            )
        return int(match[1])
    if options.gres is None:
        return None
    found = [_GPU_GRES.fullmatch(part) for part in options.gres.split(",")]
    counts = [int(match[1] or 1) for match in found if match is not None]
    return sum(counts) if counts else None


def check_text(field: str, text: str) -> None:
    """Refuse what one line of an sbatch script cannot hold.

    Raises:
        InputError: `text` is blank, too long or has characters that are not printable.
    """
    if not text.strip():
        raise InputError(
            f"{field}: expected some text, got {shown(text)}; leave it out instead"
        )
    if not text.isprintable():
        raise InputError(
            f"{field}: expected one line of printable characters, got {shown(text)}"
        )
    if len(text.encode()) > _MOST_BYTES:
        raise InputError(f"{field}: expected at most {_MOST_BYTES} bytes, got {shown(text)}")


def _array_part(part: str, text: str) -> range:
    match = _ARRAY_PART.fullmatch(part)
    if match is None:
        raise InputError(
            f"slurm.array: expected indices as 0-7, 1,3,5 or 0-30:10%2, got {shown(text)}"
        )
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    step = 1 if match[3] is None else int(match[3])
    if last < first or step < 1 or last > _LARGEST_INDEX:
        raise InputError(
            f"slurm.array: expected rising indices up to {_LARGEST_INDEX}, got {shown(text)}"
        )
    indices = range(first, last + 1, step)
    if len(indices) > _MOST_TASKS:
        raise InputError(
            f"slurm.array: expected at most {_MOST_TASKS} tasks, got {shown(text)}"
        )
    return indices


def _check_dependency(text: str) -> None:
    separator = "?" if "?" in text else ","
    if not all(_DEPENDENCY.fullmatch(part) for part in text.split(separator)):
        raise InputError(
            "slurm.dependency: expected a form like afterok:1234 or afterany:1234:1235, joined "
            f"by commas (all) or question marks (any), or singleton, got {shown(text)}"
        )


def _check_container(options: SlurmOptions) -> None:
    if options.container_image or options.container_name:
        return
    for name in ("container_mounts", "container_workdir"):
        if getattr(options, name) is not None:
            raise InputError(
                f"slurm.{name}: has no container; set slurm.container_image as well"
            )
