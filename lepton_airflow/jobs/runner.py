"""Runs one job: settings, identity, policy, spec, work, result. The same for an operator, spark-submit and ``lepton run``."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lepton_airflow.access.engine import load_policy
from lepton_airflow.access.guard import Guard
from lepton_airflow.audit import runs
from lepton_airflow.audit.canonical import digest
from lepton_airflow.audit.database import connect, require_reachable
from lepton_airflow.audit.event import Actor, Detail, Event
from lepton_airflow.audit.log import AuditLog
from lepton_airflow.columnar.publish import Commit, Publication, Written
from lepton_airflow.errors import EmptyTable, LeptonError, MissingColumn, SpecError
from lepton_airflow.jobs.failure import as_typed_error, failure_event, unreadable_source
from lepton_airflow.jobs.observed import observe
from lepton_airflow.jobs.spec import JobSpec, TableReference, TargetReference, parse_spec
from lepton_airflow.keys.cipher import Cipher
from lepton_airflow.keys.identity import Identity
from lepton_airflow.lineage.emission import Announcement, announced
from lepton_airflow.lineage.observation import Observation

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from sqlalchemy import Engine

    from lepton_airflow.access.request import PolicyEngine
    from lepton_airflow.columnar.parquet_encryption import FileKeys
    from lepton_airflow.keys.reference import KeysetReference
    from lepton_airflow.settings import Settings

#: The action of the event that a policy was loaded.
POLICY = "policy.load"
#: Every job, and the model of its spec.
JOBS: Mapping[str, str] = {
    "decrypt_columns": "DecryptColumnsSpec",
    "encrypt_columns": "EncryptColumnsSpec",
    "gate_model": "GateModelSpec",
    "release_aggregates": "ReleaseAggregatesSpec",
    "repair_storage": "RepairStorageSpec",
    "restore_dataset": "RestoreDatasetSpec",
    "retrain_model": "RetrainModelSpec",
    "rotate_keys": "RotateKeysSpec",
    "score_model": "ScoreModelSpec",
    "store_dataset": "StoreDatasetSpec",
    "verify_audit": "VerifyAuditSpec",
}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asked for the run, as far as the caller says so. The principal is proved by its identity; these are not.

    :param on_behalf_of: the user who triggered the run
    :param owner: the owner of the DAG or the script
    :param team: Airflow's team of the DAG
    :param bundle_version: the version of the DAG bundle
    """

    on_behalf_of: str | None = None
    owner: str | None = None
    team: str | None = None
    bundle_version: str | None = None


class Job:
    """What a job's ``run`` is given besides its spec.

    :param guard: every read or write of protected data goes through it
    :param engine: the audit database, which also holds the budget ledger
    :param principal: the identity under which it runs
    :param log: the run's audit log, for changes that are events of their own, such as a model's registration
    :param requested_by: the user who triggered it, if the caller says so
    :param observation: filled with what only the running job knows of its lineage
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        engine: Engine,
        guard: Guard,
        run_key: str,
        spec_digest: str,
        principal: str,
        log: AuditLog,
        requested_by: str | None = None,
        observation: Observation | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.engine = engine
        self.guard = guard
        self.run_key = run_key
        self.spec_digest = spec_digest
        self.principal = principal
        self.log = log
        self.requested_by = requested_by
        self.observation = observation or Observation()

    @cached_property
    def spark(self) -> SparkSession:
        """The Spark session; it starts when it is first asked for."""
        from lepton_airflow.jobs.session import start_session

        return start_session(self.name)

    def read(self, table: TableReference, *, columns: Sequence[str] = ()) -> DataFrame:
        """Open a table and check that it has ``columns`` (or paths of nested fields). Rows are read only inside the guard.

        :raises UnreadableSource: Spark cannot open it
        :raises MissingColumn: naming the missing columns and those that there are
        """
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException

        options = {**table.options, **_secret_options(table)}
        where = table.path or table.table or table.format
        try:
            if table.table is not None:
                frame = self.spark.read.options(**options).table(table.table)
            else:
                frame = self.spark.read.format(table.format).options(**options).load(table.path)
            names = frame.columns
        except (PySparkException, Py4JJavaError) as error:
            raise unreadable_source(error, place=table.name, where=where) from None
        # A nested field is looked for in the column before its first dot; what is below, its reader checks.
        missing = [
            column for column in columns if column not in names and column.partition(".")[0].strip("`") not in names
        ]
        if missing:
            raise MissingColumn(
                f"There is no column {', '.join(missing)}.",
                place=table.name,
                remedy=f"Columns there: {', '.join(names)}.",
            )
        observe(self.observation, table.name, frame.schema)
        return frame

    def committed(self, target: TargetReference) -> Commit | None:
        """This run's own commit of ``target``, if an earlier try got that far; also refuses a target that must not be replaced.

        :raises TargetExists: the target belongs to somebody else and the mode is ``errorifexists``
        """
        if target.path is None:
            return None
        publication = self._publication(target.path)
        commit = publication.committed()
        if publication.is_mine(commit):
            return commit
        publication.check_target(target.mode)
        return None

    def publish(self, write: Callable[[str | None], Written], target: TargetReference) -> Written:
        """Let ``write`` make the target; atomic where the target is a path, else as the data source does it.

        :param write: given the folder to write, or None if the target has no path
        :raises TargetExists: see :meth:`committed`
        :raises AuditUnavailable: the outcome could not be recorded; a target that is a path stays as it was
        """
        if target.path is None:
            return write(None)

        def written(folder: str) -> Written:
            made = write(folder)
            self.require_audit()
            return made

        commit = self._publication(target.path).publish(written, mode=target.mode)
        return Written(commit.rows, commit.details)

    def require_audit(self) -> None:
        """Ask for the audit database, right before a target is replaced.

        :raises AuditUnavailable: the outcome could not be recorded
        """
        require_reachable(self.engine)

    def qualified(self, path: str) -> str:
        """A path as Hadoop writes it, with its file system."""
        return self._publication(path).path

    def file_keys(self, keyset: str | None = None) -> FileKeys:
        """What opens Parquet files that are encrypted as a whole, and with ``keyset`` writes them."""
        from lepton_airflow.columnar.parquet_encryption import FileKeys

        return FileKeys(str(self.settings.keyring), str(self.settings.identity_file), keyset)

    def keysets(self, name: str, ciphers: Collection[Cipher]) -> dict[str, KeysetReference]:
        """Where the parts of a keyset are, by cipher; each is opened once to see that it can be.

        :raises KeyUnavailable: there is no such keyset, or it is not sealed to this job's identity
        """
        from lepton_airflow.keys.reference import KeysetReference

        references: dict[str, KeysetReference] = {
            cipher: KeysetReference(
                keyring=str(self.settings.keyring),
                name=name,
                cipher=cipher,
                identity_file=str(self.settings.identity_file),
            )
            for cipher in sorted(ciphers)
        }
        for cipher, reference in references.items():
            self.observation.primary_key(name, cipher, reference.open().primary_key_id)
        return references

    def _publication(self, path: str) -> Publication:
        return Publication(self.spark, path, run_key=self.run_key, spec_digest=self.spec_digest)

    def write(self, frame: DataFrame, target: TargetReference, path: str | None) -> int:
        """Write ``frame`` in the target's format, to ``path`` if there is one; inside :meth:`publish`.

        :returns: the number of rows
        :raises EmptyTable: there is no row to write
        """
        from pyspark.sql import Observation
        from pyspark.sql import functions as F

        observation = Observation("lepton")
        counted = frame.observe(observation, F.count(F.lit(1)).alias("rows"))
        options = {**target.options, **_secret_options(target)}
        writer = counted.write.format(target.format).options(**options)
        if target.table is not None:
            writer.mode(target.mode).saveAsTable(target.table)
        else:
            writer.mode("errorifexists" if path else target.mode).save(path)
        rows = int(observation.get["rows"])
        require_rows(rows, target)
        return rows


def require_rows(rows: int, target: TargetReference) -> None:
    """Refuse to publish a table without rows.

    :raises EmptyTable: naming the target, which stays as it was
    """
    if rows == 0:
        raise EmptyTable(
            "The source has no rows; nothing was published.",
            place=target.name,
            remedy="Check that the table before it was written.",
        )


def run_job(
    name: str,
    fields: Mapping[str, Any],
    *,
    settings: Settings,
    run_key: str,
    caller: Caller | None = None,
    attempt: str = "",
    announce: bool = False,
) -> dict[str, Any]:
    """Run the job ``name`` with the spec ``fields`` and store its result under ``run_key`` in the audit database.

    :param attempt: stored beside the result, so that who submitted this try does not take an older one's result for it
    :param announce: send OpenLineage events, where the environment says; False where the caller's caller does
    :returns: the job's summary: small, JSON, free of data values
    :raises LeptonError: what went wrong; it is in the audit and, if ``stored`` is set, under the run key
    """
    with announced(name, fields, run_key=run_key, enabled=announce) as announcement:
        return _run_job(name, fields, settings, run_key, caller, attempt, announcement)


def _run_job(
    name: str,
    fields: Mapping[str, Any],
    settings: Settings,
    run_key: str,
    caller: Caller | None,
    attempt: str,
    announcement: Announcement,
) -> dict[str, Any]:
    spec_digest = digest(dict(fields))
    observation = Observation()
    with audit_log_of(settings, run_key, caller) as (engine, principal, audit):
        guard: Guard | None = None
        try:
            model, run = _load(name)
            spec = parse_spec(model, fields)
            # The digest is of the validated spec: two ways to write the same spec are one spec.
            spec_digest = digest(spec.model_dump(mode="json"))
            policy = loaded_policy(settings, audit)
            observation.policy_digest = policy.digest
            guard = Guard(
                log=audit,
                policy=policy,
                principal=principal,
                spec_digest=spec_digest,
                environment=settings.environment,
            )
            job = Job(
                name=name,
                settings=settings,
                engine=engine,
                guard=guard,
                run_key=run_key,
                spec_digest=spec_digest,
                principal=principal,
                log=audit,
                requested_by=caller.on_behalf_of if caller else None,
                observation=observation,
            )
            summary = run(spec, job)
        except Exception as error:
            typed = as_typed_error(error, place=name)
            announcement.observed = observation.to_dict()
            if guard is None or not guard.has_recorded(error):
                audit.append(failure_event(name, fields, spec_digest, typed))
            payload = {"attempt": attempt, "error": typed.to_dict()}
            runs.put(engine, run_key, job=name, spec_digest=spec_digest, status="failure", payload=payload)
            typed.stored = True
            raise typed from None
        announcement.observed, announcement.result = observation.to_dict(), summary
        payload = {"attempt": attempt, "result": summary, "observed": announcement.observed}
        runs.put(engine, run_key, job=name, spec_digest=spec_digest, status="success", payload=payload)
        return summary


def record_failure(
    name: str,
    fields: Mapping[str, Any],
    error: LeptonError,
    *,
    settings: Settings,
    run_key: str,
    caller: Caller | None = None,
) -> None:
    """Append the outcome event of a job that could not report for itself: its driver did not start, or was killed."""
    with audit_log_of(settings, run_key, caller) as (_, _, audit):
        audit.append(failure_event(name, fields, digest(dict(fields)), error))


@contextmanager
def audit_log_of(settings: Settings, run_key: str, caller: Caller | None) -> Iterator[tuple[Engine, str, AuditLog]]:
    """The audit database, this identity's name, and a log that appends under ``run_key``; closed at the end."""
    identity = Identity.load(settings.identity_file)
    caller = caller or Caller()
    engine = connect(settings)
    actor = Actor(
        principal=identity.name,
        on_behalf_of=caller.on_behalf_of,
        owner=caller.owner,
        team=caller.team,
        host=socket.gethostname(),
        bundle_version=caller.bundle_version,
    )
    try:
        audit = AuditLog(engine, actor=actor, run_key=run_key)
        try:
            yield engine, identity.name, audit
        finally:
            audit.close()
    finally:
        engine.dispose()


def loaded_policy(settings: Settings, audit: AuditLog) -> PolicyEngine:
    """The policy of the settings; that it was loaded, or could not be, is in the audit.

    :raises LeptonError: it could not be
    """
    details: dict[str, Detail] = {"engine": settings.policy_engine, "file": str(settings.policy)}
    try:
        policy = load_policy(settings)
    except LeptonError as error:
        failure = {**details, "error": error.code, "text": str(error)}
        audit.append(Event(action=POLICY, phase="failure", details=failure))
        raise
    audit.append(Event(action=POLICY, phase="note", policy_digest=policy.digest, details=details))
    return policy


def guard_of(settings: Settings, audit: AuditLog, *, principal: str, spec_digest: str) -> Guard:
    """A guard for what is no job, such as an approval: the policy of the settings decides about ``principal``.

    :raises LeptonError: the policy cannot be loaded
    """
    return Guard(
        log=audit,
        policy=loaded_policy(settings, audit),
        principal=principal,
        spec_digest=spec_digest,
        environment=settings.environment,
    )


def _load(name: str) -> tuple[type[JobSpec], Callable[[Any, Job], dict[str, Any]]]:
    if name not in JOBS:
        raise SpecError(f"There is no job {name!r}.", place="job", remedy=f"Jobs: {', '.join(JOBS)}.")
    module = importlib.import_module(f"lepton_airflow.jobs.{name}")
    return getattr(module, JOBS[name]), module.run


def _secret_options(table: TableReference) -> dict[str, str]:
    values = {}
    for option, variable in table.secret_options.items():
        value = os.environ.get(variable)
        if value is None:
            raise SpecError(
                f"The environment variable {variable} is not set.",
                place=f"{table.name}: secret_options.{option}",
                remedy="Set it where the Spark driver runs.",
            )
        values[option] = value
    return values
