"""Pictures of releases: everything that is in the document is in them, and they depend on nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.errors import MissingDependency, SpecError
from lepton_airflow.privacy.plot import MOST_GROUPS, MOST_HISTOGRAMS, draw


def cell(value: float) -> dict[str, Any]:
    return {"value": value, "interval": [value - 3, value + 3]}


def document_of(groups: int, **fields: Any) -> dict[str, Any]:
    metrics = [
        {"name": "visits", "type": "count"},
        {"name": "typical", "type": "quantiles", "column": "age", "quantiles": ["0.25", "0.75"]},
        {"name": "ages", "type": "histogram", "column": "age"},
    ]
    return {
        "schema": "lepton.release/2",
        "dataset": "clinic.visits",
        "epsilon": "1",
        "delta": "0",
        "noise": "laplace",
        "metrics": metrics,
        "groupings": [
            {"name": "all", "group_by": [], "cells": [_values({}, 0)]},
            {"name": "ward", "group_by": ["ward"], "cells": [_values({"ward": f"ward {i}"}, i) for i in range(groups)]},
        ],
    } | fields


def _values(group: dict[str, Any], i: int) -> dict[str, Any]:
    bins = [{"from": 20.0 * b, "to": 20.0 * b + 20, **cell(10 * b - i)} for b in range(3)]
    values = {"visits": cell(100 + i), "typical": {"0.25": cell(20), "0.75": cell(60)}, "ages": {"bins": bins}}
    return {"group": group, "values": values}


def texts(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_every_metric_and_group_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "picture.svg"
    draw(document_of(3), file)
    text = texts(file)
    for part in ("visits (count) by ward", "typical (quantiles)", "ages (histogram) by ward: ward 2", "epsilon 1"):
        assert part in text, part
    # A name for each group in both panels with dots, and one in the title of its histogram.
    assert text.count(">ward 1<") == 2
    assert [file.name for file in file.parent.iterdir()] == ["picture.svg"]


def test_the_same_release_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        draw(document_of(2), tmp_path / name)
    assert texts(tmp_path / "a.svg") == texts(tmp_path / "b.svg")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    draw(document_of(3), tmp_path / "b.svg")
    assert texts(tmp_path / "a.svg") != texts(tmp_path / "b.svg")


def test_many_groups_are_cut_and_said(tmp_path: Path) -> None:
    draw(document_of(MOST_GROUPS + 5), tmp_path / "many.svg")
    text = texts(tmp_path / "many.svg")
    assert f"the first {MOST_GROUPS} of {MOST_GROUPS + 5} groups" in text
    assert f"{MOST_GROUPS + 5 - MOST_HISTOGRAMS} more groups are in the release" in text
    assert f">ward {MOST_GROUPS - 1}<" in text
    assert f">ward {MOST_GROUPS}<" not in text


def test_a_release_without_groups_says_so(tmp_path: Path) -> None:
    draw(document_of(0), tmp_path / "none.svg")
    assert "no group is shown" in texts(tmp_path / "none.svg")


def test_names_of_groups_are_no_formulas_and_stay_apart(tmp_path: Path) -> None:
    long = "an exceedingly long name of a ward that nobody wants to read"
    document = document_of(0)
    document["groupings"][1]["group_by"] = ["ward", "sex"]
    document["groupings"][1]["cells"] = [
        _values({"ward": long, "sex": "f"}, 0),
        _values({"ward": long, "sex": None}, 1),
        _values({"ward": "$x^2$ & <b>", "sex": "m"}, 2),
    ]
    draw(document, tmp_path / "names.svg")
    text = texts(tmp_path / "names.svg")
    assert ", f<" in text
    assert ", null<" in text
    assert "$x^2$ &amp; &lt;b&gt;, m" in text
    assert long not in text


@pytest.mark.parametrize("name", ["picture.pdf", "picture", "picture.svg.exe"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"\.svg or \.png"):
        draw(document_of(1), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_other_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no release"):
        draw(document_of(1, schema="lepton.release/1"), tmp_path / "picture.svg")


def test_nothing_global_of_matplotlib_is_touched(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_plot import document_of
from lepton_airflow.privacy.plot import draw
draw(document_of(1), Path({str(tmp_path / "p.svg")!r}))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"lepton-airflow\[privacy\]"):
        draw(document_of(1), tmp_path / "picture.svg")
