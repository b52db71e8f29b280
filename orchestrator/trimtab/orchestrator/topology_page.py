"""A cluster drawn: islands as boxes with their nodes, GPUs and NICs, links as lanes below."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.core.cluster import ClusterSpec, IslandLink, Link, NicSpec, NodeSpec
from trimtab.core.errors import printable
from trimtab.core.units import GB, GBIT, counted, duration_text, memory_text

_COLUMN, _GAP, _PADDING = 250, 40, 14
_SHOWN_NODES = 4
"""Of a kind; more of them are a line of text."""
_SQUARE, _LANE, _ROW = 16, 46, 17
_GPU_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
_NIC_COLOURS = {
    "infiniband": "#059669",
    "roce": "#d97706",
    "ethernet": "#6b7280",
    "loopback": "#9ca3af",
}
NIC_NAMES = {
    "infiniband": "InfiniBand",
    "roce": "RoCE",
    "ethernet": "Ethernet",
    "loopback": "loopback",
}
_STYLE = """
svg { --ink: #1f2937; --soft: #6b7280; --paper: #fff; --box: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e5e7eb; --soft: #9ca3af; --paper: #111827; --box: #1f2937; } }
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .island { font-size: 15px; font-weight: 600; }
.name { font-weight: 600; } .lane { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.box { fill: var(--box); stroke: var(--soft); } .label { fill: var(--paper); }
.node { fill: var(--paper); stroke: var(--soft); }
"""


def nic_text(nic: NicSpec) -> str:
    """`4 x InfiniBand 200 Gbit/s, 5 us`."""
    rate = f"{nic.bytes_per_s / GBIT:g} Gbit/s"
    return f"{nic.count} x {NIC_NAMES[nic.kind]} {rate}, {duration_text(nic.latency_s)}"


def link_text(link: Link) -> str:
    """`12.5 GB/s, 60 us`."""
    return f"{link.bytes_per_s / GB:.4g} GB/s, {duration_text(link.latency_s)}"


def topology_page(cluster: ClusterSpec) -> str:
    """The page: the drawing and where the figures come from; it needs nothing else."""
    title = _escaped(cluster.name)
    source = f"<p>{_escaped(cluster.source)}</p>" if cluster.source else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>:root { color-scheme: light dark; } body { font: 15px system-ui, sans-serif; "
        "margin: 1.5rem auto; max-width: 84rem; padding: 0 1rem; } svg { max-width: 100%; "
        "height: auto; }</style>"
        f"<h1>{title}</h1><p>{counted(cluster.num_gpus, 'GPU')} in "
        f"{counted(len(cluster.islands), 'island')}</p>{topology_svg(cluster)}{source}</html>\n"
    )


def topology_svg(cluster: ClusterSpec) -> str:
    """The drawing alone."""
    colours = {
        name: _GPU_COLOURS[index % len(_GPU_COLOURS)]
        for index, name in enumerate(cluster.gpu_names)
    }
    boxes = []
    for index, island in enumerate(cluster.islands):
        nodes = [node for node in cluster.nodes if node.island == island]
        boxes.append(_Box.of(island, nodes, x=_GAP + index * (_COLUMN + _GAP), gpus=colours))
    bottom = max(box.bottom for box in boxes)
    lanes = _lanes(cluster.links, {box.island: box for box in boxes}, below=bottom)
    width = _GAP + len(boxes) * (_COLUMN + _GAP)
    height = bottom + _LANE * len(cluster.links) + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" role="img" aria-label="{_escaped(cluster.name)}">'
        f"<style>{_STYLE}</style><defs>"
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker>'
        f"</defs>{''.join(box.marks for box in boxes)}{lanes}</svg>"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """The box of an island."""

    island: str
    x: float
    bottom: float
    marks: str

    @classmethod
    def of(
        cls, island: str, nodes: Sequence[NodeSpec], *, x: float, gpus: dict[str, str]
    ) -> "_Box":
        y = 20.0
        marks = [
            _text(x + _PADDING, y + 24, island, "island"),
            _text(
                x + _COLUMN - _PADDING,
                y + 24,
                counted(sum(node.num_gpus for node in nodes), "GPU"),
                "soft",
                anchor="end",
            ),
        ]
        y += 38
        for node in nodes:
            drawn, y = _nodes(node, x=x + _PADDING, y=y, colour=gpus[node.gpu.name])
            marks.append(drawn)
        frame = (
            f'<rect class="box" x="{x}" y="20" width="{_COLUMN}" height="{y - 20:.0f}" rx="8"/>'
        )
        return cls(island=island, x=x, bottom=y, marks=frame + "".join(marks))


def _nodes(node: NodeSpec, *, x: float, y: float, colour: str) -> tuple[str, float]:
    """The nodes of one kind, and where the next may begin."""
    lines = [
        (f"{node.gpu.name}, {memory_text(node.gpu.memory_bytes)}", "soft", None),
        (f"in a node {link_text(node.intra_node)}", "soft", None),
        *((nic_text(nic), "", _NIC_COLOURS[nic.kind]) for nic in node.nics),
    ]
    if node.measured_flop_per_s is not None:
        lines.append((f"measured {node.measured_flop_per_s / 1e12:.4g} TFLOP/s", "soft", None))
    marks = []
    for text, style, dot in lines:
        y += _ROW
        indent = 0
        if dot is not None:
            marks.append(f'<circle cx="{x + 5}" cy="{y - 4:.0f}" r="4" fill="{dot}"/>')
            indent = 14
        marks.append(_text(x + indent, y, text, style))
    y += 8
    per_row = (_COLUMN - 4 * _PADDING) // (_SQUARE + 4)
    rows = -(-node.gpus_per_node // per_row)
    for index in range(min(node.count, _SHOWN_NODES)):
        height = 22 + rows * (_SQUARE + 4) + 4
        marks.append(
            f'<rect class="node" x="{x}" y="{y:.0f}" width="{_COLUMN - 2 * _PADDING}" '
            f'height="{height}" rx="4"/>'
        )
        marks.append(_text(x + 8, y + 16, f"{node.name}-{index}", "name"))
        for gpu in range(node.gpus_per_node):
            left = x + 8 + gpu % per_row * (_SQUARE + 4)
            top = y + 22 + gpu // per_row * (_SQUARE + 4)
            marks.append(
                f'<rect x="{left}" y="{top:.0f}" width="{_SQUARE}" height="{_SQUARE}" rx="3" '
                f'fill="{colour}"/>'
            )
        y += height + 8
    if node.count > _SHOWN_NODES:
        y += _ROW
        rest = counted(node.count - _SHOWN_NODES, "more node")
        marks.append(_text(x, y - 4, f"... and {rest} of this kind", "soft"))
    return "".join(marks), y + 8


def _lanes(links: Sequence[IslandLink], boxes: dict[str, _Box], *, below: float) -> str:
    """A lane for each link, from box to box, with its figures in the middle."""
    used = dict.fromkeys(boxes, 0)
    ends = dict.fromkeys(boxes, 0)
    for link in links:
        for island in link.islands:
            ends[island] += 1
    marks = []
    for index, link in enumerate(links):
        y = below + _LANE * index + 34
        points = []
        for island in link.islands:
            used[island] += 1
            box = boxes[island]
            points.append((box.x + _COLUMN * used[island] / (ends[island] + 1), box.bottom))
        (x1, y1), (x2, y2) = points
        start = "" if link.one_way else ' marker-start="url(#tip)"'
        marks.append(
            f'<path class="lane" d="M{x1:.0f} {y1:.0f}V{y:.0f}H{x2:.0f}V{y2:.0f}"{start} '
            'marker-end="url(#tip)"/>'
        )
        text = link_text(link.link) + ("" if link.one_way else " each way")
        middle, half = (x1 + x2) / 2, 3.4 * len(text)
        marks.append(
            f'<rect class="label" x="{middle - half:.0f}" y="{y - 9:.0f}" '
            f'width="{2 * half:.0f}" height="18"/>'
        )
        marks.append(_text(middle, y + 4, text, "", anchor="middle"))
    return "".join(marks)


def _text(x: float, y: float, text: str, style: str, *, anchor: str = "start") -> str:
    css = f' class="{style}"' if style else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{css}>{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """One line of text for HTML and SVG, which allow no control characters."""
    return html.escape(printable(text))
