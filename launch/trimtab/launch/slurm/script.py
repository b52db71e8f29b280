"""The sbatch script of a job: pure text, the same for every version of Slurm.

    #SBATCH directives          read by sbatch, never by a shell
    exec KEEPER RUN_DIR -- SRUN the batch shell becomes the keeper, which gets Slurm's signals

A staged job's script first unpacks what it carries at its own end, see `launch/staging.py`.

The part after `--` is the beginning of the command lines with which the controller starts its
agents, one task on each node.

GPUs are asked for by `--gpus-per-node` (or `--gres`, which counts per node, too) and srun is
given none of these options. Of what older versions take, Slurm 24.11 refuses GPUs per task, per
socket or per job and CPUs per GPU where it allocates whole nodes (its changelog: "select/linear
- Reject jobs asking for GRES per job|socket|task or cpus|mem per GRES"); and a step that names
no GPUs has all of the job's in every version, while one that repeats their number may not find
GPUs that have a type ("Step requested GRES (gpu:(null)) not found in the job").
"""

import base64
import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Final

from trimtab.core.errors import InputError, shown
from trimtab.core.job import JobSpec, Request, ScriptSpec
from trimtab.core.scheduling import SlurmOptions
from trimtab.launch.slurm.arguments import further_arguments
from trimtab.launch.slurm.options import DEFAULT_SIGNAL, check_options, gpus_per_node
from trimtab.launch.staging import ARCHIVE_NAME

_NAME_CHARS: Final = 64
_SAFE_VALUE: Final = re.compile(r"[A-Za-z0-9_@%+=:,./~*\[\]()&|<>!?-]+")
"""What sbatch's own parser reads as it stands: no space, quote, backslash or `#`."""

_OPTION_LINES: Final = (
    ("account", "account"),
    ("partition", "partition"),
    ("qos", "qos"),
    ("reservation", "reservation"),
    ("time", "time"),
    ("constraint", "constraint"),
    ("gres", "gres"),
    ("exclude", "exclude"),
    ("nodelist", "nodelist"),
    ("dependency", "dependency"),
    ("comment", "comment"),
    ("array", "array"),
)
_CONTAINER_OPTIONS: Final = (
    ("container-image", "container_image"),
    ("container-name", "container_name"),
    ("container-workdir", "container_workdir"),
)
_SRUN: Final = (
    "srun",
    "--kill-on-bad-exit=1",
    "--wait=60",
    "--no-kill",
    "--ntasks-per-node=1",
    # An agent is one task that starts all ranks of its node: it is bound to no core, and new
    # agents do not wait until Slurm has cleared away old ones.
    "--cpu-bind=none",
    "--overlap",
)


_MOST_SCRIPT_BYTES: Final = 4 * 2**20
"""What Slurm takes unless told otherwise. Source: slurm.conf(5), max_script_size."""
_FIRST_LOG: Final = "/tmp/trimtab-{}.out"  # noqa: S108  of the user's own job id
"""Where a staged job says what goes wrong before it has a run directory."""
_LINE_CHARS: Final = 96
_CARRIED: Final = "#= "
"""Begins every line of what the script carries."""


def sbatch_script(
    request: Request, *, keeper_argv: tuple[str, ...], archive: bytes | None = None
) -> str:
    """The whole script of `request`.

    Args:
        request: What runs.
        keeper_argv: Command line of the job's keeper.
        archive: What a staged job brings along, as `staging.tar_of` packs it.

    Raises:
        InputError: An option has another form than Slurm's, or contradicts the job; or the
            script becomes larger than Slurm takes.
    """
    options = request.job.slurm
    check_options(options)
    _check_gpus(request)
    if archive is not None:
        _check_staged(options)
    lines = [
        "#!/bin/bash",
        *(_directive(name, value) for name, value in _directives(request)),
        "",
        *(_redirection(request) if archive is None else _unpacking(request, keeper_argv)),
        "# The batch shell becomes the job's keeper; the controller under it starts one agent",
        "# on each node with the srun command after --.",
        "exec \\",
        f"    {' '.join(map(_quoted, keeper_argv))} \\",
        f"    {_run_dir_word(request)} \\",
        *(() if archive is None else ('    --staged "$0" \\',)),
        "    -- \\",
        f"    {' '.join(_srun_words(request))}",
        *(() if archive is None else _carried(archive)),
    ]
    script = "\n".join(lines) + "\n"
    if len(script) > _MOST_SCRIPT_BYTES:
        raise InputError(
            f"stage.enabled: Slurm takes scripts of up to {_MOST_SCRIPT_BYTES // 2**20} MiB, "
            f"and this one would have {len(script) / 2**20:.1f} with what it carries; submit "
            "from a folder of the script's code alone"
        )
    return script


def array_member(request: Request, index: int) -> Request:
    """The request of one task of a job array: the same script, a run directory of its own."""
    run_dir = f"{request.run_dir}-{index}"
    argv = request.argv
    if isinstance(request.job, JobSpec):
        argv = (*argv[:-1], run_dir)
    return replace(request, run_dir=run_dir, argv=argv)


def job_name(name: str) -> str:
    """A job's name as Slurm's tools and its database take it: plain ASCII without spaces.

    >>> job_name("-Äpfel & $(Birnen)")
    'Apfel-Birnen'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", plain).strip("-.")
    return plain[:_NAME_CHARS].rstrip("-.") or "trimtab"


def cpus_per_node(job: JobSpec | ScriptSpec, *, ranks_per_node: int) -> int | None:
    """Cores of a node that the script asks for: one a rank on CPUs, or what the user says.

    None: it asks for no number of its own. With GPUs it is the partition's (`DefCpuPerGPU`),
    which a number here would overrule; or `slurm.args` ask for whole nodes.

    Raises:
        InputError: `cpus-per-task` is no whole number.
    """
    further = further_arguments(job.slurm.args)
    if "cpus-per-task" not in further:
        is_left_open = job.needs_gpus or {"cpus-per-gpu", "exclusive"} & further.keys()
        return None if is_left_open else ranks_per_node
    given = further["cpus-per-task"] or ""
    if not re.fullmatch(r"0*[1-9][0-9]{0,4}", given):
        raise InputError(f"slurm.args: cpus-per-task: expected a number, got {shown(given)}")
    return int(given)


def _check_gpus(request: Request) -> None:
    """Refuse fewer GPUs on a node than it has ranks."""
    given = gpus_per_node(request.job.slurm)
    if request.job.needs_gpus and given is not None and given < request.ranks_per_node:
        field = "gpus_per_node" if request.job.slurm.gpus_per_node else "gres"
        raise InputError(
            f"slurm.{field}: {request.ranks_per_node} ranks on each node need as many GPUs, "
            f"got {given}; leave it out, or change num_ranks or num_nodes"
        )


def _check_staged(options: SlurmOptions) -> None:
    """Refuse what cannot be staged."""
    if options.container_image or options.container_name:
        raise InputError(
            "slurm.container_image: a container sees nothing of what stage.enabled brings to "
            "its node; leave one of them out"
        )
    if options.array is not None:
        raise InputError(
            "slurm.array: the tasks of an array share one script, which can carry one request "
            "only; submit them one by one, or without stage.enabled"
        )


def _directives(request: Request) -> Iterator[tuple[str, str | None]]:
    job, options = request.job, request.job.slurm
    further = further_arguments(options.args)
    yield "job-name", job_name(job.name)
    yield "nodes", str(request.num_nodes + job.restart.spare_nodes)
    yield "ntasks-per-node", "1"
    cpus = cpus_per_node(job, ranks_per_node=request.ranks_per_node)
    if cpus is not None and "cpus-per-task" not in further:
        yield "cpus-per-task", str(cpus)
    if options.gpus_per_node is not None:
        yield "gpus-per-node", options.gpus_per_node
    elif job.needs_gpus and gpus_per_node(options) is None:
        yield "gpus-per-node", str(request.ranks_per_node)
    for name, field in _OPTION_LINES:
        value = getattr(options, field)
        if value is not None:
            yield name, value
    yield from further.items()
    yield "signal", options.signal or DEFAULT_SIGNAL
    yield "requeue", None
    yield "no-kill", None
    # Secrets stay in the submitting shell's environment, which the job inherits.
    yield "export", "ALL"
    yield from _places(request)


def _places(request: Request) -> Iterator[tuple[str, str | None]]:
    """Where the batch script runs and writes: a folder of the run and its log."""
    yield "open-mode", "append"
    if request.job.stage.enabled:
        yield "chdir", "/"
        yield "output", _FIRST_LOG.format("%j")
        return
    if not _slurm_can_write_to(request.run_dir):
        yield "chdir", "/"
        yield "output", "/dev/null"
        return
    yield "chdir", str(PurePath(request.run_dir).parent)
    folder = request.run_dir.replace("%", "%%")
    if request.job.slurm.array is None:
        yield "output", f"{folder}/logs/slurm-%j.out"
    else:
        yield "output", f"{folder}-%a/logs/slurm-%A_%a.out"


def _redirection(request: Request) -> tuple[str, ...]:
    if _slurm_can_write_to(request.run_dir):
        return ()
    log = '/logs/slurm-"${SLURM_JOB_ID}".out'
    return (
        "# Slurm cannot write to a file whose name holds line breaks or backslashes.",
        f"exec >>{_run_dir_word(request)}{log} 2>&1",
        "",
    )


def _unpacking(request: Request, keeper_argv: tuple[str, ...]) -> tuple[str, ...]:
    """Make the run directory on the job's first node, and unpack what came along."""
    run_dir = _run_dir_word(request)
    return (
        "# The nodes share no files: Trimtab and the request are at the end of this script.",
        f"python={_quoted(keeper_argv[0])}",
        'if [ ! -x "$python" ]; then',
        '    echo "error: node $SLURMD_NODENAME has no Python $python; set stage.python"',
        "    exit 2",
        "fi",
        f"run_dir={run_dir}",
        '(umask 077 && mkdir -p "$run_dir/logs" "$run_dir/staged") || exit',
        'exec >>"$run_dir/logs/slurm-$SLURM_JOB_ID.out" 2>&1',
        f'rm -f "{_FIRST_LOG.format("$SLURM_JOB_ID")}"',
        f'sed -n \'s/^{_CARRIED}//p\' "$0" | base64 -d >"$run_dir/{ARCHIVE_NAME}" || exit',
        f'tar -xzf "$run_dir/{ARCHIVE_NAME}" -C "$run_dir/staged" || exit',
        'export PYTHONPATH="$run_dir/staged/code${PYTHONPATH:+:$PYTHONPATH}"',
        "",
    )


def _carried(archive: bytes) -> Iterator[str]:
    yield ""
    text = base64.b64encode(archive).decode()
    yield from (
        f"{_CARRIED}{text[at : at + _LINE_CHARS]}" for at in range(0, len(text), _LINE_CHARS)
    )


def _slurm_can_write_to(path: str) -> bool:
    """Whether a directive and Slurm's file name patterns can hold `path`.

    A backslash turns replacing off (sbatch(1), filename pattern), a line break ends the option.
    """
    return path.isprintable() and "\\" not in path


def _run_dir_word(request: Request) -> str:
    """The run directory as a word of the shell; of an array, each task's own."""
    if request.job.slurm.array is None:
        return _quoted(request.run_dir)
    return f'{_quoted(request.run_dir + "-")}"${{SLURM_ARRAY_TASK_ID}}"'


def _srun_words(request: Request) -> Iterator[str]:
    options = request.job.slurm
    yield from _SRUN
    if request.job.stage.enabled:
        yield "--chdir=/"
    for name, field in _CONTAINER_OPTIONS:
        value = getattr(options, field)
        if value is not None:
            yield _quoted(f"--{name}={value}")
    if options.container_image or options.container_name:
        yield _mounts_word(request, options)


def _mounts_word(request: Request, options: SlurmOptions) -> str:
    """The user's mounts and the run directory, which agents need inside the container."""
    if {",", ":"} & set(request.run_dir):
        raise InputError(
            "slurm.container_image: the run directory must be mounted, but pyxis takes no "
            f"comma or colon in a path: {shown(request.run_dir)}; set TRIMTAB_RUNS_DIR"
        )
    word = _run_dir_word(request)
    mounts = "" if options.container_mounts is None else f"{options.container_mounts},"
    return f"{_quoted('--container-mounts=' + mounts)}{word}:{word}"


def _directive(name: str, value: str | None) -> str:
    """One `#SBATCH` line.

    sbatch reads double quotes and takes a backslash before any character as this character.
    """
    if value is None:
        return f"#SBATCH --{name}"
    if not _SAFE_VALUE.fullmatch(value):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        value = f'"{escaped}"'
    return f"#SBATCH --{name}={value}"


def _quoted(text: str) -> str:
    """One word of bash in one line of the script.

    sbatch refuses scripts with line breaks of DOS, also inside quotes.
    """
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    for character in sorted(set(escaped)):
        if not character.isprintable():
            octal = "".join(
                f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape")
            )
            escaped = escaped.replace(character, octal)
    return f"$'{escaped}'"
