"""MLflow gets what a card says where somebody asks for it; a server that fails or lags fails no job."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lepton_airflow.models.tracking import track

CARD: dict[str, Any] = {
    "format": "lepton.model-card/1",
    "run_key": "retrain/train/run 1/-1",
    "spec_digest": "sha256:spec",
    "data": {"dataset": "clinic.visits", "digest": "sha256:data", "classes": ["benign", "malignant"]},
    "model": {"sha256": "sha256:model"},
    "preprocessing": {"mean": [1.5], "scale": [0.5]},
    "threat_model": {"norm": "linf", "epsilon": 0.5, "constraints": {"immutable": ["age"]}},
    "training": {"method": "trades", "hidden": [64, 32], "epochs": 80},
    "evaluation": {"clean": {"accuracy": 0.97}, "robust": {"accuracy": 0.81, "epsilon": 0.5, "n": 171}},
    "gate": {"minimum_clean_accuracy": 0.9, "passed": True, "reasons": []},
    "seeds": {"training": 7},
    "versions": {"python": "3.11"},
}


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


class Server(BaseHTTPRequestHandler):
    """Answers as far as a client needs it, and keeps what it was asked."""

    calls: ClassVar[list[tuple[str, str, str]]] = []
    fails_at: ClassVar[str] = ""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = self.path.partition("?")[0]
        self.calls.append((self.command, self.path, body))
        answers: dict[str, Any] = {
            "experiments/create": {"experiment_id": "3"},
            "runs/create": {"run": self._run()},
            "runs/get": {"run": self._run()},
            "runs/update": {"run_info": self._run()["info"]},
        }
        name = path.rpartition("mlflow/")[2]
        status, answer = 200, answers.get(name, {})
        if "get-by-name" in path:
            status, answer = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
        if self.fails_at and self.fails_at in path:
            status, answer = 403, {"error_code": "PERMISSION_DENIED", "message": "token=planted-secret"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _answer

    def _run(self) -> dict[str, Any]:
        info = {
            "run_id": "r1",
            "run_uuid": "r1",
            "experiment_id": "3",
            "status": "RUNNING",
            "start_time": 1,
            "artifact_uri": "mlflow-artifacts:/3/r1/artifacts",
            "lifecycle_stage": "active",
        }
        return {"info": info, "data": {}}

    def log_message(self, format: str, *arguments: Any) -> None:
        """Be quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    Server.calls, Server.fails_at = [], ""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:planted-secret@127.0.0.1:{listening.server_port}")
    yield Server
    listening.shutdown()
    listening.server_close()


def test_without_a_server_nothing_is_logged_and_no_client_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    assert track(CARD, model="diagnosis") == {}


def test_a_server_gets_parameters_measurements_tags_and_the_card(server: type[Server]) -> None:
    assert track(CARD, model="diagnosis") == {"mlflow": "logged", "mlflow_run": "r1"}
    said = {path.partition("?")[0].rpartition("mlflow/")[2] for _, path, _ in server.calls}
    assert {"experiments/create", "runs/create", "runs/log-batch", "runs/update"} <= said
    batches = [json.loads(body) for _, path, body in server.calls if path.endswith("log-batch")]
    metrics = {each["key"]: each["value"] for batch in batches for each in batch.get("metrics", [])}
    assert metrics == {"clean_accuracy": 0.97, "robust_accuracy": 0.81, "epsilon": 0.5, "n_test": 171}
    parameters = {each["key"]: each["value"] for batch in batches for each in batch.get("params", [])}
    assert parameters["training.method"] == "trades"
    assert parameters["training.hidden"] == "[64, 32]"
    assert parameters["threat_model.constraints.immutable"] == '["age"]'
    tags = {each["key"]: each["value"] for batch in batches for each in batch.get("tags", [])}
    assert (tags["lepton.sha256"], tags["lepton.gate"], tags["lepton.model"]) == ("sha256:model", "passed", "diagnosis")
    uploads = [(path, body) for command, path, body in server.calls if command == "PUT"]
    assert [path.rpartition("/")[2] for path, _ in uploads] == ["model_card.json"]
    assert json.loads(uploads[0][1]) == CARD
    assert json.loads(next(body for _, path, body in server.calls if path.endswith("runs/update")))["status"] in (
        "FINISHED",
        3,
    )


@pytest.mark.parametrize("step", ["experiments/create", "runs/create", "log-batch", "artifacts"])
def test_a_server_that_refuses_fails_nothing_and_its_words_are_not_repeated(server: type[Server], step: str) -> None:
    server.fails_at = step
    outcome = track(CARD, model="diagnosis")
    assert outcome["mlflow"] == "failed"
    assert "planted-secret" not in json.dumps(outcome)
    if step in ("log-batch", "artifacts"):
        updates = [json.loads(body) for _, path, body in server.calls if path.endswith("runs/update")]
        assert [update["status"] for update in updates] in (["FAILED"], [4]), "no run is left looking unfinished"


def test_a_server_that_is_away_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome = track(CARD, model="diagnosis")
    assert outcome["mlflow"] == "failed"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    assert track(CARD, model="diagnosis")["mlflow"] == "failed"


def test_a_store_of_files_keeps_what_was_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "clinic")
    monkeypatch.chdir(tmp_path)
    outcome = track(CARD, model="diagnosis")
    assert outcome["mlflow"] == "logged", outcome
    run = MlflowClient().get_run(outcome["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["robust_accuracy"] == 0.81
    assert run.data.params["gate.minimum_clean_accuracy"] == "0.9"
