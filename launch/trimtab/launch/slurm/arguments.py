"""`slurm.args`: options of sbatch that Trimtab has no name of its own for.

Source of the option names: sbatch(1) of Slurm 22.05 to 25.05.
"""

import re
from collections.abc import Mapping
from typing import Final

from trimtab.core.errors import InputError, shown
from trimtab.launch.slurm.options import check_text

_OWN_FLAGS: Final[Mapping[str, str]] = {
    "account": "slurm.account (-A)",
    "array": "slurm.array",
    "comment": "slurm.comment",
    "constraint": "slurm.constraint (-C)",
    "container-image": "slurm.container_image",
    "container-mounts": "slurm.container_mounts",
    "container-name": "slurm.container_name",
    "container-workdir": "slurm.container_workdir",
    "dependency": "slurm.dependency",
    "exclude": "slurm.exclude",
    "gpus-per-node": "slurm.gpus_per_node",
    "gres": "slurm.gres",
    "job-name": "name",
    "nodelist": "slurm.nodelist",
    "nodes": "num_nodes (-N)",
    "partition": "slurm.partition (-p)",
    "qos": "slurm.qos",
    "reservation": "slurm.reservation",
    "signal": "slurm.signal",
    "time": "slurm.time (-t)",
}
"""What has a place of its own in the job file, and where."""

_SET_BY_SCRIPT: Final = frozenset(
    {
        "chdir",
        "export",
        "no-kill",
        "no-requeue",
        "ntasks-per-node",
        "open-mode",
        "output",
        "requeue",
    }
)

_REFUSED: Final[Mapping[str, str]] = {
    "batch": "the controller runs on the first node of the allocation",
    "clusters": "set SLURM_CLUSTERS for this shell: later commands must find the job, too",
    "container": "use slurm.container_image",
    "error": "standard error goes into the run's log with the rest",
    "export-file": "the job inherits this shell's environment",
    "gpus": "it leaves open which node has how many; use slurm.gpus_per_node",
    "gpus-per-socket": "there is one task a node; use slurm.gpus_per_node",
    "gpus-per-task": "Slurm 24.11 refuses it on some clusters; use slurm.gpus_per_node",
    "help": "see man sbatch",
    "input": "the job reads no input",
    "ntasks": "there is one task a node, which starts the ranks; use num_ranks",
    "ntasks-per-core": "there is one task a node; use num_ranks",
    "ntasks-per-gpu": "there is one task a node; use num_ranks",
    "ntasks-per-socket": "there is one task a node; use num_ranks",
    "parsable": "Trimtab reads sbatch's answer",
    "quiet": "Trimtab reads sbatch's answer",
    "test-only": "use --dry-run",
    "tres-per-job": "use slurm.gpus_per_node",
    "tres-per-task": "there is one task a node; use slurm.gpus_per_node",
    "usage": "see man sbatch",
    "verbose": "Trimtab reads sbatch's answer",
    "version": "run sbatch --version",
    "wait": "use --wait of trimtab submit",
    "wrap": "Trimtab submits a script of its own",
}
"""What would break the job, and what to do instead."""

RESERVED: Final = frozenset({*_SET_BY_SCRIPT, *_REFUSED})
"""Options that a submission never takes from its user."""

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


def further_arguments(args: tuple[str, ...]) -> Mapping[str, str | None]:
    """`slurm.args` as names and values; None: a flag without a value.

    Raises:
        InputError: One has another form, comes twice, has a flag of its own, is set by the
            script itself, or would break the job.
    """
    found: dict[str, str | None] = {}
    for arg in args:
        name, equals, value = arg.partition("=")
        if not _NAME.fullmatch(name) or len(name) == 1:
            raise InputError(
                "slurm.args: expected NAME=VALUE or NAME with sbatch's long name of an option "
                f"and no dashes before it, as mem=64G or exclusive, got {shown(arg)}"
            )
        if equals:
            check_text(f"slurm.args: {name}", value)
        _check_allowed(name)
        if name in found:
            raise InputError(f"slurm.args: {name} is given twice")
        found[name] = value if equals else None
    return found


def _check_allowed(name: str) -> None:
    if name in _OWN_FLAGS:
        raise InputError(f"slurm.args: {name} has a place of its own: set {_OWN_FLAGS[name]}")
    if name in _SET_BY_SCRIPT:
        raise InputError(
            f"slurm.args: {name} is set by the script itself, which --dry-run prints"
        )
    if name in _REFUSED:
        raise InputError(f"slurm.args: {name} cannot be used here: {_REFUSED[name]}")
    # sbatch takes unambiguous beginnings of names (getopt_long(3)).
    for reserved in sorted({*_OWN_FLAGS, *_SET_BY_SCRIPT, *_REFUSED}):
        if reserved.startswith(name):
            raise InputError(
                f"slurm.args: {name} is an abbreviation; write the whole name (sbatch may take "
                f"it for {reserved})"
            )
