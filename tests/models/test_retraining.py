"""From examples to a champion, or to a refusal."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from lepton_airflow.errors import EmptyTable, InvalidData, UnsafeFile
from lepton_airflow.models.artefact import ModelFolder, file_digest
from lepton_airflow.models.attacks.pgd import ProjectedGradientDescent
from lepton_airflow.models.card import Origin
from lepton_airflow.models.dp_sgd import schedule
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.networks import Means
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import (
    EvaluationPlan,
    GatePlan,
    HardeningPlan,
    ImageColumn,
    RetrainingPlan,
    TrainingPlan,
)
from lepton_airflow.models.retraining import retrain
from lepton_airflow.models.threat_model import ThreatModel

PLAN = RetrainingPlan(
    threat_model=ThreatModel(norm="linf", epsilon=0.5, units="standard deviations"),
    training=TrainingPlan(epochs=30, hidden=(64,)),
    evaluation=EvaluationPlan(epsilons=(0.25, 1.5), steps=20, restarts=2, apgd_steps=20, square_queries=50),
    gate=GatePlan(minimum_clean_accuracy=0.85, minimum_robust_accuracy=0.55),
    seed=11,
)


MEANS = Means(report=lambda _report: None)


def origin(features: tuple[str, ...], run_key: str = "run 1") -> Origin:
    return Origin(
        run_key=run_key,
        spec_digest="sha256:1",
        purpose="test",
        dataset="clinic.visits",
        rows=1137,
        features=features,
        label="diagnosis",
        classes=("benign", "malignant"),
        privacy_unit="patient_id",
    )


def retrained(examples: Examples, path: Path, *, plan: RetrainingPlan = PLAN, run_key: str = "run 1") -> dict[str, Any]:
    names = tuple(f"feature_{position}" for position in range(examples.features.shape[1]))
    return retrain(
        examples,
        origin=origin(names, run_key),
        plan=plan,
        folder=ModelFolder(path),
        means=MEANS,
    )


def reasons(card: dict[str, Any]) -> str:
    """Why the gate refused it."""
    assert not card["gate"]["passed"]
    return "; ".join(card["gate"]["reasons"])


@pytest.fixture(scope="module")
def champion(examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "diagnosis"
    retrained(examples, path)
    return path


@pytest.fixture(scope="module")
def card(champion: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((champion / "model_card.json").read_text())
    return read


def accuracies(card: dict[str, Any], model: str) -> dict[float, float]:
    return {point["epsilon"]: point["accuracy"] for point in card["evaluation"]["curve"][model]}


def test_the_hardened_model_keeps_what_the_standard_one_loses(card: dict[str, Any]) -> None:
    standard, hardened = accuracies(card, "standard"), accuracies(card, "hardened")
    assert set(standard) == set(hardened) == {0.0, 0.25, 0.5, 1.5}
    assert standard[0.0] > 0.9
    assert hardened[0.5] > standard[0.5] + 0.2
    assert hardened[1.5] < 0.5, "an attack that wins at a large radius is an attack that works"
    assert list(hardened.values()) == sorted(hardened.values(), reverse=True)
    assert card["evaluation"]["clean"]["accuracy"] == hardened[0.0]
    assert hardened[0.5] - 0.1 < card["evaluation"]["robust"]["accuracy"] <= hardened[0.5], "PGD alone overstates"


def test_the_shipped_file_is_the_attacked_one_and_keeps_its_accuracy(
    champion: Path, card: dict[str, Any], examples: Examples
) -> None:
    file = champion / card["model"]["file"]
    assert card["model"]["sha256"] == file_digest(file)
    model = keras.models.load_model(file, compile=False)
    # Units of the test split are not in the card; over all examples the shipped file must do about as well.
    correct = model.predict(examples.features, verbose=0).argmax(axis=1) == examples.labels
    assert correct.mean() == pytest.approx(card["evaluation"]["clean"]["accuracy"], abs=0.06)
    attack = ProjectedGradientDescent(
        model,
        perturbation=Perturbation(
            InputSpace.free(
                norm="linf",
                names=card["data"]["features"],
                mean=np.array(card["preprocessing"]["mean"]),
                scale=np.array(card["preprocessing"]["scale"]),
            )
        ),
        steps=20,
        restarts=2,
        batch_size=len(examples),
        seed=1,
    )
    robust = attack.survivors(examples, 0.5).mean()
    assert robust == pytest.approx(card["evaluation"]["robust"]["accuracy"], abs=0.08)


def test_standardisation_travels_inside_the_model(champion: Path, card: dict[str, Any], examples: Examples) -> None:
    layer = keras.models.load_model(champion / "model.keras", compile=False).get_layer("standardise")
    assert np.ravel(layer.mean) == pytest.approx(card["preprocessing"]["mean"], rel=1e-6)
    assert np.sqrt(np.ravel(layer.variance)) == pytest.approx(card["preprocessing"]["scale"], rel=1e-5)
    assert not np.allclose(card["preprocessing"]["mean"], examples.features.mean(axis=0), rtol=1e-6), (
        "the scale is that of the training split, not of all the data"
    )


def test_the_card_says_what_was_done(card: dict[str, Any], examples: Examples) -> None:
    data = card["data"]
    assert data["digest"] == examples.digest()
    assert data["train"]["units"] + data["test"]["units"] == data["units"] == 569
    assert card["evaluation"]["robust"]["n"] == data["test"]["examples"]
    low, high = card["evaluation"]["robust"]["interval_95"]
    assert low < card["evaluation"]["robust"]["accuracy"] < high
    assert card["threat_model"] == {"norm": "linf", "epsilon": 0.5, "units": "standard deviations"}
    assert card["evaluation"]["attack"]["restarts"] == 2
    assert card["gate"] == {**PLAN.gate.model_dump(mode="json"), "passed": True, "reasons": []}
    assert card["seeds"] == {"training": 11, "given": True}
    assert "patient 1" not in json.dumps(card)


def test_a_seed_repeats_the_whole_run(card: dict[str, Any], examples: Examples, tmp_path: Path) -> None:
    again = retrained(examples, tmp_path / "again")
    assert again["evaluation"] == card["evaluation"]
    assert again["data"] == card["data"]


def test_without_a_seed_split_and_weights_come_from_the_system(examples: Examples, tmp_path: Path) -> None:
    plan = PLAN.model_copy(
        update={
            "seed": None,
            "training": TrainingPlan(epochs=1, hidden=()),
            "evaluation": EvaluationPlan(epsilons=(), steps=1, restarts=1),
            "gate": GatePlan(minimum_clean_accuracy=0, minimum_robust_accuracy=0),
        }
    )
    first, second = (retrained(examples, tmp_path / name, plan=plan) for name in ("one", "two"))
    assert first["seeds"]["training"] != second["seeds"]["training"]
    assert first["preprocessing"] != second["preprocessing"], "another split has other means"


def test_a_model_that_has_not_learned_is_refused_and_the_champion_stays(
    examples: Examples, champion: Path, card: dict[str, Any], tmp_path: Path
) -> None:
    path = shutil.copytree(champion, tmp_path / "diagnosis")
    untrained = PLAN.model_copy(update={"training": TrainingPlan(epochs=1, hidden=(64,), learning_rate=1e-9)})
    refused = retrained(examples, path, plan=untrained, run_key="run 2")
    assert re.search(r"robust accuracy 0\.\d+ .* is below 0\.55", reasons(refused))
    assert ModelFolder(path).champion() == card
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {
        "model.keras",
        "model_card.json",
        "model_card.html",
    }


def test_a_first_model_that_is_refused_leaves_nothing(examples: Examples, tmp_path: Path) -> None:
    strict = PLAN.model_copy(update={"gate": GatePlan(minimum_clean_accuracy=0.85, minimum_robust_accuracy=1)})
    assert "robust accuracy" in reasons(retrained(examples, tmp_path / "diagnosis", plan=strict))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_standard_training_does_not_pass_the_gate_that_hardening_passes(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_airflow.models import networks

    monkeypatch.setattr(networks, "objective_for", lambda *_plan, **_ignored: networks.standard_objective())
    assert "robust accuracy" in reasons(retrained(examples, tmp_path / "diagnosis"))


def test_what_is_judged_is_what_was_loaded_from_the_file(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_airflow.models import built_model

    load = built_model.load_model

    def load_with_damage(file: Path, **options: Any) -> Any:
        model = load(file, **options)
        model.get_layer("logits").set_weights([-array for array in model.get_layer("logits").get_weights()])
        return model

    monkeypatch.setattr(built_model, "load_model", load_with_damage)
    assert "clean accuracy" in reasons(retrained(examples, tmp_path / "diagnosis"))


def test_a_file_that_is_exchanged_while_it_is_attacked_is_refused(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_airflow.models import retraining

    evaluate = retraining.evaluate

    def evaluate_and_exchange(*arguments: Any, **options: Any) -> Any:
        found = evaluate(*arguments, **options)
        (file,) = tmp_path.rglob("model.keras")
        file.write_bytes(file.read_bytes() + b"a trojan")
        return found

    monkeypatch.setattr(retraining, "evaluate", evaluate_and_exchange)
    lenient = GatePlan(minimum_clean_accuracy=0.0, minimum_robust_accuracy=0.0)
    quick = PLAN.model_copy(update={"training": TrainingPlan(epochs=1, hidden=(8,)), "gate": lenient})
    assert "artefact-hash" in reasons(retrained(examples, tmp_path / "diagnosis", plan=quick))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_splits_that_share_units_are_never_trained_on(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_airflow.models import splits

    monkeypatch.setattr(splits, "split_by_unit", lambda all_examples, **_ignored: (all_examples, all_examples))
    with pytest.raises(InvalidData, match="569 privacy units"):
        retrained(examples, tmp_path / "diagnosis")


def test_fewer_examples_than_a_batch_are_refused(blobs: Callable[..., Examples], tmp_path: Path) -> None:
    with pytest.raises(EmptyTable, match="less than one batch of 64"):
        retrained(blobs(60), tmp_path / "m")


def test_a_feature_that_does_not_vary_is_refused_by_name(blobs: Callable[..., Examples], tmp_path: Path) -> None:
    examples = blobs(300)
    examples.features[:, 3] = 7.0
    with pytest.raises(InvalidData, match=r"clinic\.visits\.feature_3"):
        retrained(examples, tmp_path / "m")


def test_a_class_that_the_training_split_lacks_is_refused(blobs: Callable[..., Examples], tmp_path: Path) -> None:
    examples = replace(blobs(300), labels=np.zeros(300, np.int32))
    with pytest.raises(InvalidData, match=r"'malignant'.*"):
        retrained(examples, tmp_path / "m")


def test_three_classes_are_learned_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    labels = np.arange(600) % 3
    centres = np.array([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0]])
    examples = Examples(
        features=(centres[labels] + draw.normal(size=(600, 2))).astype(np.float32),
        labels=labels.astype(np.int32),
        units=np.arange(600),
        unit_ids=tuple(f"{unit:03}".encode() for unit in range(600)),
    )
    card = retrain(
        examples,
        origin=replace(origin(("x", "y")), classes=(0, 1, 2)),
        plan=PLAN,
        folder=ModelFolder(tmp_path / "m"),
        means=MEANS,
    )
    assert card["evaluation"]["robust"]["accuracy"] > 0.8


ANYTHING = GatePlan(minimum_clean_accuracy=0, minimum_robust_accuracy=0, allowed_clean_loss=1, allowed_robust_loss=1)
BRIEF = EvaluationPlan(epsilons=(), steps=2, restarts=1, apgd_steps=10, square_queries=5)


def test_who_was_held_out_once_is_never_learned_from(examples: Examples, tmp_path: Path) -> None:
    from lepton_airflow.models.examples import split_by_unit

    plan = PLAN.model_copy(
        update={"seed": None, "training": TrainingPlan(epochs=1, hidden=()), "evaluation": BRIEF, "gate": ANYTHING}
    )
    first, second = (retrained(examples, tmp_path / "m", plan=plan, run_key=key) for key in ("one", "two"))
    assert first["preprocessing"] == second["preprocessing"], "the same units were learned from"
    assert first["model"] != second["model"]
    key = ModelFolder(tmp_path / "m").split_key()
    learned_from, _ = split_by_unit(examples, test_fraction=BRIEF.test_fraction, key=key)
    assert learned_from.features.mean(axis=0) == pytest.approx(first["preprocessing"]["mean"], rel=1e-5)
    assert (tmp_path / ".m.lepton" / "split.key").stat().st_mode & 0o777 == 0o600


def test_a_key_of_the_split_that_others_can_read_is_refused(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "m")
    folder.split_key()
    (tmp_path / ".m.lepton" / "split.key").chmod(0o644)
    with pytest.raises(UnsafeFile):
        folder.split_key()


def test_a_challenger_begins_with_the_champion_and_is_held_against_it(
    examples: Examples, champion: Path, card: dict[str, Any], tmp_path: Path
) -> None:
    path = shutil.copytree(champion, tmp_path / "m")
    warm = PLAN.training.model_copy(update={"epochs": 1, "learning_rate": 1e-6, "warm_start": True})
    challenger = retrained(
        examples, path, plan=PLAN.model_copy(update={"training": warm, "evaluation": BRIEF}), run_key="run 2"
    )
    assert challenger["evaluation"]["clean"]["accuracy"] == pytest.approx(
        card["evaluation"]["clean"]["accuracy"], abs=0.02
    )
    compared = challenger["evaluation"]["comparison"]
    low, high = compared["robust"]["interval_95"]
    assert low <= compared["robust"]["difference"] <= high
    assert any(stage["name"] == "transfer" for stage in challenger["evaluation"]["suite"])


@pytest.mark.slow
def test_an_image_model_is_trained_attacked_and_pictured(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.flatnonzero(digits.target < 2)[:300]
    examples = Examples(
        features=digits.data[chosen].astype(np.float32),
        labels=digits.target[chosen].astype(np.int32),
        units=np.arange(len(chosen)),
        unit_ids=tuple(f"{unit:04}".encode() for unit in range(len(chosen))),
    )
    plan = RetrainingPlan(
        threat_model=ThreatModel(norm="linf", epsilon=0.1, units="pixel range"),
        training=TrainingPlan(
            epochs=8, hidden=(16,), filters=4, steps=2, shift=1, averaging=0.8, validation_fraction=0.2
        ),
        evaluation=BRIEF.model_copy(update={"epsilons": (0.9,), "example_images": 2}),
        gate=GatePlan(minimum_clean_accuracy=0.9, minimum_robust_accuracy=0.6),
        image=ImageColumn(column="scan", shape=(8, 8, 1), low=0, high=16),
        seed=3,
    )
    folder = ModelFolder(tmp_path / "digits")
    card = retrain(examples, origin=replace(origin(("scan",)), classes=(0, 1)), plan=plan, folder=folder, means=MEANS)
    assert card["gate"]["reasons"] == []
    assert card["data"]["validation"]["units"] + card["data"]["train"]["units"] + card["data"]["test"]["units"] == 300
    assert (folder.path / "model_card.html").read_text().count("data:image/png") == 6


@pytest.mark.slow
def test_a_model_is_hardened_by_all_means_and_its_integers_are_attacked(
    blobs: Callable[..., Examples], tmp_path: Path
) -> None:
    plan = PLAN.model_copy(
        update={
            "threat_model": ThreatModel(norm="linf", epsilon=0.1, units="standard deviations"),
            "training": TrainingPlan(method="trades", epochs=8, hidden=(16,), steps=2, learning_rate=0.02),
            "hardening": HardeningPlan(ensemble=2, distil=True, pruning=0.3, int8=True),
            "evaluation": BRIEF,
            "gate": GatePlan(minimum_clean_accuracy=0.7, minimum_robust_accuracy=0.5),
        }
    )
    folder = ModelFolder(tmp_path / "m")
    names = tuple(f"feature_{position}" for position in range(5))
    card = retrain(blobs(500), origin=origin(names), plan=plan, folder=folder, means=MEANS)
    assert card["gate"]["reasons"] == []
    assert set(card["trainings"]) == {"standard", "member 1", "member 2", "student", "pruned"}
    assert min(card["hardening"]["zero_shares"].values()) >= 0.25
    int8 = card["int8"]
    assert [stage["kind"] for stage in int8["suite"]] == ["none", "transfer", "transfer", "black-box"]
    assert int8["robust"]["accuracy"] <= int8["clean"]["accuracy"]
    content = folder.int8()
    assert content is not None
    assert len(content) == int8["bytes"] < card["model"]["bytes"]


def test_a_refusal_of_the_integers_alone_refuses_the_model(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_airflow.models import int8

    monkeypatch.setattr(
        int8, "int8_predict", lambda _content: lambda x: np.tile(np.array([[1, 0]], np.float32), (len(x), 1))
    )
    plan = PLAN.model_copy(update={"hardening": HardeningPlan(int8=True), "evaluation": BRIEF})
    assert re.match(r"int8: clean accuracy 0\.\d+", reasons(retrained(examples, tmp_path / "m", plan=plan)))


def test_private_training_is_told_of_before_it_is_judged(blobs: Callable[..., Examples], tmp_path: Path) -> None:
    names = tuple(f"feature_{position}" for position in range(5))
    plan = RetrainingPlan.model_validate(
        {
            "threat_model": {
                "norm": "linf",
                "epsilon": 0.1,
                "units": "feature scales",
                "scales": dict.fromkeys(names, 1.0),
                "constraints": {"bounds": {name: [-3, 3] for name in names}},
            },
            "training": {
                "hidden": [],  # the noise of private training can switch hidden units off
                "learning_rate": 0.05,
                "steps": 2,
                "differential_privacy": {
                    "epsilon": "6",
                    "delta": "1e-5",
                    "sampling_rate": 0.2,
                    "steps": 25,
                    "baselines": ["linear_regression"],
                    "baseline_epsilon": "100",
                },
            },
            "evaluation": BRIEF.model_dump(),
            "gate": {"minimum_clean_accuracy": 0.7, "minimum_robust_accuracy": 0.5},
        }
    )
    private = plan.training.differential_privacy
    assert private is not None
    told: list[Any] = []
    reports: list[Any] = []
    card = retrain(
        blobs(600),
        origin=origin(names),
        plan=plan,
        folder=ModelFolder(tmp_path / "m"),
        means=Means(report=reports.append, noise=schedule(private)),
        drawn=told.append,
    )
    assert card["gate"]["reasons"] == []
    assert [what["model"] for what in told] == [card["model"]["sha256"]]
    section = card["differential_privacy"]
    assert 5.5 < section["epsilon"] <= 6
    assert section["noise_multiplier"] == told[0]["noise_multiplier"]
    assert section["baselines"]["linear_regression"]["accuracy"] > 0.6
    assert {report.loss for report in reports} == {None}, "loss and accuracy are exact statistics of the units"
    assert "standard" not in card["evaluation"]["curve"], "nothing else learned from the units"
    assert card["preprocessing"]["mean"] == [0.0] * 5, "from declared bounds"
