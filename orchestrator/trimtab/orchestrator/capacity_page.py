"""The chart page of `trimtab capacity`: one HTML file that needs nothing else."""

import html
from collections.abc import Callable, Sequence

from trimtab.core.units import count_text, duration_text
from trimtab.orchestrator.capacity import CapacityRow

_WIDTH, _HEIGHT, _MARGIN = 520, 240, 44
_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #6b7280; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #9ca3af; --paper: #111827; } }
body { font: 15px system-ui, sans-serif; color: var(--ink); background: var(--paper);
       margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; flex: 1 1 20rem; } svg { width: 100%; height: auto; }
text { fill: var(--soft); font-size: 12px; } figcaption { font-weight: 600; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #8884;
         white-space: nowrap; }
td.reason { text-align: left; white-space: normal; }
"""


def page(name: str, num_tokens: float, rows: Sequence[CapacityRow]) -> str:
    """The page: wall time, GPU-hours and goodput over the number of GPUs, and the table."""
    title = html.escape(f"{name}: {count_text(num_tokens)} tokens")
    charts = "".join(
        (
            _chart("Wall time, days", rows, lambda row: (row.wall_s or 0) / 86_400),
            _chart("GPU-hours", rows, lambda row: row.gpu_hours or 0),
            _chart("Goodput, %", rows, lambda row: 100 * (row.goodput or 0)),
        )
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{_STYLE}</style><h1>{title}</h1><div class="charts">{charts}</div>'
        f'<div class="table">{_table(rows)}</div></html>\n'
    )


def _chart(
    title: str, rows: Sequence[CapacityRow], value: Callable[[CapacityRow], float]
) -> str:
    """A line for each device, sizes evenly spaced as they were asked for."""
    fitting = [row for row in rows if row.wall_s is not None]
    if not fitting:
        return ""
    sizes = sorted({row.num_gpus for row in fitting})
    most = max(value(row) for row in fitting) or 1.0

    def place(row: CapacityRow) -> tuple[float, float]:
        share = sizes.index(row.num_gpus) / max(1, len(sizes) - 1)
        x = _MARGIN + share * (_WIDTH - 2 * _MARGIN)
        return x, _HEIGHT - _MARGIN - value(row) / most * (_HEIGHT - 2 * _MARGIN)

    marks = []
    for index, gpu in enumerate(dict.fromkeys(row.gpu for row in fitting)):
        colour = _COLOURS[index % len(_COLOURS)]
        points = [(row, *place(row)) for row in fitting if row.gpu == gpu]
        line = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in points)
        marks.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>'
        )
        marks += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{row.num_gpus} '
            f"{html.escape(gpu)}: {value(row):.4g}</title></circle>"
            for row, x, y in points
        ]
        marks.append(
            f'<text x="{_WIDTH - _MARGIN}" y="{16 + 15 * index}" text-anchor="end" '
            f'style="fill:{colour}">{html.escape(gpu)}</text>'
        )
    shown = {place(row)[0]: row.num_gpus for row in fitting}
    marks += [
        f'<text x="{x:.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{size}</text>'
        for x, size in shown.items()
    ]
    base = _HEIGHT - _MARGIN
    axis = f'<path d="M{_MARGIN} {base}H{_WIDTH - _MARGIN}" stroke="#8888"/>'
    label = f'<text x="{_MARGIN}" y="{_MARGIN - 8}">{count_text(most)}</text>'
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title} by GPUs">'
        f"{axis}{label}{''.join(marks)}</svg></figure>"
    )


def _table(rows: Sequence[CapacityRow]) -> str:
    head = "".join(
        f"<th>{word}</th>"
        for word in ("GPUs", "device", "layout", "step", "MFU", "goodput", "wall time", "GPU-h")
    )
    return f"<table><tr>{head}</tr>{''.join(_row(row) for row in rows)}</table>"


def _row(row: CapacityRow) -> str:
    cells = [str(row.num_gpus), row.gpu]
    reason = ""
    if row.wall_s is None or row.step_s is None:
        reason = f'<td colspan="6" class="reason">{html.escape(row.reason or "")}</td>'
    else:
        cells += [
            "; ".join(row.layouts),
            duration_text(row.step_s),
            f"{row.mfu:.1%}",
            f"{row.goodput:.1%}",
            duration_text(row.wall_s),
            count_text(row.gpu_hours or 0.0),
        ]
    plain = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr>{plain}{reason}</tr>"
