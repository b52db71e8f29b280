"""`trimtab dev-cluster`: a real Slurm or Ray on this one machine, to try things on."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from trimtab.orchestrator.dev_cluster.ray import RayCluster
    from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster

Kind = Literal["slurm", "ray"]

_DEFAULT_FOLDER = Path("~/.trimtab/dev-cluster")

FolderOption = Annotated[
    Path | None,
    typer.Option(help="Where everything of it lies; ~/.trimtab/dev-cluster/KIND if not given."),
]

app = typer.Typer(
    help="A real Slurm or Ray cluster of several nodes on this machine, to try things on.",
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
    nodes: Annotated[int, typer.Option("--nodes", "-N", min=1, max=64)] = 4,
    gpus: Annotated[int, typer.Option(help="Fake GPUs of each node.", min=0, max=64)] = 8,
    cpus: Annotated[int, typer.Option(help="CPUs of each node.", min=1, max=1024)] = 16,
    folder: FolderOption = None,
    json_output: JsonOption = False,
) -> None:
    """Start it, or what of it does not run; says what to set so that others find it."""
    cluster = _cluster(context.obj, folder)
    with console(stderr=True).status(f"starting {context.obj} with {nodes} nodes"):
        cluster.start(num_nodes=nodes, gpus_per_node=gpus, cpus_per_node=cpus)
    _show(context.obj, cluster, json_output=json_output)


@app.command()
def stop(context: typer.Context, folder: FolderOption = None) -> None:
    """End its jobs and daemons and remove its folder."""
    _cluster(context.obj, folder).stop()


@app.command()
def status(
    context: typer.Context, folder: FolderOption = None, json_output: JsonOption = False
) -> None:
    """Show its nodes and how to reach it."""
    _show(context.obj, _cluster(context.obj, folder), json_output=json_output)


@app.command("kill-node")
def kill_node(
    context: typer.Context,
    node: str,
    hard: Annotated[
        bool, typer.Option("--hard", help="Also all that jobs run there, as a power cut.")
    ] = False,
    folder: FolderOption = None,
) -> None:
    """Kill a node's daemon, to see jobs recover."""
    _cluster(context.obj, folder).kill_node(node, hard=hard)


@app.command("start-node")
def start_node(context: typer.Context, node: str, folder: FolderOption = None) -> None:
    """Start a killed node again."""
    _cluster(context.obj, folder).start_node(node)


def _cluster(kind: Kind, folder: Path | None) -> "SlurmCluster | RayCluster":
    place = (folder or _DEFAULT_FOLDER / kind).expanduser().absolute()
    if kind == "slurm":
        from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster

        return SlurmCluster(folder=place)
    from trimtab.orchestrator.dev_cluster.ray import RayCluster

    return RayCluster(folder=place)


def _show(kind: Kind, cluster: "SlurmCluster | RayCluster", *, json_output: bool) -> None:
    states = cluster.states() if cluster.is_running else {}
    document: dict[str, Any] = {
        "schema": 1,
        "kind": kind,
        "running": cluster.is_running,
        "folder": str(cluster.folder),
        "environment": cluster.environment if cluster.is_running else {},
        "nodes": states,
    }
    if json_output:
        print_json(document)
        return
    if not cluster.is_running:
        typer.echo(f"no {kind} cluster runs in {cluster.folder}", err=True)
        return
    for node, state in states.items():
        typer.echo(f"{node:<24} {state}", err=True)
    for name, value in cluster.environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
