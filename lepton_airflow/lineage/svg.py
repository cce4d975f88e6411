"""A lineage graph as a picture: data flows from left to right, boxes with round corners are datasets, the others are steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from lepton_airflow.lineage.graph import Graph, Step

_WIDTH = 250
_GAP_X = 70
_GAP_Y = 26
_LINE = 17
_PADDING = 10
_MARGIN = 24
_SHOWN_COLUMNS = 8
_LONGEST = 34
_LONGEST_NAME = 28
_TEXT = 'role="img" font-family="system-ui, sans-serif" font-size="12"'
_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0 10 5 0 10z" fill="#475569"/></marker></defs>'
)

#: Fill and stroke of a box: what it stands for.
_COLOURS: Mapping[str, tuple[str, str]] = {
    "dataset": ("#ffffff", "#334155"),
    "focus": ("#fef9c3", "#854d0e"),
    "encrypt": ("#dcfce7", "#15803d"),
    "rotate": ("#dcfce7", "#15803d"),
    "decrypt": ("#fee2e2", "#b91c1c"),
    "release": ("#dbeafe", "#1d4ed8"),
    "store": ("#f1f5f9", "#475569"),
    "restore": ("#f1f5f9", "#475569"),
    "train": ("#ede9fe", "#6d28d9"),
}


@dataclass
class _Box:
    kind: str
    lines: list[str]
    rank: int
    title: str
    x: float = 0
    y: float = 0

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + 2 * _PADDING


def draw(graph: Graph, focus: str) -> str:
    """The graph as an SVG document, with ``focus`` in the middle of attention."""
    datasets = {name: _dataset_box(graph, name, focus, rank) for name, rank in _ranks(graph, focus).items()}
    edges: list[tuple[_Box, _Box]] = []
    boxes = list(datasets.values())
    for step in graph.steps:
        if step.source == step.target or step.target is None:
            continue
        source, target = datasets[step.source], datasets[step.target]
        box = _Box(step.action, _step_lines(step), min(source.rank, target.rank) + 1, _full_text(step))
        boxes.append(box)
        edges += [(source, box), (box, target)]
    width, height = _place(boxes, edges)
    size = f'width="{width:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width:.0f} {height:.0f}" {_TEXT}>',
        f"<title>Lineage of {escape(focus)}</title>",
        _ARROW,
        f'<rect {size} fill="#ffffff"/>',
        *(_edge(start, end) for start, end in edges),
        *(_rectangle(box) for box in boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _ranks(graph: Graph, focus: str) -> dict[str, int]:
    """The column of each dataset: as far to the right as its longest way from what nothing writes. Steps lie between."""
    ranks = dict.fromkeys(sorted(graph.datasets | {focus}), 0)
    edges = [(step.source, step.target) for step in graph.steps if step.target is not None]
    edges = [(source, target) for source, target in edges if source != target]
    # A cycle, such as decrypting back to the source, would push for ever: as many rounds as there are datasets suffice.
    for _ in ranks:
        for source, target in edges:
            if ranks[target] < ranks[source] + 2 <= 2 * len(ranks):
                ranks[target] = ranks[source] + 2
    used = {rank: position for position, rank in enumerate(sorted(set(ranks.values())))}
    return {name: 2 * used[rank] for name, rank in ranks.items()}


def _place(boxes: list[_Box], edges: list[tuple[_Box, _Box]]) -> tuple[float, float]:
    """Give each box its place, column by column, near the boxes that lead to it; return the size of the picture."""
    columns: dict[int, list[_Box]] = {}
    for box in boxes:
        columns.setdefault(box.rank, []).append(box)
    heights = {rank: sum(box.height for box in column) + _GAP_Y * (len(column) - 1) for rank, column in columns.items()}
    tallest = max(heights.values())
    for position, (rank, column) in enumerate(sorted(columns.items())):
        leading = {
            id(box): [start.y + start.height / 2 for start, end in edges if end is box and start.rank < rank]
            for box in column
        }
        column.sort(key=lambda box: sum(leading[id(box)]) / len(leading[id(box)]) if leading[id(box)] else 0.0)
        y = _MARGIN + (tallest - heights[rank]) / 2
        for box in column:
            box.x, box.y = _MARGIN + position * (_WIDTH + _GAP_X), y
            y += box.height + _GAP_Y
    width = 2 * _MARGIN + len(columns) * (_WIDTH + _GAP_X) - _GAP_X
    return width, tallest + 2 * _MARGIN


def _dataset_box(graph: Graph, name: str, focus: str, rank: int) -> _Box:
    lines = [_short(name, _LONGEST_NAME)]
    for step in graph.within(name):
        lines.append(f"keys rotated {step.last[:10]}" + (f" ({step.runs} times)" if step.runs > 1 else ""))
    return _Box("focus" if name == focus else "dataset", lines, rank, name)


def _step_lines(step: Step) -> list[str]:
    lines = [step.action, _short(step.task), f"{step.runs} run{'s' if step.runs != 1 else ''}, last {step.last[:10]}"]
    if step.note:
        lines.append(_short(step.note))
    columns = [_short(f"{column}: {became}") for column, became in step.columns.items()]
    lines += columns[:_SHOWN_COLUMNS]
    if len(columns) > _SHOWN_COLUMNS:
        lines.append(f"and {len(columns) - _SHOWN_COLUMNS} more columns")
    return lines


def _full_text(step: Step) -> str:
    return "\n".join((step.task, step.run_key, *(f"{column}: {became}" for column, became in step.columns.items())))


def _short(text: str, longest: int = _LONGEST) -> str:
    """What fits a box; of a long path the end is what tells it apart."""
    if len(text) <= longest:
        return text
    return "…" + text[-(longest - 1) :] if text.startswith("/") or "://" in text else text[: longest - 1] + "…"


def _rectangle(box: _Box) -> str:
    fill, stroke = _COLOURS[box.kind]
    is_dataset = box.kind in ("dataset", "focus")
    radius = 14 if is_dataset else 2
    texts = [
        f'<text x="{box.x + _PADDING:.1f}" y="{box.y + _PADDING + (line + 0.75) * _LINE:.1f}" '
        f'fill="#0f172a"{" font-weight=" + chr(34) + "600" + chr(34) if line == 0 else ""}>{escape(text)}</text>'
        for line, text in enumerate(box.lines)
    ]
    return (
        f'<g><title>{escape(box.title)}</title><rect x="{box.x:.1f}" y="{box.y:.1f}" width="{_WIDTH}" '
        f'height="{box.height:.1f}" rx="{radius}" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
        + "".join(texts)
        + "</g>"
    )


def _edge(start: _Box, end: _Box) -> str:
    y1, y2 = start.y + start.height / 2, end.y + end.height / 2
    # Back to the left, where data returns to where it came from, the line leaves and enters on the other sides.
    forward = start.x < end.x
    x1, x2 = (start.x + _WIDTH, end.x) if forward else (start.x, end.x + _WIDTH)
    bend = _GAP_X / 2 if forward else -_GAP_X / 2
    path = f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    return f'<path d="{path}" fill="none" stroke="#475569" stroke-width="1.5" marker-end="url(#arrow)"/>'
