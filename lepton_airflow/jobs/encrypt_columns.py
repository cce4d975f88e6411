"""Encrypt columns of a table: a Spark source in, a protected table out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from lepton_airflow.columnar.publish import Written
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.jobs.roads import Road, Route, Source, needs_schema, write_once
from lepton_airflow.jobs.spec import JobSpec, TableReference, TargetReference
from lepton_airflow.lineage.audited import ciphers_text

if TYPE_CHECKING:
    from lepton_airflow.jobs.runner import Job


class EncryptColumnsSpec(JobSpec):
    """What to encrypt.

    :param source: the table in the clear
    :param target: the protected table. Its name is bound into every ciphertext as the dataset
    :param keyset: the name of the keyset in the keyring
    :param columns: column -> protection. A column is named, also a nested one by its path (``address.street``), or chosen by a
        pattern (``*_id``) or a tag (``tag:pii``). ``{"cipher": "AES256_GCM"}`` is randomised: equal values look different.
        ``{"cipher": "AES256_SIV", "domain": "patient"}`` is deterministic: equal values look equal, so that columns of the
        same domain can be joined and counted, and how often a value occurs can be seen
    :param sensitive: names, patterns and tags of columns that must not stay in clear: one that ``columns`` leaves out is an error
    :param road: ``auto`` takes the direct road where it leads (Parquet to Parquet), ``dataframe`` never, ``direct`` insists on it
    :param parquet_encryption: encrypt the files as a whole too, under the keyset's AES256_GCM part (Parquet Modular Encryption).
        The direct road and pyarrow read such files; Spark and jobs that read through it do not
    """

    source: TableReference
    target: TargetReference
    keyset: str = Field(min_length=1)
    columns: dict[str, Protection] = Field(min_length=1)
    sensitive: tuple[str, ...] = ()
    road: Road = "auto"
    parquet_encryption: bool = False


def run(spec: EncryptColumnsSpec, job: Job) -> dict[str, Any]:
    """Encrypt the columns of the source into the target, atomically.

    :returns: see :func:`lepton_airflow.jobs.roads.write_once`
    """
    from lepton_airflow.encryption.planning import plan_protection
    from lepton_airflow.encryption.roads import Protect
    from lepton_airflow.encryption.selection import choose_protections

    protections = spec.columns
    if spec.sensitive or needs_schema(spec.columns):
        # The policy is asked about the columns that are meant, before any row is read.
        schema = Source(job, spec.source).schema
        protections = choose_protections(schema, spec.columns, sensitive=spec.sensitive, dataset=spec.source.name)
    columns = sorted(protections)
    ciphers = ciphers_text({column: protection.cipher for column, protection in protections.items()})
    with job.guard.operation(
        action="encrypt",
        dataset=spec.target.name,
        columns=columns,
        purpose=spec.purpose,
        details={"source": spec.source.name, "keyset": spec.keyset, "ciphers": ciphers},
    ) as operation:
        # Unsealed here first, so that a missing key is reported before Spark starts.
        keysets = job.keysets(spec.keyset, {protection.cipher for protection in protections.values()})

        def write() -> Written:
            source = Source(job, spec.source, columns=columns)
            protectors = plan_protection(
                source.schema, dataset=spec.target.name, protections=protections, keysets=keysets
            )
            file_keyset = spec.keyset if spec.parquet_encryption else None
            route = Route(job, source, target=spec.target, road=spec.road, file_keyset=file_keyset)
            route.reserve(protectors)
            return route.walk(Protect(protectors))

        return write_once(job, operation, spec.target, write, columns=columns)
