"""What a person asked for on the command line of `submit`, as a job."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Final

from trimtab.core import checks
from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec, SchedulerName, ScriptSpec
from trimtab.launch.nodes import num_nodes as nodes_of
from trimtab.orchestrator.config import load_job

_TASK_NUMBER: Final = "%a"
"""Stands for the number of a job array's task, as in Slurm's file names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Arguments and options; fields of sections that were not given are missing."""

    scheduler: SchedulerName
    arguments: tuple[str, ...]
    """The job file and `a.b=c` changes."""
    script: tuple[str, ...] = ()
    """What followed `--`."""
    name: str | None = None
    num_nodes: int | None = None
    ranks_per_node: int | None = None
    """Of a script."""
    restart: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)
    ray: Mapping[str, Any] = field(default_factory=dict)
    stage: Mapping[str, Any] = field(default_factory=dict)

    def job(self, task: int | None = None) -> JobSpec | ScriptSpec:
        """The job, of an array that of one task.

        Raises:
            InputError: The job file, a change or an option is wrong, is for another scheduler,
                or nothing was named.
        """
        self._check_options()
        given = self._of_file(task)
        if self.script:
            job: JobSpec | ScriptSpec = self._script(given)
        elif given is not None:
            job = replace(given, num_nodes=self.num_nodes or given.num_nodes)
        else:
            raise InputError(
                "JOB: expected a job file, -- COMMAND or --resume RUN, got nothing"
            )
        return replace(
            job,
            restart=replace(job.restart, **self.restart),
            slurm=replace(job.slurm, **self.slurm),
            ray=replace(job.ray, **self.ray),
            stage=replace(job.stage, **self.stage),
        )

    def array_jobs(self) -> dict[int, JobSpec | ScriptSpec]:
        """The job of each task of a Slurm job array, by the task's number; of others nothing.

        Raises:
            InputError: As `job`.
        """
        if self.scheduler != "slurm":
            return {}
        from trimtab.launch.slurm.options import array_indices

        array = self.job(task=0).slurm.array
        if array is None:
            return {}
        tasks = array_indices(array)
        if any(_TASK_NUMBER in argument for argument in self.arguments):
            return {task: self.job(task) for task in tasks}
        return dict.fromkeys(tasks, self.job())

    def only_overrides(self) -> list[str]:
        """The arguments where no job file is named: the run's own request is.

        Raises:
            InputError: There is another argument or option among them.
        """
        others = (self.script, self.name, self.num_nodes, self.ranks_per_node)
        if any(others) or self.restart or self.slurm or self.ray or self.stage:
            raise InputError(
                "--resume: a run goes on with what it was submitted with; leave other options "
                "out, or write changes as restart.max_restarts=5 and slurm.time=4:00:00"
            )
        for argument in self.arguments:
            if "=" not in argument:
                raise InputError(
                    f"--resume takes the job from its run directory: leave {argument!r} out"
                )
        return list(self.arguments)

    def _check_options(self) -> None:
        for option, number in (
            ("--nodes", self.num_nodes),
            ("--ranks-per-node", self.ranks_per_node),
        ):
            if number is not None:
                checks.whole_number(option, number)
        for section, names in (("slurm", self.slurm), ("ray", self.ray)):
            if names and self.scheduler != section:
                option = next(iter(names)).replace("_", "-").replace("args", "slurm-arg")
                raise InputError(
                    f"--{option}: an option of -s {section}, but the job goes to "
                    f"{self.scheduler}; leave it out, or add -s {section}"
                )
        if self.restart.get("spare_nodes") and self.scheduler != "slurm":
            raise InputError(
                "--spare-nodes: only jobs of Slurm hold nodes beyond those their ranks need; "
                "leave it out, or add -s slurm"
            )
        if not self.script and (self.name is not None or self.ranks_per_node is not None):
            option = "--name" if self.name is not None else "--ranks-per-node"
            raise InputError(
                f"{option}: for scripts after --; a job file says name and num_ranks itself"
            )

    def _of_file(self, task: int | None) -> JobSpec | None:
        if not self.arguments:
            return None
        path, *overrides = self.arguments
        if task is not None:
            overrides = [each.replace(_TASK_NUMBER, str(task)) for each in overrides]
        return load_job(path, overrides)

    def _script(self, given: JobSpec | None) -> ScriptSpec:
        """The script; what a job file before it says of machines and restarts holds for it."""
        num_nodes = self.num_nodes or (nodes_of(given) if given else 1)
        if self.ranks_per_node is not None or given is None:
            gpus = _first_number(self.slurm.get("gpus_per_node"))
            num_ranks = num_nodes * (self.ranks_per_node or gpus or 1)
        else:
            num_ranks = given.num_ranks
        script = ScriptSpec(
            name=self.name or (given.name if given else _name_of(self.script)),
            argv=self.script,
            folder=str(Path.cwd()),
            num_ranks=num_ranks,
            num_nodes=num_nodes,
            needs_gpus=given.needs_gpus if given else "gpus_per_node" in self.slurm,
        )
        if given is None:
            return script
        return replace(
            script,
            telemetry=given.telemetry,
            restart=given.restart,
            slurm=given.slurm,
            ray=given.ray,
            stage=replace(given.stage, address=given.stage.address or given.checkpoint.address),
        )


def _name_of(script: Iterable[str]) -> str:
    """A name for a script's run: that of the first file of code in its command line."""
    words = list(script)
    files = [word for word in words[1:] if PurePath(word).suffix in (".py", ".sh")]
    return PurePath((files or words)[0]).stem or "script"


def _first_number(text: str | None) -> int | None:
    """4 of `4` and of `h100:4`."""
    number = (text or "").rpartition(":")[2]
    return int(number) if number.isascii() and number.isdigit() else None
