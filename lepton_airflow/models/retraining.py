"""Retrain, attack, judge, publish: from examples to a new champion, or to a refusal that leaves the old one in place."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Any

import keras

from lepton_airflow.errors import EmptyTable, GateRefused
from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.artefact import MODEL_FILE, ModelFolder, file_digest
from lepton_airflow.models.card import Origin, model_card
from lepton_airflow.models.card_page import card_page
from lepton_airflow.models.evaluation import accuracy_curve, compare, evaluate
from lepton_airflow.models.examples import Examples, require_classes, require_disjoint, split_by_unit
from lepton_airflow.models.gate import judge
from lepton_airflow.models.input_space import image_space, require_inside, table_space
from lepton_airflow.models.objectives import pgd_objective, standard_objective
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import RetrainingPlan
from lepton_airflow.models.refusals import other_artefact, overlap
from lepton_airflow.models.seeds import derived_seed
from lepton_airflow.models.training import EpochReport, train


def retrain(
    examples: Examples,
    *,
    origin: Origin,
    plan: RetrainingPlan,
    folder: ModelFolder,
    report: Callable[[EpochReport], None],
) -> dict[str, Any]:
    """Train a standard and a hardened model, attack both, and publish the hardened one if it passes the gate.

    The file that ships is the file that was attacked: the hardened model is saved, loaded again from that file for the
    attack, and published only while the file's hash is still the same.

    :param folder: the champion's place; a champion that is there has the same inputs and classes
    :param report: called after every epoch
    :returns: the model's card, as published
    :raises EmptyTable: too few examples to split, or fewer to train on than one batch
    :raises InvalidData: a declared class or any variation of a feature is missing from the training split
    :raises GateRefused: with the reasons; the champion stays
    """
    seed = secrets.randbits(31) if plan.seed is None else plan.seed
    champion = None if folder.champion() is None else folder.load()
    learned_from, held_out = _split(examples, origin=origin, plan=plan)
    if plan.image is None:
        space = table_space(learned_from, names=origin.features, threat_model=plan.threat_model, place=origin.dataset)
    else:
        space = image_space(plan.image, threat_model=plan.threat_model)
        require_inside(learned_from, space, place=origin.dataset)
    require_inside(held_out, space, place=origin.dataset)
    perturbation = Perturbation(space)
    epsilon = plan.threat_model.epsilon
    objectives = {
        "standard": standard_objective(),
        "hardened": pgd_objective(
            perturbation=perturbation,
            epsilon=epsilon,
            steps=plan.training.steps,
            seed=derived_seed(seed, "training attack"),
        ),
    }
    models = {}
    for name, objective in objectives.items():
        # The same first weights and the same batches for both: they differ only in what they are exposed to.
        models[name] = tabular_classifier(
            mean=space.mean,
            scale=space.scale,
            hidden=plan.training.hidden,
            classes=len(origin.classes),
            seed=derived_seed(seed, "weights"),
        )
        train(
            models[name],
            learned_from,
            name=name,
            plan=plan.training,
            objective=objective,
            seed=derived_seed(seed, "order"),
            report=report,
        )
    with folder.staging(origin.run_key) as staging:
        file = staging / MODEL_FILE
        models["hardened"].save(file)
        attacked = file_digest(file)
        models["hardened"] = keras.models.load_model(file, compile=False)
        attack = derived_seed(seed, "evaluation attack")
        hardened = evaluate(
            models["hardened"],
            held_out,
            space=space,
            epsilon=epsilon,
            plan=plan.evaluation,
            seed=attack,
            champion=champion,
        )
        comparison = None
        if champion is not None:
            there = evaluate(champion, held_out, space=space, epsilon=epsilon, plan=plan.evaluation, seed=attack)
            comparison = compare(there, hardened)
        verdict = judge(
            plan.gate,
            evaluation=hardened,
            refusals=(*overlap(learned_from, held_out), *other_artefact(attacked, file_digest(file))),
            comparison=comparison,
        )
        if not verdict.passed:
            raise GateRefused(
                f"The new model does not pass the gate: {'; '.join(verdict.reasons)}. "
                f"{'The champion stays.' if folder.path.exists() else 'Nothing is published.'}",
                place=str(folder.path),
                remedy="Train longer or on more data, or defend against a smaller epsilon.",
            )
        card = model_card(
            origin=origin,
            plan=plan,
            seed=seed,
            examples=examples,
            train=learned_from,
            test=held_out,
            mean=space.mean,
            scale=space.scale,
            model_file=file,
            model_digest=attacked,
            standard=accuracy_curve(
                models["standard"],
                held_out,
                space=space,
                radii=hardened.curve,
                plan=plan.evaluation,
                seed=attack,
            ),
            hardened=hardened,
            comparison=comparison,
            verdict=verdict,
        )
        return folder.publish(staging, card, page=card_page(card))


def _split(examples: Examples, *, origin: Origin, plan: RetrainingPlan) -> tuple[Examples, Examples]:
    """Training and test examples, fit to be trained on and judged by."""
    key = secrets.token_bytes(32) if plan.seed is None else hashlib.sha256(f"split {plan.seed}".encode()).digest()
    learned_from, held_out = split_by_unit(examples, test_fraction=plan.evaluation.test_fraction, key=key)
    require_disjoint(learned_from, held_out, place=origin.dataset)
    if len(learned_from) < plan.training.batch_size:
        raise EmptyTable(
            f"The training split has {len(learned_from)} examples, less than one batch of {plan.training.batch_size}.",
            place=origin.dataset,
            remedy="Train on more units, or set a smaller training.batch_size.",
        )
    for split, name in ((learned_from, "training"), (held_out, "test")):
        require_classes(split, origin.classes, place=f"{origin.dataset}.{origin.label} ({name} split)")
    return learned_from, held_out
