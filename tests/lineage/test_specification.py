"""What events are held against is what OpenLineage published."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.audit.canonical import digest

#: A folder with the published documents: `website/static/spec` in a checkout of OpenLineage, or `spec`.
PUBLISHED = os.environ.get("OPENLINEAGE_SPEC", "")
ANNOTATIONS = {"deprecated", "description", "example"}


def without_annotations(schema: Any, *, of_names: bool = False) -> Any:
    """A schema without what validates nothing; ``additionalProperties`` does not where it is true.

    :param of_names: whether the keys are names that somebody chose, which may be those of annotations
    """
    if isinstance(schema, list):
        return [without_annotations(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_annotations(value, of_names=not of_names and key in ("$defs", "properties"))
        for key, value in schema.items()
        if of_names or not (key in ANNOTATIONS or (key == "additionalProperties" and value is True))
    }


def recorded(specification: Any) -> dict[str, str]:
    return {url: document["digest"] for url, document in specification.DOCUMENTS.items()}


def test_what_is_made_of_the_notation_has_the_digests_of_the_published_documents(specification: Any) -> None:
    made = {url: digest(specification.Notation(url, closed=False).schema()) for url in specification.DOCUMENTS}
    assert made == recorded(specification)


@pytest.mark.skipif(not PUBLISHED, reason="OPENLINEAGE_SPEC names no folder with the published documents")
def test_the_digests_are_those_of_the_published_documents(specification: Any) -> None:
    found = {}
    for file in Path(PUBLISHED).rglob("*.json"):
        document = json.loads(file.read_text())
        if document.get("$id") in specification.DOCUMENTS:
            found[document["$id"]] = digest(without_annotations(document))
    assert found == recorded(specification)
