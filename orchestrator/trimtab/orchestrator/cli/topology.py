"""`trimtab topology`: a cluster drawn, or measured."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.core.errors import InputError, printable
from trimtab.orchestrator.cli.output import (
    DryRunOption,
    JsonOption,
    console,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel

    from trimtab.core.cluster import ClusterSpec
    from trimtab.core.job import ScriptSpec
    from trimtab.core.link_speed import LinkSpeeds

_SHOWN_NODES = 4


def topology(
    cluster: Annotated[
        Path, typer.Argument(metavar="CLUSTER", help="Cluster file (YAML).", show_default=False)
    ],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the drawing as a page of its own.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Write the drawing alone, as SVG.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time the links on ranks of a small job, and write them."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where --measure writes the cluster file."),
    ] = None,
    scheduler: Annotated[
        str, typer.Option("--scheduler", "-s", help="Where --measure runs: local, slurm, ray.")
    ] = "local",
    ranks_per_node: Annotated[
        int | None,
        typer.Option("--ranks-per-node", help="Of --measure; default: every GPU of a node."),
    ] = None,
    slurm_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm-arg", help="Of --measure, for sbatch, as name=value; repeatable."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Of Ray's Jobs API, for --measure.")
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Draw a cluster: islands, nodes, GPUs, NICs, and the links between islands.

    With --measure its links are timed first, by a job of as many ranks as the file has GPUs (or
    --ranks-per-node on every node), and written to a new cluster file; with --dry-run the
    request of that job is printed, and nothing is run.

    Examples: trimtab topology clusters/holmes-mix.yaml --html topology.html;
    trimtab topology cluster.yaml --measure -s slurm --out measured.yaml
    """
    from trimtab.orchestrator import topology_page
    from trimtab.orchestrator.config import load_cluster

    spec = load_cluster(cluster)
    _check_outputs({"--out": out, "--html": html, "--svg": svg}, cluster=cluster)
    screen = console(stderr=json)
    if not measure:
        asked = {"--out": out, "--ranks-per-node": ranks_per_node, "--slurm-arg": slurm_arg}
        for name, value in (*asked.items(), ("--dry-run", dry_run or None)):
            if value is not None:
                raise InputError(f"{name}: expected --measure beside it, got none")
    else:
        from trimtab.orchestrator.cli.progress import INTERRUPTED

        job = _measuring(
            spec,
            scheduler=scheduler,
            ranks_per_node=ranks_per_node,
            slurm_args=slurm_arg or [],
            address=address,
        )
        if dry_run:
            _print_request(job, scheduler=scheduler)
            return 0
        if out is None:
            raise InputError("--out: expected the file for the measured cluster, got none")
        try:
            spec = _measured(spec, job, scheduler=scheduler, screen=screen)
        except KeyboardInterrupt:
            return INTERRUPTED
        from trimtab.orchestrator.config import cluster_text

        _write(out, cluster_text(spec))
        screen.print(f"written to {out}", markup=False, soft_wrap=True)
    for path, draw in ((html, topology_page.topology_page), (svg, topology_page.topology_svg)):
        if path is not None:
            _write(path, draw(spec))
            screen.print(f"written to {path}", markup=False, soft_wrap=True)
    if json:
        print_json(document(spec))
    else:
        show(screen, spec)
    return 0


def _measuring(
    spec: "ClusterSpec",
    *,
    scheduler: str,
    ranks_per_node: int | None,
    slurm_args: list[str],
    address: str | None,
) -> "ScriptSpec":
    from trimtab.core import checks
    from trimtab.core.job import SCHEDULERS
    from trimtab.core.scheduling import RayOptions, SlurmOptions
    from trimtab.orchestrator.link_measuring import measuring_job, rank_pools

    checks.one_of("--scheduler", scheduler, SCHEDULERS)
    return measuring_job(
        spec,
        rank_pools(spec, ranks_per_node=ranks_per_node),
        on_one_machine=scheduler == "local",
        slurm=SlurmOptions(args=tuple(slurm_args)),
        ray=RayOptions() if address is None else RayOptions(address=address),
    )


def _print_request(job: "ScriptSpec", *, scheduler: str) -> None:
    import sys

    from trimtab.orchestrator.submission import prepare_job

    prepared = prepare_job(job, scheduler=scheduler)  # type: ignore[arg-type]  # checked
    sys.stdout.write(prepared.text)


def _measured(
    spec: "ClusterSpec", job: "ScriptSpec", *, scheduler: str, screen: "Console"
) -> "ClusterSpec":
    """Run the measuring job, and put what it found into the cluster."""
    import datetime

    from trimtab.orchestrator.cli import progress
    from trimtab.orchestrator.link_measuring import measured_cluster, read_speeds
    from trimtab.orchestrator.runs_folder import runs_root

    run = progress.run_and_follow(
        job,
        root=runs_root(),
        console=screen,
        interrupted="stopped; nothing measured",
        scheduler=scheduler,  # type: ignore[arg-type]  # checked
    )
    speeds = read_speeds(run)
    _show_speeds(screen, speeds)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return measured_cluster(spec, speeds, when=today)


def _show_speeds(out: "Console", speeds: "LinkSpeeds") -> None:
    from rich.markup import escape
    from rich.table import Table

    from trimtab.core.units import GB, duration_text

    table = Table(
        title=f"{speeds.num_ranks} ranks, {speeds.backend}, "
        f"{speeds.message_bytes / 2**20:g} MiB a message",
        title_justify="left",
    )
    for name in ("pairs", "from", "to"):
        table.add_column(name)
    for name in ("at once", "latency", "all together"):
        table.add_column(name, justify="right")
    names = {"node": "in a node", "island": "in an island", "between": "between islands"}
    for pair in speeds.pairs:
        table.add_row(
            names[pair.kind],
            escape(printable(pair.source)),
            escape(printable(pair.target)),
            str(pair.num_pairs),
            duration_text(pair.latency_s),
            f"{pair.bytes_per_s / GB:.3g} GB/s",
        )
    out.print(table)


def document(spec: "ClusterSpec") -> dict[str, Any]:
    """What `--json` prints: islands with their nodes, and every way between them."""
    from trimtab.core import serde

    islands = []
    for island in spec.islands:
        nodes = [node for node in spec.nodes if node.island == island]
        fields = []
        for node in nodes:
            entry = serde.to_document(node)
            del entry["schema"], entry["type"]
            fields.append(entry)
        num_gpus = sum(node.num_gpus for node in nodes)
        islands.append({"name": island, "num_gpus": num_gpus, "nodes": fields})
    return {
        "schema": serde.SCHEMA_VERSION,
        "cluster": spec.name,
        "num_gpus": spec.num_gpus,
        "islands": islands,
        "ways": [
            {
                "source": source,
                "target": target,
                "bytes_per_s": entry.link.bytes_per_s,
                "latency_s": entry.link.latency_s,
            }
            for entry in spec.links
            for source, target in entry.directions
        ],
        "source": spec.source,
    }


def show(out: "Console", spec: "ClusterSpec") -> None:
    """Draw the cluster on the terminal."""
    from rich.columns import Columns
    from rich.markup import escape

    from trimtab.core.units import counted
    from trimtab.orchestrator.topology_page import link_text

    out.print(
        f"[bold]{escape(printable(spec.name))}[/bold]: {counted(spec.num_gpus, 'GPU')} in "
        f"{counted(len(spec.islands), 'island')}"
    )
    out.print(Columns([_island(spec, island) for island in spec.islands]))
    if len(spec.islands) > 1 and not spec.links:
        out.print("no links are given: the nodes' own NICs join the islands", style="dim")
    for entry in spec.links:
        source, target = (printable(island) for island in entry.islands)
        arrow = "──▶" if entry.one_way else "◀─▶"
        shared = "" if entry.one_way else " each way"
        out.print(
            f"  {source} {arrow} {target}   {link_text(entry.link)}{shared}, shared by all of "
            "the island",
            markup=False,
        )


def _island(spec: "ClusterSpec", island: str) -> "Panel":
    """The box of an island."""
    from rich.markup import escape
    from rich.panel import Panel

    from trimtab.core.units import counted, memory_text
    from trimtab.orchestrator.topology_page import link_text, nic_text

    lines = []
    for node in (node for node in spec.nodes if node.island == island):
        gpu = escape(printable(node.gpu.name))
        lines += [
            f"[bold]{escape(printable(node.name))}[/bold]  {counted(node.count, 'node')}",
            f"{gpu}, {memory_text(node.gpu.memory_bytes)}",
            f"[dim]in a node {link_text(node.intra_node)}[/dim]",
        ]
        lines += [f"[cyan]━[/cyan] {nic_text(nic)}" for nic in node.nics]
        if node.measured_flop_per_s is not None:
            lines.append(f"measured {node.measured_flop_per_s / 1e12:.4g} TFLOP/s")
        squares = "■" * min(node.gpus_per_node, 16)
        lines += [
            f"[blue]{squares}[/blue] [dim]{escape(printable(node.name))}-{index}[/dim]"
            for index in range(min(node.count, _SHOWN_NODES))
        ]
        if node.count > _SHOWN_NODES:
            lines.append(f"[dim]... and {node.count - _SHOWN_NODES} more[/dim]")
    num_gpus = sum(node.num_gpus for node in spec.nodes if node.island == island)
    return Panel(
        "\n".join(lines),
        title=f"[bold]{escape(printable(island))}[/bold]",
        subtitle=counted(num_gpus, "GPU"),
        title_align="left",
        expand=False,
    )


def _check_outputs(outputs: dict[str, Path | None], *, cluster: Path) -> None:
    """Refuse, before anything runs, what could not be written or would overwrite an input."""
    taken = {cluster.resolve(): "the cluster file"}
    for option, path in outputs.items():
        if path is None:
            continue
        place = path if path.exists() else path.absolute().parent
        if path.is_dir() or not os.access(place, os.W_OK):
            raise InputError(
                f"{option}: {path}: expected a file that can be written; its folder must exist"
            )
        if path.resolve() in taken:
            raise InputError(
                f"{option}: {path} is {taken[path.resolve()]} too; name another file"
            )
        taken[path.resolve()] = f"the file of {option}"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: expected a file that can be written, got: {error.strerror}"
        ) from error
