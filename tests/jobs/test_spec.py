"""A spec that is wrong says where and what to do; none can carry a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lepton_airflow.errors import SpecError
from lepton_airflow.jobs.spec import JobSpec, TableReference, TargetReference, parse_spec, read_spec_file


class CopySpec(JobSpec):
    source: TableReference
    target: TargetReference


VALID: dict[str, Any] = {
    "purpose": "test",
    "source": {"name": "a", "path": "/a"},
    "target": {"name": "b", "path": "/b"},
}


def test_a_valid_spec_is_frozen_and_has_defaults() -> None:
    spec = parse_spec(CopySpec, VALID)
    assert spec.target.mode == "errorifexists"
    assert spec.source.format == "parquet"
    assert isinstance(spec, BaseModel)
    with pytest.raises(ValueError, match="frozen"):
        spec.purpose = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "place", "text"),
    [
        ({"colour": "red"}, "CopySpec.colour", "no such field"),
        ({"source": {"name": "a", "path": "/a", "colour": "red"}}, "CopySpec.source.colour", "no such field"),
        ({"purpose": ""}, "CopySpec.purpose", "at least 1 character"),
        ({"source": {"name": "a"}}, "CopySpec.source", "give path, table"),
        ({"source": {"name": "a", "path": "/a", "table": "a"}}, "CopySpec.source", "not both"),
        ({"target": {"name": "b", "path": "/b", "mode": "append"}}, "CopySpec.target.mode", "errorifexists"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], place: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(CopySpec, VALID | change)
    assert caught.value.place == place
    assert text in str(caught.value)
    assert "purpose, source, target" in caught.value.remedy


@pytest.mark.parametrize(
    "option", ["password", "sfPassword", "fs.s3a.secret.key", "authToken", "fs.s3a.access.accessKey"]
)
def test_an_option_that_looks_like_a_secret_is_refused_without_repeating_it(option: str) -> None:
    source = {"name": "a", "format": "jdbc", "options": {"url": "jdbc:x", option: "hunter2"}}
    with pytest.raises(SpecError, match="secret_options") as caught:
        parse_spec(CopySpec, VALID | {"source": source})
    assert "hunter2" not in str(caught.value)


def test_a_spec_file_that_cannot_be_used_names_the_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing\.yaml"):
        read_spec_file(tmp_path / "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("purpose: test\nsource: [")
    with pytest.raises(SpecError, match="line"):
        read_spec_file(broken)
    broken.write_text("- a\n- b\n")
    with pytest.raises(SpecError, match="mapping"):
        read_spec_file(broken)
