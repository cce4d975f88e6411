"""MLflow: what a retraining came to, where the environment names a tracking server.

Parameters, measurements, tags and the model card as JSON are sent. Examples, weights, keys and the card's page (which can show
examples) are not. The card itself holds statistics of the training data, such as means: see its limits.

Tracking is a convenience and no record: the audit log is. A server that is down, slow or refuses fails no job; the outcome says
so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from lepton_airflow.models.artefact import CARD_FILE

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"

#: The client would otherwise try for minutes, and a finished training waits for it.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
#: Sections of the card that are parameters.
_PARAMETERS = ("threat_model", "training", "hardening", "gate", "seeds", "versions")
_LONGEST_PARAMETER = 500
_BATCH = 100


def track(card: Mapping[str, Any], *, model: str) -> dict[str, str]:
    """Log a judged model as a run of MLflow, if ``MLFLOW_TRACKING_URI`` is set; to the experiment that
    ``MLFLOW_EXPERIMENT_NAME`` names, else to one named ``model``. Raises nothing.

    :param card: of a model that passed the gate or did not
    :param model: under which name it is registered
    :returns: for the details of the outcome: nothing when no server is named; ``mlflow`` "logged" and the run's id; or ``mlflow``
        "failed" and the name of the error, whose text may quote credentials of the server
    """
    if not os.environ.get(TRACKING_VARIABLE):
        return {}
    try:
        with _impatient():
            return {"mlflow": "logged", "mlflow_run": _log(card, model)}
    except Exception as error:  # whatever a client of somebody else's server may raise
        return {"mlflow": "failed", "mlflow_error": type(error).__name__}


def measurements(card: Mapping[str, Any]) -> dict[str, float]:
    """What the gate measured, as tracking servers and the registry name it."""
    evaluation = card["evaluation"]
    robust = evaluation["robust"]
    figures = {
        "clean_accuracy": evaluation["clean"]["accuracy"],
        "robust_accuracy": robust["accuracy"],
        "epsilon": robust["epsilon"],
        "n_test": robust["n"],
    }
    if "int8" in card:
        for name in ("clean", "robust"):
            figures[f"int8_{name}_accuracy"] = card["int8"][name]["accuracy"]
    return figures


def _log(card: Mapping[str, Any], model: str) -> str:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    name = os.environ.get(EXPERIMENT_VARIABLE) or model
    experiment = client.get_experiment_by_name(name)
    number = client.create_experiment(name) if experiment is None else experiment.experiment_id
    run = client.create_run(number, run_name=str(card["run_key"]))
    run_id = str(run.info.run_id)
    try:
        began = run.info.start_time
        metrics = [Metric(key, float(value), began, 0) for key, value in measurements(card).items()]
        tags = [RunTag(f"lepton.{key}", value) for key, value in _tags(card, model).items()]
        parameters = [Param(key, value) for key, value in _parameters(card).items()]
        client.log_batch(run_id, metrics=metrics, tags=tags)
        for start in range(0, len(parameters), _BATCH):
            client.log_batch(run_id, params=parameters[start : start + _BATCH])
        client.log_text(run_id, json.dumps(dict(card), indent=2, sort_keys=True), CARD_FILE)
    except BaseException:
        with suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _tags(card: Mapping[str, Any], model: str) -> dict[str, str]:
    return {
        "model": model,
        "run_key": str(card["run_key"]),
        "spec_digest": str(card["spec_digest"]),
        "dataset": str(card["data"]["dataset"]),
        "dataset_digest": str(card["data"]["digest"]),
        "sha256": str(card["model"]["sha256"]),
        "gate": "passed" if card["gate"]["passed"] else "refused",
    }


def _parameters(card: Mapping[str, Any]) -> dict[str, str]:
    """Every field of the plan by its path; lists as JSON."""
    found: dict[str, str] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, below in value.items():
                walk(f"{path}.{key}", below)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            found[path] = text[:_LONGEST_PARAMETER]

    for section in _PARAMETERS:
        if section in card:
            walk(section, card[section])
    return found


@contextmanager
def _impatient() -> Iterator[None]:
    """Bound how long the client tries, unless the environment says how long."""
    ours = {name: value for name, value in _PATIENCE.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
