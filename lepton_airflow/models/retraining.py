"""Retrain, harden, attack, judge, publish: from examples to a new champion, or to a refusal that leaves the old one in place."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lepton_airflow.models.artefact import ModelFolder, file_digest
from lepton_airflow.models.attacks.suite import AttackSuite
from lepton_airflow.models.baselines import baseline_accuracy
from lepton_airflow.models.built_model import BuiltModel, build
from lepton_airflow.models.card import Origin, model_card
from lepton_airflow.models.card_page import card_page
from lepton_airflow.models.evaluation import Evaluation, accuracy_curve, compare, evaluate, withstood
from lepton_airflow.models.example_pictures import example_pictures
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.gate import Verdict, judge
from lepton_airflow.models.input_space import (
    InputSpace,
    clipped,
    declared_space,
    image_space,
    require_inside,
    table_space,
)
from lepton_airflow.models.networks import Means, Networks
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import RetrainingPlan
from lepton_airflow.models.prediction import prediction_of
from lepton_airflow.models.refusals import other_artefact, overlap
from lepton_airflow.models.seeds import derived_seed
from lepton_airflow.models.splits import Splits, split
from lepton_airflow.models.warm_start import start_from

if TYPE_CHECKING:
    from lepton_airflow.keys.signing_key import SigningKey


def retrain(
    examples: Examples,
    *,
    origin: Origin,
    plan: RetrainingPlan,
    folder: ModelFolder,
    means: Means,
    key: SigningKey | None = None,
    drawn: Callable[[Mapping[str, Any]], None] = lambda _what: None,
    before_publishing: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a standard and a hardened model, attack the hardened one, and publish it if it passes the gate.

    The files that ship are those that were attacked: a model is saved, loaded again from that file for the attack, and published
    only while the file's hash is still the same.

    :param folder: the champion's place; a champion that is there has the same inputs and classes
    :param key: signs what is published
    :param drawn: called with what a private training made, before anything that depends on it leaves this function
    :param before_publishing: called right before the champion is replaced, which stays if it raises
    :returns: the model's card; whether it was published is ``card["gate"]["passed"]``
    :raises EmptyTable: too few examples to split, or fewer to train on than one batch
    :raises InvalidData: a declared class or any variation of a feature is missing from the training split; or the champion, which
        was to be started from, has another form
    :raises ModelTampered: the champion's files, a checkpoint or the new model's file were changed
    """
    remembered = _remembered(plan, folder, means)
    seed: int = remembered["seed"]
    splits = split(
        examples,
        test_fraction=plan.evaluation.test_fraction,
        validation_fraction=plan.training.validation_fraction,
        batch_size=plan.training.batch_size,
        key=bytes.fromhex(remembered["split_key"]),
        classes=origin.classes,
        dataset=origin.dataset,
        label=origin.label,
    )
    space, splits = _space(splits, origin=origin, plan=plan)
    card = folder.champion()
    champion = None if card is None else folder.load()
    networks = Networks(
        plan=plan,
        space=space,
        learned_from=splits.learned_from,
        validation=splits.validation,
        classes=len(origin.classes),
        seed=seed,
        means=means,
        start=_start(champion, card, origin=origin, folder=folder)
        if plan.training.warm_start
        else lambda _network: None,
    )
    standard = None if plan.training.differential_privacy else networks.standard()
    with folder.staging(origin.run_key) as staging:
        built = build(networks.hardened(), staging, plan=plan.hardening, representative=splits.learned_from.features)
        if means.noise is not None:
            drawn({"model": built.digest, **vars(means.noise)})
        judged = _Judgement(
            built=built, splits=splits, space=space, plan=plan, seed=derived_seed(seed, "evaluation attack")
        )
        hardened = judged.against_suite(champion)
        comparison = None if champion is None else compare(judged.champion(champion), hardened)
        int8 = judged.int8()
        verdict = judged.verdict(hardened, int8, comparison)
        made = model_card(
            origin=origin,
            plan=plan,
            seed=seed,
            examples=examples,
            splits=splits,
            space=space,
            built=built,
            standard=None
            if standard is None
            else accuracy_curve(
                standard,
                splits.held_out,
                space=space,
                radii=hardened.curve,
                plan=plan.evaluation,
                seed=judged.seed,
            ),
            hardened=hardened,
            int8=int8,
            comparison=comparison,
            verdict=verdict,
            records=networks.records,
            privacy=_privacy(plan, means, splits, space, classes=len(origin.classes)),
        )
        if verdict.passed:
            page = card_page(made, pictures=judged.pictures(hardened, origin.classes))
            before_publishing()
            made = folder.publish(staging, made, page=page, key=key)
    if means.checkpoints is not None:
        means.checkpoints.clear()
    return made


@dataclass(frozen=True, kw_only=True)
class _Judgement:
    """Everything that is measured on the held-out examples."""

    built: BuiltModel
    splits: Splits
    space: InputSpace
    plan: RetrainingPlan
    seed: int

    @property
    def epsilon(self) -> float:
        return self.plan.threat_model.epsilon

    def against_suite(self, champion: Any) -> Evaluation:
        return evaluate(
            self.built.model,
            self.splits.held_out,
            space=self.space,
            epsilon=self.epsilon,
            plan=self.plan.evaluation,
            seed=self.seed,
            champion=champion,
        )

    def champion(self, champion: Any) -> Evaluation:
        suite = AttackSuite(champion, space=self.space, plan=self.plan.evaluation, seed=self.seed)
        return withstood(suite, self.splits.held_out, self.epsilon)

    def int8(self) -> Evaluation | None:
        """The integer model under what misleads its parent and an imitation of it, and under Square."""
        if self.built.int8 is None:
            return None
        from lepton_airflow.models.int8 import int8_predict
        from lepton_airflow.models.surrogate import surrogate_of

        predict = int8_predict(self.built.int8)
        surrogate = surrogate_of(
            predict,
            self.built.model,
            self.splits.held_out,
            perturbation=Perturbation(self.space),
            epsilon=self.epsilon,
            seed=derived_seed(self.seed, "surrogate"),
        )
        suite = AttackSuite.black_box(
            predict,
            parents={"float parent": self.built.model, "surrogate": surrogate},
            space=self.space,
            plan=self.plan.evaluation,
            seed=derived_seed(self.seed, "int8"),
        )
        return withstood(suite, self.splits.held_out, self.epsilon)

    def verdict(self, hardened: Evaluation, int8: Evaluation | None, comparison: Any) -> Verdict:
        splits, built = self.splits, self.built
        seen = [splits.learned_from, *([splits.validation] if splits.validation is not None else [])]
        verdict = judge(
            self.plan.gate,
            evaluation=hardened,
            refusals=(
                *(refusal for part in seen for refusal in overlap(part, splits.held_out)),
                *other_artefact(built.digest, file_digest(built.file)),
            ),
            comparison=comparison,
        )
        if int8 is None:
            return verdict
        of_integers = judge(self.plan.gate, evaluation=int8)
        return Verdict(reasons=(*verdict.reasons, *(f"int8: {reason}" for reason in of_integers.reasons)))

    def pictures(self, hardened: Evaluation, classes: Any) -> Any:
        count = self.plan.evaluation.example_images
        if not count or not self.space.is_image:
            return ()
        return example_pictures(
            hardened.suite,
            self.splits.held_out,
            space=self.space,
            predict=prediction_of(self.built.model),
            classes=classes,
            count=count,
        )


def _remembered(plan: RetrainingPlan, folder: ModelFolder, means: Means) -> dict[str, Any]:
    """The seed of this run and the key of the split.

    Without a seed in the plan the split's key belongs to the champion's place: who was tested on once is never trained on for a
    successor, so that champion and challenger are compared on units that neither has seen.
    """
    if plan.seed is not None:
        return {"seed": plan.seed, "split_key": hashlib.sha256(f"split {plan.seed}".encode()).hexdigest()}

    def draw() -> dict[str, Any]:
        return {"seed": secrets.randbits(31)}

    drawn = draw() if means.checkpoints is None else means.checkpoints.remembered(draw)
    return {**drawn, "split_key": folder.split_key().hex()}


def _space(splits: Splits, *, origin: Origin, plan: RetrainingPlan) -> tuple[InputSpace, Splits]:
    """The input space, and the splits as they lie in it."""
    private = plan.training.differential_privacy is not None
    if plan.image is not None:
        space = image_space(plan.image, threat_model=plan.threat_model)
    elif private:
        space = declared_space(names=origin.features, threat_model=plan.threat_model)
    else:
        space = table_space(
            splits.learned_from, names=origin.features, threat_model=plan.threat_model, place=origin.dataset
        )
    if private:
        return space, Splits(
            learned_from=clipped(splits.learned_from, space),
            validation=None,
            held_out=clipped(splits.held_out, space),
        )
    for part in (splits.learned_from, splits.validation, splits.held_out):
        if part is not None:
            require_inside(part, space, place=origin.dataset)
    return space, splits


def _start(
    champion: Any, card: Mapping[str, Any] | None, *, origin: Origin, folder: ModelFolder
) -> Callable[[Any], None]:
    """Gives a network the champion's weights; the first training of all begins with its own."""
    if champion is None or card is None:
        return lambda _network: None
    return partial(
        start_from,
        champion=champion,
        features=origin.features,
        champion_features=card["data"]["features"],
        classes=origin.classes,
        champion_classes=card["data"]["classes"],
        place=str(folder.path),
    )


def _privacy(
    plan: RetrainingPlan, means: Means, splits: Splits, space: InputSpace, *, classes: int
) -> dict[str, Any] | None:
    """What a card says of a private training; its baselines are trained here."""
    private = plan.training.differential_privacy
    if private is None or means.noise is None:
        return None
    cost = private.baseline_epsilon
    baselines = (
        {}
        if cost is None
        else {
            kind: baseline_accuracy(
                kind, splits.learned_from, splits.held_out, space=space, classes=classes, epsilon=cost
            ).to_dict()
            for kind in private.baselines
        }
    )
    return {
        **vars(means.noise),
        "clipping_norm": private.clipping_norm,
        "neighbours": "one privacy unit of the training split, added or removed",
        "baselines": baselines,
        "baseline_epsilon": None if cost is None else str(cost),
    }
