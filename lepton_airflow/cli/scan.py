"""``lepton scan``: which columns of a table may need protection, from a sample of its values and from their names.

It proposes, people decide: the spec that it writes has no purpose, and a job refuses it until somebody has read and edited it.
No value is printed, written or recorded: only names, kinds and shares.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from lepton_airflow.cli.audited import audited
from lepton_airflow.cli.console import HomeOption, console
from lepton_airflow.cli.recognisers import IDENTIFIERS, kind_by_name, kind_by_values
from lepton_airflow.errors import EmptyTable, MissingDependency, TargetExists, UnreadableSource
from lepton_airflow.settings import load_settings

if TYPE_CHECKING:
    import pyarrow as pa

#: Below this share of a column's values a pattern says nothing about the column.
LEAST_SHARE = 0.5
#: Texts of more characters than this, in the middle, are for people to read and may hold anything.
FREE_TEXT = 60
_FRAGMENTS = 16


@dataclass(frozen=True)
class Finding:
    """What one column may hold.

    :param column: its path
    :param kind: of personal data; None for none that is recognised
    :param reason: by what, in words without values
    """

    column: str
    type: str
    kind: str | None
    reason: str

    @property
    def protection(self) -> dict[str, str] | None:
        """What is proposed for it."""
        if self.kind is None:
            return None
        if self.kind in IDENTIFIERS:
            stem = self.column.rpartition(".")[2].lower().removesuffix("_id").removesuffix("id").strip("_")
            return {"cipher": "AES256_SIV", "domain": stem or self.column}
        return {"cipher": "AES256_GCM"}


def scan(
    table: Annotated[Path, typer.Argument(help="The file or folder of a table in the clear.")],
    format: Annotated[Literal["parquet", "csv", "json"], typer.Option(help="Of its files.")] = "parquet",
    name: Annotated[
        str, typer.Option(help="The dataset's name, for the spec and the audit; default: the file's.")
    ] = "",
    rows: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many rows to sample, over the whole table.")
    ] = 2000,
    spec: Annotated[Path | None, typer.Option(help="Write a spec for encrypt_columns here, to be edited.")] = None,
    home: HomeOption = None,
) -> None:
    """Propose which columns to protect, from a sample. Prints names and shares, and never a value; decides nothing."""
    settings = load_settings(home)
    dataset = name or table.absolute().name.partition(".")[0]
    if spec is not None and spec.exists():
        raise TargetExists("The file is there already.", place=str(spec), remedy="Choose another one for the spec.")
    with audited(settings, "scan", dataset=dataset, path=str(table), rows=rows) as record:
        sample = _sample(table, format, rows)
        findings = [_finding(column, values) for column, values in _flat(sample)]
        found = [finding for finding in findings if finding.kind]
        record(sampled=sample.num_rows, proposed=" ".join(finding.column for finding in found))
    shown = Table("column", "type", "may hold", "because", "proposed")
    for finding in findings:
        shown.add_row(finding.column, finding.type, finding.kind or "-", finding.reason, _in_words(finding.protection))
    console.print(shown)
    console.print(f"{sample.num_rows:,} rows sampled. What is not proposed is not proved harmless.")
    if spec is not None:
        spec.write_text(_spec_text(findings, dataset=dataset, table=table, format=format, rows=sample.num_rows))
        console.print(f"a spec to edit: {spec}")


def _sample(path: Path, format: str, rows: int) -> pa.Table:
    """Rows from fragments spread over the whole table.

    :raises UnreadableSource: no such table, or it is in another format
    :raises EmptyTable: it has no rows
    """
    try:
        import pyarrow as pa
        from pyarrow import dataset as arrow_dataset
    except ImportError:
        raise MissingDependency(
            "Reading tables needs pyarrow.", place="lepton scan", remedy="Install lepton-airflow[spark]."
        ) from None
    try:
        dataset = arrow_dataset.dataset(path, format=format, partitioning="hive")
        fragments = list(dataset.get_fragments())
        chosen = fragments[:: max(1, len(fragments) // _FRAGMENTS)]
        share = -(-rows // max(1, len(chosen)))
        tables = [fragment.scanner(schema=dataset.schema).head(share) for fragment in chosen]
    except (OSError, pa.ArrowException) as error:
        raise UnreadableSource(
            f"The table cannot be read as {format} ({type(error).__name__}).",
            place=str(path),
            remedy="Give the path of its file or folder, and --format.",
        ) from None
    if not sum(table.num_rows for table in tables):
        raise EmptyTable("The table has no rows.", place=str(path), remedy="Scan it once it has some.")
    return pa.concat_tables(tables)


def _flat(table: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Every column, the fields of structs by their paths."""
    import pyarrow as pa

    def walk(path: str, values: pa.ChunkedArray) -> Iterator[tuple[str, pa.ChunkedArray]]:
        if pa.types.is_struct(values.type):
            for field, inner in zip(values.type, values.flatten(), strict=True):
                yield from walk(f"{path}.{field.name}", inner)
        else:
            yield path, values

    for column in table.column_names:
        yield from walk(column, table[column])


def _finding(column: str, values: pa.ChunkedArray) -> Finding:
    import pyarrow as pa

    def finding(kind: str | None, reason: str) -> Finding:
        return Finding(column=column, type=str(values.type), kind=kind, reason=reason)

    named = kind_by_name(column)
    texts = _texts(values)
    found = kind_by_values(texts, least_share=LEAST_SHARE) if texts else None
    if found is not None:
        kind, share = found
        also = " and its name" if kind == named else ""
        return finding(kind, f"{share:.0%} of {len(texts):,} values{also}")
    if named is not None:
        return finding(named, "its name")
    if texts and statistics.median(map(len, texts)) > FREE_TEXT:
        return finding("free text", f"long texts, of {len(texts):,} values")
    if pa.types.is_nested(values.type):
        return finding(None, "lists and maps are not looked into")
    return finding(None, "nothing is recognised" if texts else "no texts or whole numbers")


def _texts(values: pa.ChunkedArray) -> list[str]:
    """The values that can be read as text, without nulls and blanks around them."""
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    if not (whole or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return []
    return [text for value in values.to_pylist() if value is not None and (text := str(value).strip())]


def _in_words(protection: dict[str, str] | None) -> str:
    return "-" if protection is None else " ".join(protection.values())


def _spec_text(findings: Sequence[Finding], *, dataset: str, table: Path, format: str, rows: int) -> str:
    """A spec of encrypt_columns with its reasons as comments. JSON texts are YAML texts, whatever a name holds."""

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    found = [(finding, finding.protection) for finding in findings if finding.protection is not None]
    others = [finding.column for finding in findings if finding.protection is None]
    lines = [
        f"# Proposed by `lepton scan` from {rows:,} sampled rows. Nothing is decided: a scan does not know what your data",
        "# means, and overlooks what looks like nothing. Read each line, change it, and fill in target and purpose.",
        "source:",
        f"  name: {text(dataset)}",
        f"  format: {text(format)}",
        f"  path: {text(str(table.absolute()))}",
        "target:",
        f"  name: {text(dataset + '_protected')}  # bound into every value: choose it for good",
        '  path: ""  # where to write',
        'keyset: ""  # see `lepton keys list`',
        'purpose: ""  # why; the job refuses this spec until you say it',
        "# AES256_GCM hides which values are equal. AES256_SIV shows it, as joins and counts need; columns of one domain join.",
        "columns:" if found else "columns: {}  # nothing was recognised",
    ]
    for finding, protection in found:
        lines.append(f"  # may hold: {finding.kind}; because of {finding.reason}")
        lines.append(f"  {text(finding.column)}: {text(protection)}")
    lines.append(
        "# A column that is named here and not protected above is an error, so that nobody drops one by mistake."
    )
    lines.append(f"sensitive: {text([finding.column for finding, _ in found])}")
    lines += [f"# left in the clear: {text(column)}" for column in others]
    return "\n".join(lines) + "\n"
