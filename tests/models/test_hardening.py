"""Ensembles, pruned and integer models: what is shipped is a model of its own, and attacked as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lepton_airflow.errors import InvalidData, ModelTampered
from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.artefact import file_digest
from lepton_airflow.models.ensembles import averaged
from lepton_airflow.models.examples import Examples, Features
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.int8 import int8_predict, to_int8
from lepton_airflow.models.loading import load_model
from lepton_airflow.models.objectives import standard_objective
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.plan import TrainingPlan
from lepton_airflow.models.pruning import prune, zero_shares
from lepton_airflow.models.surrogate import surrogate_of
from lepton_airflow.models.training import train

#: Raw units of the features: as far apart as those of the breast cancer records.
UNITS = np.array([1000.0, 1.0, 0.001, 10.0, 0.1], np.float32)


def classifier(seed: int = 0, *, hidden: tuple[int, ...] = (16,), features: int = 5) -> Any:
    return tabular_classifier(mean=3 * UNITS[:features], scale=UNITS[:features], hidden=hidden, classes=2, seed=seed)


def scaled(examples: Examples) -> Examples:
    features = (examples.features * UNITS + 3 * UNITS).astype(np.float32)
    return Examples(features=features, labels=examples.labels, units=examples.units, unit_ids=examples.unit_ids)


@pytest.fixture(scope="module")
def clouds(blobs: Callable[..., Examples]) -> Examples:
    """Two clouds of points in units from thousandths to thousands."""
    return scaled(blobs(400, seed=1))


def fit(model: Any, examples: Examples, *, epochs: int = 8) -> Any:
    plan = TrainingPlan(epochs=epochs, batch_size=64, learning_rate=0.01)
    train(model, examples, name="m", plan=plan, objective=standard_objective(), seed=0, report=lambda _: None)
    return model


@pytest.fixture(scope="module")
def trained(clouds: Examples) -> Any:
    """Not to be changed."""
    return fit(classifier(hidden=(64,)), clouds)


def accuracy(logits: Any, examples: Examples) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == examples.labels))


def test_an_ensemble_answers_with_the_mean_logits_and_is_saved_without_code(clouds: Examples, tmp_path: Path) -> None:
    members = [classifier(seed) for seed in range(3)]
    ensemble = averaged(members)
    expected = np.mean([member(clouds.features) for member in members], axis=0)
    np.testing.assert_allclose(ensemble(clouds.features), expected, rtol=1e-4, atol=1e-5)
    path = tmp_path / "model.keras"
    ensemble.save(path)
    loaded = load_model(path, sha256=file_digest(path))
    np.testing.assert_allclose(loaded(clouds.features), expected, rtol=1e-4, atol=1e-5)
    again = averaged([loaded, loaded])
    np.testing.assert_allclose(again(clouds.features), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_an_ensemble_are_those_of_its_members(clouds: Examples) -> None:
    members = [classifier(seed) for seed in range(2)]
    x = tf.constant(clouds.features[:8])

    def gradient(model: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            first = tf.reduce_sum(model(x, training=False)[:, 0])
        return tape.gradient(first, x).numpy() * UNITS

    expected = np.mean([gradient(member) for member in members], axis=0)
    np.testing.assert_allclose(gradient(averaged(members)), expected, rtol=1e-4, atol=1e-5)


def test_members_trained_further_leave_the_ensemble_alone(clouds: Examples) -> None:
    members = [classifier(seed) for seed in range(2)]
    ensemble = averaged(members)
    before = ensemble(clouds.features).numpy()
    members[0].set_weights([weights + 1 for weights in members[0].get_weights()])
    np.testing.assert_array_equal(ensemble(clouds.features), before)


def test_what_cannot_be_averaged_is_refused() -> None:
    for models in ([], [classifier()], [classifier(), classifier(features=4)]):
        with pytest.raises(InvalidData):
            averaged(models)


def test_pruning_takes_the_smallest_weights_of_each_layer_and_nothing_else() -> None:
    model = classifier(hidden=(16, 8))
    before = [np.array(weights) for weights in model.get_weights()]
    shares = prune(model, share=0.6)
    assert list(shares.values()) == [int(0.6 * size) / size for size in (5 * 16, 16 * 8, 8 * 2)]
    for old, new in zip(before, model.get_weights(), strict=True):
        if old.ndim < 2:
            np.testing.assert_array_equal(old, new)
            continue
        gone = new == 0
        np.testing.assert_array_equal(old[~gone], new[~gone])
        assert np.abs(old[gone]).max() <= np.abs(old[~gone]).min()
    untouched = classifier()
    assert set(prune(untouched, share=0.0).values()) == {0.0}


def test_pruned_weights_stay_zero_while_the_others_learn(clouds: Examples, tmp_path: Path) -> None:
    model = classifier()
    prune(model, share=0.5)
    before = model.get_weights()
    fit(model, clouds)
    after = model.get_weights()
    assert all(share >= 0.5 for share in zero_shares(model).values())
    for old, new in zip(before, after, strict=True):
        if old.ndim == 2:
            assert not new[old == 0].any()
            assert (new[old != 0] != old[old != 0]).mean() > 0.5, "all but those of dead units learn"
    assert accuracy(model(clouds.features), clouds) > 0.8
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = load_model(path, sha256=file_digest(path))
    assert zero_shares(loaded) == zero_shares(model)
    np.testing.assert_allclose(loaded(clouds.features), model(clouds.features), rtol=1e-5, atol=1e-5)


def test_an_unpruned_model_does_not_stay_sparse_by_itself(clouds: Examples) -> None:
    """What the test above would not see if training never moved a zero."""
    model = classifier()
    for weights in model.trainable_weights:
        if len(weights.shape) == 2:
            values = weights.numpy()
            values[np.abs(values) < 0.2] = 0
            weights.assign(values)
    fit(model, clouds, epochs=1)
    assert max(zero_shares(model).values()) < 0.05


def test_members_of_an_ensemble_are_pruned_too() -> None:
    shares = prune(averaged([classifier(seed) for seed in range(2)]), share=0.5)
    names = [f"member_{member}/{layer}" for member in range(2) for layer in ("hidden_0", "logits")]
    assert shares == dict.fromkeys(names, 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(InvalidData):
        prune(classifier(), share=share)


def test_integers_keep_features_of_every_magnitude(trained: Any, clouds: Examples) -> None:
    predict = int8_predict(to_int8(trained, clouds.features), batch_size=64)
    expected = trained(clouds.features).numpy()
    logits = predict(clouds.features)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 0.05 * np.ptp(expected)
    assert abs(accuracy(logits, clouds) - accuracy(expected, clouds)) <= 0.01
    # One scale over all raw features would leave of the third nothing at all.
    without = clouds.features.copy()
    without[:, 2] = 3 * UNITS[2]
    assert np.abs(predict(without) - logits).max() > 0.05 * np.ptp(expected)


def test_any_number_of_examples_is_predicted(trained: Any, clouds: Examples) -> None:
    predict = int8_predict(to_int8(trained, clouds.features[:50]), batch_size=32)
    whole = predict(clouds.features)
    assert predict(clouds.features[:0]).shape == (0, 2)
    for count in (1, 31, 32, 33, 100):
        np.testing.assert_array_equal(predict(clouds.features[:count]), whole[:count])


def test_all_but_the_standardisation_is_integers(trained: Any, clouds: Examples) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(model_content=to_int8(trained, clouds.features))
    types = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    dense = [each for each in interpreter._get_ops_details() if each["op_name"] == "FULLY_CONNECTED"]
    assert len(dense) == 2
    for operation in dense:
        read = [types[index] for index in operation["inputs"] if index >= 0]
        assert read == [np.int8, np.int8, np.int32]
        assert [types[index] for index in operation["outputs"]] == [np.int8]


def test_an_integer_model_is_a_small_part_of_its_parent(tmp_path: Path, clouds: Examples) -> None:
    images = np.random.default_rng(0).uniform(0, 16, (20, 64)).astype(np.float32)
    network = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    for model, examples in ((network, images), (classifier(hidden=(128,)), clouds.features)):
        path = tmp_path / "model.keras"
        model.save(path)
        content = to_int8(model, examples)
        assert len(content) * 3.5 <= path.stat().st_size
        expected = model(examples).numpy()
        assert np.abs(int8_predict(content)(examples) - expected).max() < 0.05 * np.ptp(expected)


def test_what_is_no_litert_model_is_refused(trained: Any) -> None:
    for content in (b"", b"not a model", to_int8(trained, np.ones((3, 5), np.float32))[:600]):
        with pytest.raises(ModelTampered):
            int8_predict(content)


@pytest.mark.parametrize("examples", [np.zeros((0, 5), np.float32), np.full((3, 5), np.nan, np.float32)])
def test_scales_are_not_taken_from_nothing(trained: Any, examples: Features) -> None:
    with pytest.raises(InvalidData):
        to_int8(trained, examples)


def test_a_surrogate_comes_to_answer_as_what_it_imitates(
    trained: Any, clouds: Examples, blobs: Callable[..., Examples]
) -> None:
    other = fit(classifier(7, hidden=(64,)), scaled(blobs(300, seed=5)), epochs=3)

    def predict(features: Features) -> Any:
        # Steps as coarse as a table's: no gradient anywhere.
        return np.round(other(features).numpy() * 4) / 4

    space = InputSpace.free(norm="linf", names=[f"f{n}" for n in range(5)], mean=3 * UNITS, scale=UNITS)
    weights = trained.get_weights()
    surrogate = surrogate_of(predict, trained, clouds, perturbation=Perturbation(space), epsilon=0.5, seed=3, epochs=10)
    held_out = scaled(blobs(200, seed=9)).features

    def distance(model: Any) -> float:
        difference = model(held_out).numpy() - predict(held_out)
        return float(np.std(difference - difference.mean(axis=1, keepdims=True)))

    assert distance(surrogate) < distance(trained) / 3
    for before, after in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
