"""`trimtab topology`: a cluster drawn, or measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.core.errors import InputError
from trimtab.orchestrator.cli.output import JsonOption, console, print_json, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel

    from trimtab.core.cluster import ClusterSpec

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
    json: JsonOption = False,
) -> None:
    """Draw a cluster: islands, nodes, GPUs, NICs, and the links between islands.

    Example: trimtab topology clusters/holmes-mix.yaml --html topology.html
    """
    from trimtab.orchestrator import topology_page
    from trimtab.orchestrator.config import load_cluster

    spec = load_cluster(cluster)
    screen = console(stderr=json)
    for path, draw in ((html, topology_page.topology_page), (svg, topology_page.topology_svg)):
        if path is not None:
            _write(path, draw(spec))
            screen.print(f"written to {path}", markup=False, soft_wrap=True)
    if json:
        print_json(document(spec))
    else:
        show(screen, spec)


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


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: expected a file that can be written, got: {error.strerror}"
        ) from error
