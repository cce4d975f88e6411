"""The networks of a retraining: a standard one as baseline, and the hardened one by the means that the plan asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lepton_airflow.models.architectures import classifier_for
from lepton_airflow.models.checkpoints import Checkpoints
from lepton_airflow.models.distillation import distillation_objective
from lepton_airflow.models.dp_sgd import NoiseSchedule, train_privately
from lepton_airflow.models.ensembles import averaged
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.objectives import Objective, objective_for, standard_objective
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import RetrainingPlan, TrainingPlan
from lepton_airflow.models.pruning import prune
from lepton_airflow.models.seeds import derived_seed
from lepton_airflow.models.training import EpochReport, TrainingRecord, train
from lepton_airflow.models.validation import Validation

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: From a network and a seed to what its training minimises; made in the process that trains.
MakeObjective = Callable[[Any, int], Objective]

#: After pruning the weights that are left are trained on for so much of the epochs.
_AFTER_PRUNING = 0.25


@dataclass(frozen=True, kw_only=True)
class Means:
    """With what networks are trained, besides what the plan says.

    :param report: called after every epoch
    :param checkpoints: where a killed run goes on from
    :param session: for several workers
    :param network_is_trusted: workers on several hosts may exchange gradients in the clear
    :param noise: for private training
    """

    report: Callable[[EpochReport], None]
    checkpoints: Checkpoints | None = None
    session: SparkSession | None = None
    network_is_trusted: bool = False
    noise: NoiseSchedule | None = None


@dataclass(kw_only=True)
class Networks:
    """Trains the networks of one plan.

    :param learned_from: the training split
    :param validation: what chooses the best epoch, if anything does
    :param classes: how many
    :param start: given a network with its first weights, may replace them by the champion's
    :ivar records: by the name of each training
    """

    plan: RetrainingPlan
    space: InputSpace
    learned_from: Examples
    validation: Examples | None
    classes: int
    seed: int
    means: Means
    start: Callable[[Any], None] = lambda _network: None
    records: dict[str, TrainingRecord] = field(default_factory=dict)

    def standard(self) -> Any:
        """The baseline: the same first weights and the same batches, and no attack."""
        network = self._fresh("weights")
        self._train(
            network, name="standard", plan=self.plan.training, objective=lambda _network, _seed: standard_objective()
        )
        return network

    def hardened(self) -> Any:
        """The network that may become the champion: one, or an ensemble or its student; pruned, if the plan says so."""
        hardening = self.plan.hardening
        if self.plan.training.differential_privacy is not None:
            return self._private()
        network = self._member(0)
        if hardening.ensemble > 1:
            ensemble = averaged([network, *(self._member(number) for number in range(1, hardening.ensemble))])
            network = self._student(ensemble) if hardening.distil else ensemble
        if hardening.pruning:
            prune(network, share=hardening.pruning)
            epochs = max(1, round(_AFTER_PRUNING * self.plan.training.epochs))
            plan = self.plan.training.model_copy(update={"epochs": epochs})
            self._train(network, name="pruned", plan=plan, objective=self._adversarial())
        return network

    def _member(self, number: int) -> Any:
        network = self._fresh("weights" if number == 0 else f"weights {number}")
        self.start(network)
        name = "hardened" if self.plan.hardening.ensemble == 1 else f"member {number + 1}"
        self._train(network, name=name, plan=self.plan.training, objective=self._adversarial())
        return network

    def _student(self, teacher: Any) -> Any:
        student = self._fresh("student")
        epsilon = self.plan.threat_model.epsilon

        def objective(_network: Any, seed: int) -> Objective:
            return distillation_objective(
                teacher,
                plan=self.plan.training,
                perturbation=Perturbation(self.space),
                epsilon=epsilon,
                seed=seed,
            )

        # The teacher is here and not with other workers.
        alone = self.plan.training.model_copy(update={"workers": 1})
        self._train(student, name="student", plan=alone, objective=objective)
        return student

    def _private(self) -> Any:
        assert self.means.noise is not None  # noqa: S101 - whoever asks for private training reserves its noise
        network = self._fresh("weights")
        report = self.means.report

        def told(step: int, steps: int) -> None:
            report(EpochReport(model="private", epoch=step, epochs=steps))

        train_privately(
            network,
            self.learned_from,
            plan=self.plan.training,
            objective=self._adversarial()(network, derived_seed(self.seed, "objective private")),
            noise=self.means.noise,
            report=told,
        )
        return network

    def _fresh(self, use: str) -> Any:
        return classifier_for(
            self.space, plan=self.plan.training, classes=self.classes, seed=derived_seed(self.seed, use)
        )

    def _adversarial(self) -> MakeObjective:
        return partial(
            _adversarial_objective, self.plan.training, self.space, self.plan.threat_model.epsilon, self.classes
        )

    def _train(self, network: Any, *, name: str, plan: TrainingPlan, objective: MakeObjective) -> None:
        means, epsilon = self.means, 0.0 if name == "standard" else self.plan.threat_model.epsilon
        perturbation = Perturbation(self.space)
        if self.validation is not None:
            validation = Validation(examples=self.validation, perturbation=perturbation, epsilon=epsilon)
        else:
            validation = Validation.of_training(
                self.learned_from,
                perturbation=perturbation,
                epsilon=epsilon,
                seed=derived_seed(self.seed, "progress sample"),
            )
        order = derived_seed(self.seed, "order")
        if plan.workers > 1:
            from lepton_airflow.models.distributed import train_in_barrier_stage

            assert means.session is not None  # noqa: S101 - the job gives one
            self.records[name] = train_in_barrier_stage(
                means.session,
                network,
                self.learned_from,
                name=name,
                plan=plan,
                objective=objective,
                seed=order,
                report=means.report,
                validation=validation,
                network_is_trusted=means.network_is_trusted,
            )
            return
        self.records[name] = train(
            network,
            self.learned_from,
            name=name,
            plan=plan,
            objective=objective(network, derived_seed(self.seed, f"objective {name}")),
            seed=order,
            report=means.report,
            validation=validation,
            checkpoints=means.checkpoints,
        )


def _adversarial_objective(
    plan: TrainingPlan, space: InputSpace, epsilon: float, classes: int, _network: Any, seed: int
) -> Objective:
    return objective_for(plan, perturbation=Perturbation(space), epsilon=epsilon, classes=classes, seed=seed)
