"""``lepton release plan | tune | plot``: what a release will be like, before and after it is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lepton_airflow.cli.audited import audited
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.errors import SpecError, UnreadableSource
from lepton_airflow.settings import load_settings

if TYPE_CHECKING:
    from lepton_airflow.jobs.release_aggregates import ReleaseAggregatesSpec
    from lepton_airflow.privacy.plan import ReleasePlan
    from lepton_airflow.privacy.tuning import Outcome

app = typer.Typer(no_args_is_help=True)

SpecOption = Annotated[Path, typer.Option("--spec", help="The spec of a release, a YAML file.")]
#: Columns of numbers are told apart by two spaces where nobody looks at a terminal.
_GAP = "  "


@app.command()
def plan(
    spec: SpecOption,
    groups: Annotated[
        list[str] | None,
        typer.Option(help="How many keys a public table has: N, or GROUPING=N where there are several."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a typical group, for which weights are proposed.")] = 1000,
) -> None:
    """Predict the accuracy of a release, and propose weights. Reads the spec alone: no data, no database; costs nothing."""
    from lepton_airflow.privacy.accuracy import SIZES, predicted, private_groups
    from lepton_airflow.privacy.amount import amount_text

    design = _read_spec(spec)
    planned = design.plan(_group_counts(design, groups or []))
    _say(
        f"epsilon {amount_text(planned.epsilon)}, delta {amount_text(planned.delta)}, {planned.noise} noise. Half widths of "
        "the 95% intervals, which speak of the noise alone; of counts and sums they are the same for all data, of the others "
        "they are for values spread evenly over the bounds."
    )
    header = ["grouping", "metric", "type", *(f"of {size:,} rows" for size in SIZES)]
    lines = [
        [
            one.grouping,
            one.metric.name,
            one.metric.type,
            *(f"± {one.half_widths[size]:.4g} ({_percent(one.relative[size])})" for size in SIZES),
        ]
        for one in predicted(planned)
    ]
    _show(header, lines)
    for own in private_groups(planned):
        _say(
            f"{own.grouping}: groups are shown whose noisy number of units is {own.threshold} or more; one with {own.likely} "
            "units is shown in at least 95 of 100 releases."
        )
    _propose(design, planned, rows)


@app.command()
def plot(
    file: Annotated[Path, typer.Argument(help="A release file, JSON.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .svg or .png.")],
) -> None:
    """Draw a release with its intervals."""
    from lepton_airflow.privacy.plot import draw

    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableSource(
            f"The release cannot be read ({type(error).__name__}).", place=str(file), remedy="Give a release file."
        ) from None
    draw(document, output)
    _say(f"drawn: {output}")


@app.command()
def tune(
    spec: SpecOption,
    public_table: Annotated[str, typer.Option(help="The path of a table that resembles the real one and is public.")],
    public: Annotated[
        bool,
        typer.Option("--this-table-is-public", help="Say so: exact numbers of this table are shown, without noise."),
    ] = False,
    format: Annotated[str, typer.Option(help="The Spark data source of the table.")] = "parquet",
    groups: Annotated[str, typer.Option(help="Values of max_groups_per_unit to try, such as 1,2,4.")] = "",
    rows: Annotated[str, typer.Option(help="Values of max_rows_per_unit_and_group to try.")] = "",
    clip: Annotated[str, typer.Option(help="Factors of the clipping bounds to try.")] = "",
    table: Annotated[Path | None, typer.Option(help="Write everything to this CSV file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: .svg or .png.")] = None,
    home: HomeOption = None,
) -> None:
    """Try contribution and clipping bounds, also of quantiles, on a public table: what they cut off beside the noise they need.

    By default the declared bounds are tried times 1/4, 1/2, 1, 2 and 4. No privacy budget is touched, nothing is protected: the
    results are exact. Choosing bounds by looking at the real table would leak from it; hence a public or synthetic one.
    """
    from lepton_airflow.jobs.session import start_session
    from lepton_airflow.privacy.plot import draw_tuning
    from lepton_airflow.privacy.tuning import tune as tried
    from lepton_airflow.privacy.tuning import write_table

    if not public:
        raise SpecError(
            "Tuning shows exact numbers of a table, so the table must be public.",
            place=public_table,
            remedy="If it is public or synthetic, say --this-table-is-public. Never say it of the table to be protected.",
        )
    design = _read_spec(spec)
    trials = (
        _numbers(groups, "--groups", whole=True),
        _numbers(rows, "--rows", whole=True),
        _numbers(clip, "--clip", whole=False),
    )
    with audited(load_settings(home), "release.tune", dataset=design.source.name, public_table=public_table):
        spark = start_session("tune")
        frame = _open(spark, public_table, format)
        outcomes = tried(design, frame, groups=trials[0], rows=trials[1], clips=trials[2])
    header, lines = _tuned(outcomes)
    _show(header, lines)
    _say(
        "Error: bias and half width of the 95% interval, both relative to the mean size of the number, added up over metrics. "
        "The table was declared public: these numbers are exact, and no privacy budget was touched."
    )
    if table is not None:
        write_table(outcomes, table)
    if plot is not None:
        draw_tuning(outcomes, plot)


def _read_spec(file: Path) -> ReleaseAggregatesSpec:
    from lepton_airflow.jobs.release_aggregates import ReleaseAggregatesSpec
    from lepton_airflow.jobs.spec import parse_spec, read_spec_file

    return parse_spec(ReleaseAggregatesSpec, read_spec_file(file))


def _group_counts(design: ReleaseAggregatesSpec, given: Sequence[str]) -> list[int | None]:
    """How many keys each grouping has; None where they are chosen privately.

    :raises SpecError: a table holds the keys, and nobody says how many there are
    """
    tables = [grouping.name for grouping in design.sets if grouping.declared is None and grouping.keys != "private"]
    counts: dict[str, int] = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1 or (equals and name not in tables):
            raise SpecError(
                f"{text!r} is no number of keys of a grouping.",
                place="--groups",
                remedy=f"Write N or GROUPING=N, for: {', '.join(tables) or 'no grouping, as none has keys in a table'}.",
            )
        counts |= dict.fromkeys([name] if equals else tables, int(number))
    missing = [name for name in tables if name not in counts]
    if missing:
        raise SpecError(
            f"The keys of {', '.join(missing)} are in a table, which a plan does not read.",
            place="--groups",
            remedy="Say how many there are: --groups N.",
        )
    return [
        None if grouping.keys == "private" else counts.get(grouping.name) or len(grouping.declared or ())
        for grouping in design.sets
    ]


def _propose(design: ReleaseAggregatesSpec, planned: ReleasePlan, size: int) -> None:
    from lepton_airflow.privacy.accuracy import proposed_weights, relative_width, reweighted
    from lepton_airflow.privacy.amount import amount_text

    if len(design.metrics) == 1:
        return
    weights = proposed_weights(design, planned, size=size)
    after = reweighted(design, weights).plan([grouping.groups for grouping in planned.groupings])
    before_width, after_width = (relative_width(one, size=size) for one in (planned, after))
    said = f"Weights that make the sum of relative half widths least, in groups of {size:,} rows: "
    if after_width >= before_width * 0.99:
        _say(f"{said}about those of the spec.")
        return
    _say(f"{said}{_percent(before_width)} would become {_percent(after_width)}. To paste:")
    for metric in design.metrics:
        _say(f"  - name: {metric.name}\n    weight: {amount_text(weights[metric.name])}")


def _tuned(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    from lepton_airflow.privacy.tuning import best_of

    best = best_of(outcomes)
    metrics = list(outcomes[0].metrics)
    header = ["L0", "Linf", "clip", "rows lost", *(f"{name}: bias | noise" for name in metrics), "error", ""]
    lines = [
        [
            f"{one.groups}",
            f"{one.rows}",
            f"x {one.clip}",
            _percent(one.rows_lost),
            *(f"{_percent(one.metrics[name].bias)} | {_percent(one.metrics[name].noise)}" for name in metrics),
            _percent(one.error),
            "best" if one is best else "as declared" if one.declared else "",
        ]
        for one in outcomes
    ]
    return header, lines


def _numbers(text: str, option: str, *, whole: bool) -> tuple[Any, ...]:
    from lepton_airflow.privacy.amount import exact_decimal
    from lepton_airflow.privacy.bounds import MAX_ROWS_PER_UNIT_AND_GROUP

    if not text:
        return ()
    try:
        numbers: tuple[Any, ...] = tuple(int(part) if whole else exact_decimal(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= MAX_ROWS_PER_UNIT_AND_GROUP for number in numbers):
        raise SpecError(
            "These are no numbers above zero.", place=option, remedy="Write them with commas between, such as 1,2,4."
        )
    return numbers


def _open(spark: Any, path: str, format: str) -> Any:
    from pyspark.errors import AnalysisException

    try:
        return spark.read.format(format).load(path)
    except AnalysisException as error:
        raise UnreadableSource(
            f"Spark cannot open the table ({error.getCondition()}).", place=path, remedy="Give its path and --format."
        ) from None


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if share < 10 else f"{100 * share:,.0f}%"


def _show(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table; in a pipe or a file one whole line for each of its lines."""
    if console.is_terminal:
        table = Table(*header)
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for line in [header, *lines]:
        text = _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        console.print(text, markup=False, highlight=False, soft_wrap=True)
