"""The associated data that ties each ciphertext to its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

ASSOCIATED_DATA_FORMAT = "lepton.associated-data/1"


def associated_data(
    dataset: str,
    column: str,
    logical_type: str,
    domain: str | None = None,
    *,
    path: Sequence[str] | None = None,
    padding: Mapping[str, Any] | None = None,
) -> bytes:
    """The associated data of every value of a column: canonical JSON (RFC 8785), so any language can make it again.

    A column's own is ``{"column":...,"dataset":...,"format":"lepton.associated-data/1","type":...}``; a nested field has
    ``"path":["address","street"]`` in place of ``"column"``, so that it cannot be taken for a column whose name has a dot. A
    column with a domain has ``{"domain":...,"format":"lepton.associated-data/1","type":...}``, so that equal values of all
    columns of the domain have equal ciphertexts. Where values are padded ``"padding":{"to":16}`` or
    ``"padding":{"buckets":[16,64]}`` is there as well.

    :param column: the name of a top-level column
    :param logical_type: the Spark type before encryption, as :func:`lepton_airflow.encryption.logical_type.type_text` writes it
    :param path: the parts of a nested field's path
    """
    if domain is not None:
        place: dict[str, Any] = {"domain": domain}
    elif path is not None:
        place = {"dataset": dataset, "path": list(path)}
    else:
        place = {"dataset": dataset, "column": column}
    if padding is not None:
        place["padding"] = dict(padding)
    return rfc8785.dumps({"format": ASSOCIATED_DATA_FORMAT, "type": logical_type, **place})
