"""The lineage of every job, from its spec and from what its run observed: pure functions, without Spark or Airflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from lepton_airflow.lineage.model import Dataset, Flow, JobLineage
from lepton_airflow.lineage.naming import Place, place_of, place_of_path, place_of_stored
from lepton_airflow.lineage.observation import SeenTable, seen_keys, seen_table
from lepton_airflow.lineage.releases import release

#: What a job does to data, as policies and the audit call it.
OPERATIONS: Mapping[str, str] = {
    "decrypt_columns": "decrypt",
    "encrypt_columns": "encrypt",
    "gate_model": "evaluate",
    "publish_release": "release",
    "release_aggregates": "release",
    "repair_storage": "repair",
    "restore_dataset": "restore",
    "retrain_model": "train",
    "rotate_keys": "rotate",
    "score_model": "evaluate",
    "store_dataset": "store",
    "verify_audit": "verify",
}
_DESCRIPTIONS = {
    "AES256_GCM": "encrypted with AES256_GCM: equal values look different",
    "AES256_SIV": "encrypted with AES256_SIV: deterministic, equal values look equal",
    "FF1": "encrypted with FF1: deterministic, keeps the format, not authenticated",
}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A spec's fields, and what is known of the run besides."""

    spec: Mapping[str, Any]
    observed: Mapping[str, Any]
    result: Mapping[str, Any]

    def seen(self, role: str) -> SeenTable:
        return seen_table(self.observed, self.spec[role]["name"])

    def columns(self, wanted: Sequence[str]) -> list[str]:
        """The columns that are meant: those that the run named, else those that the spec names and does not describe."""
        if "columns" in self.result:
            return list(self.result["columns"])
        return [text for text in wanted if not _is_pattern(text)]


def job_lineage(
    job: str,
    spec: Mapping[str, Any],
    *,
    observed: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    run_key: str | None = None,
) -> JobLineage:
    """What a run of ``job`` reads and writes.

    A spec that is not valid has no lineage: only the facet is there then.

    :param spec: the fields of the job's spec, validated or not yet
    :param observed: see :class:`lepton_airflow.lineage.observation.Observation`; before the run there is nothing
    :param result: the job's summary, after it succeeded
    :param run_key: the key of the run in the audit
    """
    seen = observed or {}
    run = _Run(spec=spec, observed=seen, result=result or {})
    privacy: dict[str, Any] = {
        "job": job,
        "operation": OPERATIONS.get(job, "other"),
        "purpose": spec.get("purpose"),
        "runKey": run_key,
        "policyDigest": seen.get("policy_digest"),
    }
    lineage = JobLineage()
    if job in _LINEAGES:
        try:
            lineage = _LINEAGES[job](run)
        # The job itself says what is wrong with its spec.
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
            lineage = JobLineage()
    privacy |= lineage.privacy
    return JobLineage(
        inputs=lineage.inputs,
        outputs=lineage.outputs,
        privacy={name: value for name, value in privacy.items() if value is not None},
    )


def _encrypt(run: _Run) -> JobLineage:
    spec, seen = run.spec, run.seen("source")
    source, keyset = place_of(spec["source"]), str(spec["keyset"])
    asked: Mapping[str, Mapping[str, Any]] = spec["columns"]
    protections = {column: _protection(column, asked) for column in run.columns(list(asked))}
    ciphers = {column: str(protection.get("cipher", "unknown")) for column, protection in protections.items()}
    flows = [
        Flow(
            output=column,
            source=source,
            column=column,
            subtype="TRANSFORMATION",
            masking=True,
            description=_DESCRIPTIONS.get(cipher, "encrypted"),
        )
        for column, cipher in ciphers.items()
    ]
    types = {column: "string" if cipher == "FF1" else "binary" for column, cipher in ciphers.items()}
    keys = seen_keys(run.observed, keyset)
    columns = [
        {
            "name": column,
            "cipher": protection.get("cipher"),
            "keyset": keyset,
            "keyId": keys.get(ciphers[column]),
            "domain": protection.get("domain"),
        }
        for column, protection in protections.items()
    ]
    target = _written(
        run,
        flows=[*_unchanged(run, seen, protections), *flows],
        fields=_fields(seen, list(protections), {**types}),
        protections={**seen.ciphers, **ciphers},
    )
    return JobLineage(
        inputs=(_read(run, "source", list(protections)),), outputs=(target,), privacy={"columns": _known(columns)}
    )


def _decrypt(run: _Run) -> JobLineage:
    spec, seen = run.spec, run.seen("source")
    source = place_of(spec["source"])
    columns = run.columns(spec["columns"])
    flows = [
        Flow(
            output=column,
            source=source,
            column=column,
            subtype="TRANSFORMATION",
            masking=False,
            description="decrypted",
        )
        for column in columns
    ]
    types = {column: seen.protected.get(column, {}).get("type") for column in columns}
    remaining = {column: cipher for column, cipher in seen.ciphers.items() if column not in columns}
    target = _written(
        run,
        flows=[*_unchanged(run, seen, columns), *flows],
        fields=_fields(seen, columns, types),
        protections={**remaining, **dict.fromkeys(columns, "none")},
    )
    return JobLineage(
        inputs=(_read(run, "source", columns),),
        outputs=(target,),
        privacy={"columns": seen.described(columns)},
    )


def _rotate(run: _Run) -> JobLineage:
    spec, seen = run.spec, run.seen("source")
    source = place_of(spec["source"])
    columns = run.columns(spec.get("columns") or ())
    flows = [
        Flow(
            output=column,
            source=source,
            column=column,
            subtype="TRANSFORMATION",
            masking=True,
            description="encrypted again under the keyset's primary key",
        )
        for column in columns
    ]
    target = _written(
        run,
        flows=[*_unchanged(run, seen, columns), *flows],
        fields=_fields(seen, columns, {}),
        protections=seen.ciphers,
    )
    return JobLineage(
        inputs=(_read(run, "source", columns),),
        outputs=(target,),
        privacy={"columns": seen.described(columns)},
    )


def _release(run: _Run) -> JobLineage:
    # A release that waits for approval has written nothing yet.
    return release(run.spec, run.seen("source"), published=run.result.get("published", True))


def _receipt(run: _Run) -> JobLineage:
    return JobLineage(outputs=(Dataset(place=place_of_path(str(run.spec["receipt"]))),))


def _train(run: _Run) -> JobLineage:
    spec, seen = run.spec, run.seen("source")
    source = place_of(spec["source"])
    inputs = spec.get("features") or [spec["image"]["column"]]
    used = {**dict.fromkeys(inputs, "a feature of the model"), spec["label_column"]: "the model's label"}
    unit = spec["privacy_unit"]
    private = (spec.get("training") or {}).get("differential_privacy")
    flows = [
        # Without differential privacy a model can remember what it was trained on, and tell who asks it cleverly.
        Flow(
            output=None,
            source=source,
            column=column,
            type="INDIRECT",
            subtype="TRAINING",
            masking=private is not None,
            description=f"{role}; trained {'with' if private else 'without'} differential privacy",
        )
        for column, role in used.items()
    ]
    flows.append(
        Flow(
            output=None,
            source=source,
            column=unit,
            type="INDIRECT",
            subtype="FILTER",
            masking=True,
            description="decides which examples are trained and which are tested on",
        )
    )
    columns = [*used, unit]
    model = Dataset(place=place_of_path(str(spec["target"])), flows=tuple(flows))
    training: dict[str, Any] = {"privacyUnit": unit, "differentialPrivacy": private is not None}
    if private is not None:
        training |= {name: float(Decimal(str(private[name]))) for name in ("epsilon", "delta")}
        training["budget"] = spec.get("budget") or spec["source"]["name"]
    return JobLineage(
        inputs=(_read(run, "source", columns),),
        outputs=(model,),
        privacy={"columns": seen.described(columns), "training": training},
    )


def _evaluate(run: _Run) -> JobLineage:
    """Rows and models are read; what comes of it is a verdict and no dataset. Which columns, the model's card says."""
    tables = [_read(run, role, ()) for role in ("source", "trained_on") if run.spec.get(role)]
    models = [Dataset(place=place_of_path(str(run.spec[role]))) for role in ("model", "champion") if run.spec.get(role)]
    return JobLineage(inputs=(*tables, *models))


def _store(run: _Run) -> JobLineage:
    source, seen = run.spec["source"], run.seen("source")
    columns = [name for name, _ in seen.fields]
    flows = _as_they_are(place_of(source), columns, masking=True, description="encrypted as a whole, in shards")
    stored = Dataset(
        place=place_of_stored(str(source["name"])),
        label=str(source["name"]),
        fields=seen.fields,
        protections=dict.fromkeys(columns, "encrypted shards"),
        flows=flows,
    )
    return JobLineage(inputs=(_read(run, "source", ()),), outputs=(stored,))


def _restore(run: _Run) -> JobLineage:
    target, seen = run.spec["target"], run.seen("target")
    stored = _stored(run)
    columns = [name for name, _ in seen.fields]
    flows = _as_they_are(stored.place, columns, masking=False, description="restored as it was stored")
    protections = {**dict.fromkeys(columns, "none"), **seen.ciphers}
    restored = Dataset(
        place=place_of(target), label=str(target["name"]), fields=seen.fields, protections=protections, flows=flows
    )
    return JobLineage(inputs=(stored,), outputs=(restored,))


def _repair(run: _Run) -> JobLineage:
    return JobLineage(inputs=(_stored(run),))


def _stored(run: _Run) -> Dataset:
    dataset = str(run.spec["dataset"])
    return Dataset(place=place_of_stored(dataset), label=dataset)


def _as_they_are(source: Place, columns: Sequence[str], *, masking: bool, description: str) -> tuple[Flow, ...]:
    subtype = "TRANSFORMATION" if masking else "IDENTITY"
    return tuple(
        Flow(output=name, source=source, column=name, subtype=subtype, masking=masking, description=description)
        for name in columns
    )


_LINEAGES: Mapping[str, Callable[[_Run], JobLineage]] = {
    "decrypt_columns": _decrypt,
    "encrypt_columns": _encrypt,
    "gate_model": _evaluate,
    "issue_receipt": _receipt,
    "publish_release": _release,
    "release_aggregates": _release,
    "repair_storage": _repair,
    "restore_dataset": _restore,
    "retrain_model": _train,
    "rotate_keys": _rotate,
    "score_model": _evaluate,
    "store_dataset": _store,
}


def _read(run: _Run, role: str, columns: Sequence[str]) -> Dataset:
    reference, seen = run.spec[role], run.seen(role)
    fields = seen.fields or tuple((column, None) for column in columns)
    return Dataset(place=place_of(reference), label=reference["name"], fields=fields, protections=seen.ciphers)


def _written(
    run: _Run, *, flows: Sequence[Flow], fields: tuple[tuple[str, str | None], ...], protections: Mapping[str, str]
) -> Dataset:
    reference = run.spec["target"]
    return Dataset(
        place=place_of(reference),
        label=reference["name"],
        fields=fields,
        protections=protections,
        flows=tuple(flows),
        rows=run.result.get("rows"),
    )


def _unchanged(run: _Run, seen: SeenTable, changed: Sequence[str] | Mapping[str, Any]) -> list[Flow]:
    """The columns that pass as they are; one of which a nested field is changed does not."""
    source = place_of(run.spec["source"])
    return [
        Flow(
            output=name,
            source=source,
            column=name,
            subtype="IDENTITY",
            masking=False,
            description="stays encrypted" if name in seen.protected else "unchanged",
        )
        for name, _ in seen.fields
        if name not in changed and not any(_is_within(column, name) for column in changed)
    ]


def _fields(
    seen: SeenTable, changed: Sequence[str], types: Mapping[str, str | None]
) -> tuple[tuple[str, str | None], ...]:
    """The columns that are written. Where a nested field is changed, the type of its column is left out."""
    if not seen.fields:
        return tuple((column, types.get(column)) for column in changed)
    fields: list[tuple[str, str | None]] = []
    for name, kind in seen.fields:
        if name in types:
            # Which parts of a list or struct became binary, its type would have to say.
            nested = (kind or "").startswith(("array", "map", "struct"))
            fields.append((name, None if nested else types[name]))
        else:
            fields.append((name, None if any(_is_within(column, name) for column in changed) else kind))
    return tuple(fields)


def _protection(column: str, asked: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the spec asks for a column that the run named: by name, else by pattern, else by the only tag."""
    if column in asked:
        return _with_cipher(asked[column])
    plain = column.replace("`", "")
    for text, protection in asked.items():
        if text.replace("`", "") == plain or (not text.startswith("tag:") and fnmatchcase(plain, text)):
            return _with_cipher(protection)
    tagged = [protection for text, protection in asked.items() if text.startswith("tag:")]
    same = bool(tagged) and all(protection == tagged[0] for protection in tagged)
    return _with_cipher(tagged[0]) if same else {}


def _with_cipher(protection: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"cipher": "AES256_GCM", **protection}


def _is_pattern(text: str) -> bool:
    return text.startswith("tag:") or any(character in text for character in "*?[")


def _is_within(path: str, column: str) -> bool:
    return path.startswith((f"{column}.", f"`{column}`."))


def _known(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in column.items() if value is not None} for column in columns]
