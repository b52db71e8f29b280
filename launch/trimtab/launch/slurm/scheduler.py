"""Slurm from outside: what is submitted, how it stands and how it is ended."""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError
from trimtab.core.job import EnvVar, JobHandle, JobSpec, JobState, Request, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.launch import staging
from trimtab.launch.api import SchedulerView
from trimtab.launch.limits import check_runnable
from trimtab.launch.local import device_environment
from trimtab.launch.nodes import job_networks, num_nodes
from trimtab.launch.slurm.arguments import RESERVED
from trimtab.launch.slurm.capacity import (
    SINFO_FORMAT,
    check_capacity,
    check_cores,
    lacks_nodes_now,
    leaves_cores_open,
    node_groups,
)
from trimtab.launch.slurm.commands import ask, output_of
from trimtab.launch.slurm.queue import SlurmQueue
from trimtab.launch.slurm.script import cpus_per_node, sbatch_script
from trimtab.launch.slurm.views import rows_of, state_of, view_of

_KEPT: Final = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"})
"""What of a shell's `SLURM_*` says where the cluster is."""
_SBATCH_NAMES: Final = {"time": "TIMELIMIT", "array": "ARRAY_INX"}
"""Options whose `SBATCH_*` variable has another name (sbatch(1), input environment variables).
"""
_DIRECTIVE: Final = re.compile(r"^#SBATCH --([a-z-]+)", re.MULTILINE)
_NOT_NOW: Final = (
    "Required node not available (down, drained or reserved)",
    "Required partition not available (inactive or drain)",
    "Requested partition configuration not available now",
    "Requested nodes are busy",
    "Resources temporarily unavailable",
)
"""What only makes a job wait. Source: slurm_errno.c."""
_NO_SUCH_NODES: Final = "Requested node configuration is not available"
_HINTS: Final = (
    ("Invalid account", "set slurm.account; `sacctmgr show assoc` lists what you may use"),
    ("Invalid qos", "set slurm.qos; `sacctmgr show assoc format=account,user,qos` lists yours"),
    (_NO_SUCH_NODES, "compare with `scontrol show node`"),
)
_JOB_ID: Final = re.compile(r"\d+")


class SlurmScheduler:
    """Submits jobs to the Slurm cluster this machine belongs to."""

    def __init__(self, *, rank_argv: tuple[str, ...], keeper_argv: tuple[str, ...]) -> None:
        """Make a scheduler.

        Args:
            rank_argv: Command line of a rank of our own worker; the run directory is added.
            keeper_argv: Command line of a job's keeper; the run directory, `--` and the srun
                command line are added.
        """
        self._rank_argv = rank_argv
        self._keeper_argv = keeper_argv

    @functools.cached_property
    def _queue(self) -> SlurmQueue:
        """Made when it is first asked: a dry run asks nobody."""
        return SlurmQueue()

    def prepare(
        self, job: JobSpec | ScriptSpec, *, layout: Layout | None, run_dir: Path
    ) -> Request:
        """The request with the whole sbatch script; acts on nothing, asks nobody.

        Of a job array, `run_dir` is where the tasks' own begin: `-INDEX` is added.

        Raises:
            InputError: The worker cannot run the job, or an option is not one of Slurm's.
        """
        if isinstance(job, JobSpec):
            assert layout is not None
            check_runnable(job, layout=layout)
        nodes = num_nodes(job)
        rank_argv = staging.with_python(self._rank_argv, job)
        argv = job.argv if isinstance(job, ScriptSpec) else (*rank_argv, str(run_dir))
        request = Request(
            scheduler="slurm",
            run_dir=str(run_dir),
            argv=argv,
            environment=_environment(job, ranks_per_node=job.num_ranks // nodes),
            num_ranks=job.num_ranks,
            num_nodes=nodes,
            job=job,
            layout=layout,
            networks=job_networks(job),
        )
        script = sbatch_script(
            request,
            keeper_argv=staging.with_python(self._keeper_argv, job),
            archive=_archive(request) if job.stage.enabled else None,
        )
        return replace(request, submission=script)

    def check(self, request: Request) -> None:
        """Ask the cluster what can be known before anything is queued.

        Raises:
            InputError: The cluster cannot be reached, or would refuse the request, in its own
                words.
        """
        sinfo = ["sinfo", "--all", "--noheader", f"--format={SINFO_FORMAT}"]
        groups = node_groups(output_of(sinfo))
        check_capacity(request, groups)
        if leaves_cores_open(request):
            check_cores(
                request,
                groups,
                partitions=output_of(["scontrol", "--oneliner", "show", "partition"]),
                config=output_of(["scontrol", "show", "config"]),
            )
        answer = ask(
            ["sbatch", "--test-only"],
            text=request.submission,
            environment=submission_environment(request.submission),
        )
        if not answer.exit_code or any(words in answer.errors for words in _NOT_NOW):
            return
        if _NO_SUCH_NODES in answer.errors and lacks_nodes_now(request, groups):
            return  # said of nodes that are down, too, for which a job may wait
        raise _refused(answer.words)

    def submit(
        self,
        request: Request,
        *,
        lock_fd: int | None,  # noqa: ARG002  other machines cannot hold it
    ) -> JobHandle:
        """Hand the script to sbatch unchanged.

        Raises:
            InputError: The cluster refused it, in its own words.
        """
        answer = ask(
            ["sbatch", "--parsable"],
            text=request.submission,
            environment=submission_environment(request.submission),
        )
        job_id = answer.output.strip().partition(";")[0]  # "1234;cluster" of several clusters
        if answer.exit_code or not _JOB_ID.fullmatch(job_id):
            raise _refused(answer.words)
        return JobHandle(scheduler="slurm", job_id=job_id)

    def views(self, handles: Sequence[JobHandle]) -> Mapping[JobHandle, SchedulerView]:
        """How jobs stand, in one question for all; a job it does not know any more is left out.

        Raises:
            InputError: The cluster cannot be reached.
        """
        first_ids = dict.fromkeys(handle.job_id.partition("_")[0] for handle in handles)
        rows = self._queue.rows(tuple(first_ids))
        of_handles = {handle: rows_of(handle, rows) for handle in handles}
        return {handle: view_of(own) for handle, own in of_handles.items() if own}

    def cancel(self, handle: JobHandle, *, at_once: bool) -> None:
        """Ask for the end of a job: its ranks write a checkpoint first, unless `at_once`.

        Raises:
            InputError: The cluster cannot be reached, knows no such job, or refuses.
        """
        first_id = handle.job_id.partition("_")[0]
        rows = rows_of(handle, self._queue.rows((first_id,)))
        if not rows:
            raise InputError(f"{handle}: Slurm knows no such job (any more)")
        running = [row.job_id for row in rows if state_of(row) is JobState.RUNNING]
        waiting = [row.job_id for row in rows if state_of(row) is JobState.PENDING]
        if at_once:
            waiting, running = [*waiting, *running], []
        if waiting:
            _cancel(["scancel", *waiting])
        if running:
            # The batch script is the job's keeper, which has the ranks save and ends the job.
            _cancel(["scancel", "--batch", "--signal=TERM", *running])


def submission_environment(script: str) -> Mapping[str, str]:
    """The environment that a job inherits, without what would overrule its script.

    sbatch prefers its `SBATCH_*` variables to the script's own lines; and a shell inside
    another job has this one's `SLURM_*`, which srun would take for its own options.
    """
    ours = {
        f"SBATCH_{_SBATCH_NAMES.get(name, name.replace('-', '_').upper())}"
        for name in {"array", *RESERVED, *_DIRECTIVE.findall(script)}
    }
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ours
        and (name in _KEPT or not name.startswith(("SLURM_", "SLURMD_", "SRUN_")))
    }


def _environment(job: JobSpec | ScriptSpec, *, ranks_per_node: int) -> tuple[EnvVar, ...]:
    """Variables that all ranks share."""
    variables = [EnvVar(name="PYTHONUNBUFFERED", value="1"), *device_environment(job)]
    cpus = cpus_per_node(job, ranks_per_node=ranks_per_node)
    if not job.needs_gpus and cpus is not None:
        threads = max(1, cpus // ranks_per_node)
        variables.append(EnvVar(name="OMP_NUM_THREADS", value=str(threads)))
    return tuple(sorted(variables, key=lambda variable: variable.name))


def _archive(request: Request) -> bytes:
    """What a staged job brings along; raises InputError where that cannot be."""
    staging.check_stage(request)
    files = [*staging.below("code", staging.code_files(request))]
    if isinstance(request.job, ScriptSpec):
        runs = Path(request.run_dir).parent
        folder = staging.folder_files(Path(request.job.folder), without=runs)
        files += staging.below("work", folder)
    return staging.tar_of(files)


def _cancel(argv: Sequence[str]) -> None:
    answer = ask(argv)
    if answer.exit_code:
        raise InputError(f"slurm: {argv[0]}: {answer.words}")


def _refused(words: str) -> InputError:
    words = words.replace("allocation failure: ", "")
    words = words.replace("Batch job submission failed: ", "")
    hint = next((f"; {hint}" for said, hint in _HINTS if said in words), "")
    return InputError(f"slurm: the cluster refuses the job: {words}{hint}")
