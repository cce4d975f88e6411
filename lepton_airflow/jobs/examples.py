"""Reads the examples of a protected table into the driver's memory, for the jobs that train or attack a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lepton_airflow.errors import InvalidData
from lepton_airflow.jobs.privacy_unit import check_unit
from lepton_airflow.jobs.spec import TableReference

if TYPE_CHECKING:
    import pyarrow as pa

    from lepton_airflow.jobs.runner import Job


def collect_examples(
    job: Job, *, source: TableReference, features: Sequence[str], label: str, privacy_unit: str, purpose: str
) -> pa.Table:
    """The columns of the examples in the driver's memory, features and label in the clear, the unit as it is stored.

    Encrypted columns are decrypted inside a guarded operation of their own.

    :param features: columns of numbers
    :param label: the column of the class
    :param privacy_unit: the column that identifies the person; in the clear or deterministically encrypted
    :raises SpecError: the unit is encrypted so that equal units cannot be seen to be equal
    :raises InvalidData: the unit is encrypted under several keys
    :raises AccessDenied: the policy does not let this identity decrypt
    """
    from lepton_airflow.encryption.dataframe import protections_of, reveal

    columns = (*features, label, privacy_unit)
    frame = job.read(source, columns=columns)
    frame = frame.select(*(frame["`" + name.replace("`", "``") + "`"] for name in columns))
    protected = protections_of(frame.schema)
    encrypted = [name for name in (*features, label) if name in protected]
    check_unit(privacy_unit, protected, dataset=source.name, others=(*features, label))
    if encrypted:
        with job.guard.operation(
            action="decrypt", dataset=source.name, columns=encrypted, purpose=purpose
        ) as decryption:
            clear = reveal(
                frame,
                columns=encrypted,
                keyring=job.settings.keyring,
                identity_file=job.settings.identity_file,
                dataset=source.name,
            )
            table = clear.toArrow()
            decryption.record(counts={"rows": table.num_rows})
    else:
        table = frame.toArrow()
    if privacy_unit in protected:
        _require_one_key(table[privacy_unit], place=f"{source.name}.{privacy_unit}")
    return table


def _require_one_key(units: pa.ChunkedArray, *, place: str) -> None:
    """Deterministic ciphertexts of one unit are equal under one key only; after a rotation it would count as two units.

    :raises InvalidData: the column holds values under several keys
    """
    import pyarrow.compute as pc

    # Tink's prefix: one byte of version, four of key id.
    keys = pc.count_distinct(pc.binary_slice(units, 1, 5)).as_py()
    if keys > 1:
        raise InvalidData(
            f"The privacy unit is encrypted under {keys} keys, so the same unit can look like two.",
            place=place,
            remedy="Encrypt the table again under one key.",
        )
