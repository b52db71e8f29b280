"""Slurm from outside: what is submitted, how it stands and how it is ended."""

from dataclasses import replace
from pathlib import Path

from trimtab.core.job import EnvVar, JobSpec, Request, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.launch.limits import check_runnable
from trimtab.launch.local import device_environment
from trimtab.launch.nodes import num_nodes
from trimtab.launch.slurm.script import cpus_per_node, sbatch_script


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
        argv = job.argv if isinstance(job, ScriptSpec) else (*self._rank_argv, str(run_dir))
        request = Request(
            scheduler="slurm",
            run_dir=str(run_dir),
            argv=argv,
            environment=_environment(job, ranks_per_node=job.num_ranks // nodes),
            num_ranks=job.num_ranks,
            num_nodes=nodes,
            job=job,
            layout=layout,
        )
        script = sbatch_script(request, keeper_argv=self._keeper_argv)
        return replace(request, submission=script)


def _environment(job: JobSpec | ScriptSpec, *, ranks_per_node: int) -> tuple[EnvVar, ...]:
    variables = [EnvVar(name="PYTHONUNBUFFERED", value="1"), *device_environment(job)]
    cpus = cpus_per_node(job, ranks_per_node=ranks_per_node)
    if not job.needs_gpus and cpus is not None:
        threads = max(1, cpus // ranks_per_node)
        variables.append(EnvVar(name="OMP_NUM_THREADS", value=str(threads)))
    return tuple(sorted(variables, key=lambda variable: variable.name))
