"""Pictures of releases: every number with its interval. They are drawn from a release document alone, so they cost no privacy.

matplotlib draws, without its global state and without a display.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import MissingDependency, SpecError

if TYPE_CHECKING:
    from lepton_airflow.privacy.tuning import Outcome

    #: Of matplotlib, which has no types.
    Figure = Any
    Axes = Any

#: Groups that one picture shows at most; the file says what it leaves out.
MOST_GROUPS = 60
#: Histograms of groups that one picture shows at most: each has a panel of its own.
MOST_HISTOGRAMS = 6
_INK, _SOFT, _ACCENT = "#1f3b57", "#8aa3b8", "#c8553d"
#: Inches: a column of panels, the names of groups in it, a histogram, and what stands above and below a panel's own content.
_WIDTH, _NAMES, _PANEL, _FRAME = 6.0, 1.7, 1.2, 0.8
#: Inches above which the panels of a grouping go into two columns.
_HIGH = 12
#: Characters of a group's name.
_LABEL = 26


@dataclass(frozen=True)
class _Panel:
    """One part of a picture: how high it is, in inches, and what draws it."""

    height: float
    draw: Callable[[Axes], None]


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw a release: dots with whiskers for numbers, bars for histograms, for every metric and grouping.

    :param document: of schema ``lepton.release/2``
    :param file: ``.svg`` or ``.png``; it is replaced if it is there
    :raises MissingDependency: matplotlib is not installed
    :raises SpecError: the file is of another kind, or the document is no release
    """
    if document.get("schema") != "lepton.release/2":
        raise SpecError(
            "This is no release of schema lepton.release/2.", place=str(file), remedy="Give a release file."
        )
    columns = []
    for grouping in document["groupings"]:
        columns += _in_columns([panel for metric in document["metrics"] for panel in _panels(grouping, metric)])
    _save(_figure(columns, _title(document)), file)


def draw_tuning(outcomes: Sequence[Outcome], file: Path, *, most: int = 20) -> None:
    """Draw the best combinations of bounds: what they cut off, and the noise that they need.

    :raises MissingDependency: matplotlib is not installed
    :raises SpecError: the file is neither ``.svg`` nor ``.png``
    """
    ranked = sorted(outcomes, key=lambda outcome: outcome.error)
    shown = ranked[:most] + [outcome for outcome in ranked[most:] if outcome.declared]
    names = [
        f"L0 {one.groups}, Linf {one.rows}, clip × {one.clip}{' (declared)' if one.declared else ''}" for one in shown
    ]
    bias = [100 * sum(metric.bias for metric in one.metrics.values()) for one in shown]
    noise = [100 * sum(metric.noise for metric in one.metrics.values()) for one in shown]

    def bars(axes: Axes) -> None:
        places = range(len(shown))
        axes.barh(places, bias, color=_ACCENT, label="bias: cut off by the bounds")
        axes.barh(places, noise, left=bias, color=_SOFT, label="noise: half width of the 95% interval")
        axes.set_yticks(places, names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("% of the mean size of a number, added up over metrics", fontsize=8)
        axes.legend(fontsize=7, frameon=False)

    panel = _Panel(_rows(len(shown)) + 0.6, bars)
    _save(_figure([[panel]], "Bounds on a public table, the best first"), file)


def _panels(grouping: Mapping[str, Any], metric: Mapping[str, Any]) -> list[_Panel]:
    cells, name = grouping["cells"], metric["name"]
    title = f"{name} ({metric['type'].replace('_', ' ')})"
    if grouping["group_by"]:
        title += f" by {', '.join(grouping['group_by'])}"
    if not cells:
        return [_Panel(0.4, _words(title, "no group is shown"))]
    if metric["type"] == "histogram":
        panels = []
        for cell in cells[:MOST_HISTOGRAMS]:
            own = f"{title}: {_label(cell)}" if grouping["group_by"] else title
            panels.append(_Panel(_PANEL, _histogram(own, cell["values"][name]["bins"], metric)))
        if len(cells) > MOST_HISTOGRAMS:
            panels.append(_Panel(0.2, _words("", f"{len(cells) - MOST_HISTOGRAMS} more groups are in the release")))
        return panels
    shown = cells[:MOST_GROUPS]
    if len(cells) > len(shown):
        title += f", the first {len(shown)} of {len(cells)} groups"
    several = len(metric.get("quantiles", ())) or 1
    return [_Panel(_rows(len(shown)) * (1 + 0.3 * (several - 1)), _dots(title, shown, metric))]


def _rows(count: int) -> float:
    """Inches for so many groups, which stand closer if they are many."""
    return max((0.24 if count <= 12 else 0.17) * count, 0.4)


def _in_columns(panels: Sequence[_Panel]) -> list[list[_Panel]]:
    """The panels in one column, or in two of about the same height."""
    heights = [panel.height + _FRAME for panel in panels]
    if len(panels) == 1 or sum(heights) <= _HIGH:
        return [list(panels)]
    cut = min(range(1, len(panels)), key=lambda place: max(sum(heights[:place]), sum(heights[place:])))
    return [list(panels[:cut]), list(panels[cut:])]


def _dots(title: str, cells: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> Callable[[Axes], None]:
    """A dot for each number and a whisker for its interval; quantiles of one group below each other."""
    quantiles = metric.get("quantiles", ())

    def paint(axes: Axes) -> None:
        for place, cell in enumerate(cells):
            values = cell["values"][metric["name"]]
            entries = [values[q] for q in quantiles] if quantiles else [values]
            for index, entry in enumerate(entries):
                shift = 0.6 * (index - (len(entries) - 1) / 2) / len(entries)
                axes.plot(entry["interval"], [place + shift] * 2, color=_SOFT, linewidth=1.6, solid_capstyle="butt")
                axes.plot(entry["value"], place + shift, marker="o", markersize=3.2, color=_INK)
        axes.set_yticks(range(len(cells)), [_label(cell) for cell in cells], fontsize=7)
        axes.set_ylim(len(cells) - 0.4, -0.6)
        axes.set_title(title, fontsize=9, loc="left")
        if quantiles:
            axes.set_xlabel(f"quantiles {', '.join(quantiles)}, from top to bottom", fontsize=7)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="x", color="#e4e8ec", linewidth=0.6)

    return paint


def _histogram(title: str, bins: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        middles = [(own["from"] + own["to"]) / 2 for own in bins]
        values = [own["value"] for own in bins]
        # An interval holds its value, so that neither length is negative.
        whiskers = [
            [own["value"] - own["interval"][0] for own in bins],
            [own["interval"][1] - own["value"] for own in bins],
        ]
        axes.bar(middles, values, width=[own["to"] - own["from"] for own in bins], color=_SOFT, edgecolor="white")
        axes.errorbar(middles, values, yerr=whiskers, fmt="none", ecolor=_INK, elinewidth=1, capsize=2)
        axes.axhline(0, color=_INK, linewidth=0.6)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(metric["column"], fontsize=7)

    return paint


def _words(title: str, text: str) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        axes.axis("off")
        axes.set_title(title, fontsize=9, loc="left")
        axes.text(0, 0.3, text, fontsize=8, transform=axes.transAxes)

    return paint


def _label(cell: Mapping[str, Any]) -> str:
    values = ["null" if value is None else str(value) for value in cell["group"].values()]
    # A dollar sign would start a formula.
    return (_shortened(values) or "all").replace("$", r"\$")


def _shortened(values: Sequence[str]) -> str:
    """The values joined; if that is too long, the longest ones are cut, so that every column still tells groups apart."""
    limit = _LABEL
    while len(text := ", ".join(own if len(own) <= limit else f"{own[: limit - 1]}…" for own in values)) > _LABEL:
        if limit <= 4:
            break
        limit -= 1
    return text


def _title(document: Mapping[str, Any]) -> str:
    amounts = f"epsilon {document['epsilon']}"
    if document["delta"] != "0":
        amounts += f", delta {document['delta']}"
    return f"{document['dataset']}: {amounts}, {document['noise'].capitalize()} noise; intervals at 95%, of the noise alone"


def _figure(columns: Sequence[Sequence[_Panel]], title: str) -> Figure:
    """One column of panels for each grouping, none of them stretched."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency(
            "Pictures are drawn by matplotlib, which is not installed.",
            place="plot",
            remedy='Install it: pip install "lepton-airflow[privacy]".',
        ) from None
    heights = [sum(panel.height + _FRAME for panel in column) for column in columns]
    total = max(heights) + 0.5
    figure = Figure(figsize=(_WIDTH * len(columns), total))
    FigureCanvasAgg(figure)
    figure.suptitle(title.replace("$", r"\$"), fontsize=9, x=0.02, y=1 - 0.12 / total, ha="left", va="top")
    for place, column in enumerate(columns):
        top = total - 0.5
        for panel in column:
            bottom = top - 0.35 - panel.height
            across = len(columns) * _WIDTH
            left, width = (place * _WIDTH + _NAMES) / across, (_WIDTH - _NAMES - 0.35) / across
            axes = figure.add_axes((left, bottom / total, width, panel.height / total))
            panel.draw(axes)
            axes.tick_params(labelsize=7, length=2)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            top -= panel.height + _FRAME
    return figure


def _save(figure: Figure, file: Path) -> None:
    """Write the picture beside its place and rename it: nobody sees half of it.

    An SVG holds its text as text, and neither a date nor random names: the same release gives the same file.
    """
    from matplotlib import rc_context

    kind = file.suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise SpecError("Pictures are .svg or .png.", place=str(file), remedy="Give the file such a name.")
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.name}.{secrets.token_hex(8)}.staging")
    try:
        with rc_context({"svg.hashsalt": "lepton", "svg.fonttype": "none"}), staging.open("xb") as stream:
            figure.savefig(stream, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)
