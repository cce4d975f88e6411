"""What a job notes of the tables it opens, for the lineage of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lepton_airflow.errors import LeptonError

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

    from lepton_airflow.lineage.observation import Observation


def observe(observation: Observation, name: str, schema: StructType) -> None:
    """Note a table's columns, their types and their protection."""
    from lepton_airflow.encryption.planning import protections_of

    try:
        protected = protections_of(schema)
    except LeptonError:
        # Whoever reads the column says so; lineage does not need to.
        protected = {}
    observation.table(
        name,
        [(field.name, field.dataType.simpleString()) for field in schema],
        {
            text: {"cipher": one.cipher, "keyset": one.keyset, "domain": one.domain, "type": one.type}
            for text, one in protected.items()
        },
    )
