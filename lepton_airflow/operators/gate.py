"""Hold an existing model against a gate of clean and robust accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lepton_airflow.operators.base import LeptonSparkOperator


class RobustnessGateOperator(LeptonSparkOperator):
    """Attack a model on a protected table and fail the task unless it passes the gate.

    .. code-block:: python

        RobustnessGateOperator(
            task_id="gate_diagnosis",
            source={"name": "clinic.new_visits", "path": "/data/protected/new_visits"},
            model="/models/diagnosis_candidate",
            champion="/models/diagnosis",
            gate={"minimum_clean_accuracy": 0.9, "minimum_robust_accuracy": 0.6},
            purpose="diagnosis model",
        )

    The model is refused if it misses a minimum, if it may have lost more against the champion than allowed, or if the
    measurement is not to be believed: masked gradients, attacks that have not converged, data that it was trained on. A refusal
    fails the task without a retry and says why; nothing is written, both models stay as they are.

    :param source: the protected table; encrypted columns are decrypted in memory only (templated)
    :param model: the folder of the model; its card says which columns it needs (templated)
    :param gate: ``minimum_clean_accuracy``, ``minimum_robust_accuracy``, ``allowed_clean_loss``, ``allowed_robust_loss``
    :param purpose: why; the policy grants actions for purposes (templated)
    :param champion: the folder of the model to compare with, on the same examples (templated)
    :param newer_than: ``column`` and ``value``: attack only rows that are greater (templated)
    :param trained_on: the table that the model was trained on: nobody in it may be in ``source`` (templated)
    :param threat_model: ``norm``, ``epsilon``, ``units``, ``scales``, ``constraints``; default: those of the model's card
    :param evaluation: ``epsilons``, ``steps``, ``restarts``, ``apgd_steps``, ``square_queries``, ``expectation_samples``
    :param seed: of the attacks, to repeat them
    :returns: ``gate``, ``clean_accuracy``, ``robust_accuracy``, their intervals, ``n_test``, ``units``, ``attacks``, ``epsilon``,
        ``seed``, ``sha256``, and with a champion the differences to it
    """

    job: ClassVar[str] = "gate_model"
    spec_fields: ClassVar[tuple[str, ...]] = (
        "source",
        "model",
        "gate",
        "purpose",
        "champion",
        "newer_than",
        "trained_on",
        "threat_model",
        "evaluation",
        "seed",
    )
    template_fields = ("source", "model", "purpose", "champion", "newer_than", "trained_on")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        model: str,
        gate: Mapping[str, Any],
        purpose: str,
        champion: str | None = None,
        newer_than: Mapping[str, str] | None = None,
        trained_on: Mapping[str, Any] | None = None,
        threat_model: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.model = model
        self.gate = gate
        self.purpose = purpose
        self.champion = champion
        self.newer_than = newer_than
        self.trained_on = trained_on
        self.threat_model = threat_model
        self.evaluation = evaluation
        self.seed = seed
