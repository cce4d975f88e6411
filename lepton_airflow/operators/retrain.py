"""Retrain a model against adversarial attack, behind a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lepton_airflow.operators.base import LeptonSparkOperator


class RetrainModelOperator(LeptonSparkOperator):
    """Train a classifier against adversarial attack on a protected table; only a model that passes the gate is published.

    .. code-block:: python

        RetrainModelOperator(
            task_id="retrain_diagnosis",
            source={"name": "clinic.visits", "path": "/data/protected/visits"},
            privacy_unit="patient_id",
            label_column="diagnosis",
            classes=["benign", "malignant"],
            features=["mean_radius", "mean_texture"],
            threat_model={"norm": "linf", "epsilon": 0.5, "units": "standard deviations"},
            gate={"minimum_clean_accuracy": 0.9, "minimum_robust_accuracy": 0.6},
            target="/models/diagnosis",
            purpose="diagnosis model",
            outlets=[Asset("clinic.diagnosis_model")],
        )

    A model that the gate refuses fails the task without a retry; the model that was at the target stays there.

    :param source: the protected table; encrypted features are decrypted in memory only (templated)
    :param privacy_unit: the column that says whose row it is: no unit is in both the training and the test data
    :param label_column: the column of the class
    :param classes: the classes, in the order of the model's outputs
    :param features: the numeric columns that the model sees; or
    :param image: the column of images that it sees instead: ``column``, ``shape`` (height, width, channels), ``low`` and ``high``
    :param threat_model: what the attacker may change: ``norm``, ``epsilon``, ``units``
    :param gate: ``minimum_clean_accuracy`` and ``minimum_robust_accuracy`` on test units
    :param target: the folder of the model (templated)
    :param purpose: why; the policy grants actions for purposes (templated)
    :param training: ``method`` (``pgd``, ``trades``, ``fast``, ``generator``), ``epochs``, ``batch_size``, ``learning_rate``,
        ``steps``, ``hidden``, ``warm_start``, ``workers``, ``differential_privacy``, ...; see
        :class:`lepton_airflow.models.plan.TrainingPlan`
    :param hardening: ``ensemble``, ``distil``, ``pruning``, ``int8``
    :param evaluation: ``epsilons``, ``steps``, ``restarts``, ``apgd_steps``, ``square_queries``, ``test_fraction``, ...
    :param budget: the dataset whose privacy budget pays for private training; by default the source's name
    :param seed: of initial weights and order of batches, to repeat a training; it protects nothing
    :returns: ``clean_accuracy``, ``robust_accuracy``, ``epsilon``, ``n_test``, ``gate``, ``path``, ``sha256``, ``replayed``; of
        private training also ``epsilon_spent`` and ``epsilon_left``
    """

    job: ClassVar[str] = "retrain_model"
    spec_fields: ClassVar[tuple[str, ...]] = (
        "source",
        "privacy_unit",
        "label_column",
        "classes",
        "features",
        "image",
        "threat_model",
        "gate",
        "target",
        "purpose",
        "training",
        "hardening",
        "evaluation",
        "budget",
        "seed",
    )
    template_fields = ("source", "target", "purpose")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        privacy_unit: str,
        label_column: str,
        classes: Sequence[str],
        threat_model: Mapping[str, Any],
        gate: Mapping[str, Any],
        target: str,
        purpose: str,
        features: Sequence[str] | None = None,
        image: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        hardening: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        budget: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.privacy_unit = privacy_unit
        self.label_column = label_column
        self.classes = classes
        self.features = features
        self.image = image
        self.threat_model = threat_model
        self.gate = gate
        self.target = target
        self.purpose = purpose
        self.training = training
        self.hardening = hardening
        self.evaluation = evaluation
        self.budget = budget
        self.seed = seed
