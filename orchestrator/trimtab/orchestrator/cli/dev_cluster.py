"""`trimtab dev-cluster`: a real Slurm or Ray on this one machine, to try things on."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.core.errors import InputError
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from trimtab.orchestrator.dev_cluster.ray import RayCluster
    from trimtab.orchestrator.dev_cluster.shape import Kind, Shape
    from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster

_DEFAULT_FOLDER = Path("~/.trimtab/dev-cluster")

FolderOption = Annotated[
    Path | None,
    typer.Option(
        help="Where everything of it lies; if not given, that of $SLURM_CONF (for Slurm), or "
        "~/.trimtab/dev-cluster/KIND."
    ),
]
NodeArgument = Annotated[str, typer.Argument(help="As `status` calls it.")]

app = typer.Typer(
    help="Start a real Slurm or Ray of several nodes on this machine, to try things on.",
    no_args_is_help=True,
)


@app.callback()
def _kind(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="slurm|ray", help="Which one.")],
) -> None:
    from trimtab.core import checks

    checks.one_of("dev-cluster", kind, ("slurm", "ray"))
    context.obj = kind


@app.command()
def start(
    context: typer.Context,
    nodes: Annotated[
        int | None, typer.Option("--nodes", "-N", min=1, max=64, help="4 if not given.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Fake GPUs of each node; 8 if not given.", min=0, max=64)
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(help="CPUs of each node; 16 if not given.", min=1, max=1024)
    ] = None,
    accounting: Annotated[
        bool | None,
        typer.Option(
            "--accounting/--no-accounting",
            help="Slurm: with slurmdbd, which knows the account `dev` and refuses others.",
        ),
    ] = None,
    folder: FolderOption = None,
    json_output: JsonOption = False,
) -> None:
    """Start it, or what of it does not run; says what to set so that others find it."""
    kind, place = context.obj, _place(context.obj, folder)
    shape = _shape(kind, place, nodes=nodes, gpus=gpus, cpus=cpus, accounting=accounting)
    cluster = _cluster(kind, place)
    size: dict[str, Any] = {
        "num_nodes": shape.num_nodes,
        "gpus_per_node": shape.gpus_per_node,
        "cpus_per_node": shape.cpus_per_node,
    }
    with console(stderr=True).status(f"starting {kind}") as status:
        if kind == "slurm":
            size |= {"accounting": shape.accounting, "tell": status.update}
        cluster.start(**size)
    _show(kind, cluster, json_output=json_output)


@app.command()
def stop(context: typer.Context, folder: FolderOption = None) -> None:
    """End its jobs and daemons and remove its folder."""
    place = _place(context.obj, folder)
    with console(stderr=True).status(f"stopping {context.obj}"):
        _cluster(context.obj, place).stop()
    typer.echo(f"stopped; {place} is gone", err=True)


@app.command()
def status(
    context: typer.Context, folder: FolderOption = None, json_output: JsonOption = False
) -> None:
    """Show its nodes and how to reach it."""
    cluster = _cluster(context.obj, _place(context.obj, folder))
    _show(context.obj, cluster, json_output=json_output)


@app.command("kill-node")
def kill_node(
    context: typer.Context,
    node: NodeArgument,
    hard: Annotated[
        bool, typer.Option("--hard", help="Also all that jobs run there, as a power cut.")
    ] = False,
    folder: FolderOption = None,
) -> None:
    """Kill a node's daemon, to see jobs recover."""
    _cluster(context.obj, _place(context.obj, folder)).kill_node(node, hard=hard)
    again = f"trimtab dev-cluster {context.obj} start-node {node}"
    typer.echo(f"{node} is dead; to start it again: {again}", err=True)


@app.command("start-node")
def start_node(context: typer.Context, node: NodeArgument, folder: FolderOption = None) -> None:
    """Start a killed node again."""
    _cluster(context.obj, _place(context.obj, folder)).start_node(node)
    typer.echo(f"{node} is back", err=True)


def _place(kind: "Kind", folder: Path | None) -> Path:
    """The cluster's folder: the one that is asked for, the one in use, or the user's own."""
    from trimtab.orchestrator.dev_cluster.shape import made_shape

    if folder is not None:
        return folder.expanduser().absolute()
    if kind == "slurm" and (config := os.environ.get("SLURM_CONF")):
        in_use = Path(config).absolute().parent.parent
        if made_shape(in_use) is not None:
            return in_use
    return (_DEFAULT_FOLDER / kind).expanduser().absolute()


def _shape(
    kind: "Kind",
    place: Path,
    *,
    nodes: int | None,
    gpus: int | None,
    cpus: int | None,
    accounting: bool | None,
) -> "Shape":
    """What is asked for; what is not said is as the cluster there was made."""
    from trimtab.orchestrator.dev_cluster.shape import Shape, made_shape

    if accounting and kind != "slurm":
        raise InputError("--accounting: Ray has none; leave it out")
    made = made_shape(place)
    made = made if made is not None and made.kind == kind else Shape(kind=kind)
    return Shape(
        kind=kind,
        num_nodes=made.num_nodes if nodes is None else nodes,
        gpus_per_node=made.gpus_per_node if gpus is None else gpus,
        cpus_per_node=made.cpus_per_node if cpus is None else cpus,
        accounting=made.accounting if accounting is None else accounting,
    )


def _cluster(kind: "Kind", place: Path) -> "SlurmCluster | RayCluster":
    if kind == "slurm":
        from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster

        return SlurmCluster(folder=place)
    from trimtab.orchestrator.dev_cluster.ray import RayCluster

    return RayCluster(folder=place)


def _show(kind: "Kind", cluster: "SlurmCluster | RayCluster", *, json_output: bool) -> None:
    is_running = cluster.is_running
    states = cluster.states() if is_running else {}
    environment = cluster.environment if is_running else {}
    if json_output:
        print_json(
            {
                "schema": 1,
                "kind": kind,
                "running": is_running,
                "folder": str(cluster.folder),
                "environment": environment,
                "nodes": states,
            }
        )
        return
    if not is_running:
        typer.echo(f"no {kind} cluster runs in {cluster.folder}", err=True)
        return
    for node, state in states.items():
        typer.echo(f"{node:<24} {state}", err=True)
    for name, value in environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
