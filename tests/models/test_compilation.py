"""The choice between TensorFlow's kernels and XLA."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lepton_airflow.models import compilation
from lepton_airflow.models.architectures import tabular_classifier
from lepton_airflow.models.compilation import faster
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import InputSpace
from lepton_airflow.models.objectives import pgd_objective
from lepton_airflow.models.perturbation import Perturbation
from lepton_airflow.models.training import compile_step

MANY = 10**9


def sleeper(plain: float, xla: float) -> Callable[[bool], Any]:
    """Two functions that take so many seconds."""

    def build(use: bool) -> Any:
        def call() -> Any:
            time.sleep(xla if use else plain)
            return tf.constant(1)

        return call

    return build


@pytest.mark.parametrize(
    ("plain", "xla", "calls", "chosen"),
    [(0.02, 0.001, MANY, True), (0.001, 0.02, MANY, False), (0.02, 0.001, 1000, False)],
    ids=["XLA is faster", "XLA is slower", "too little work to ask"],
)
def test_the_faster_one_is_chosen_where_it_pays(plain: float, xla: float, calls: int, chosen: bool) -> None:
    assert faster(sleeper(plain, xla), arguments=(), calls=calls)[1] is chosen


def test_what_xla_cannot_compile_is_not_compiled() -> None:
    def build(xla: bool) -> Any:
        return tf.function(lambda: tf.py_function(lambda: 1.0, [], tf.float32), jit_compile=xla, autograph=False)

    function, uses_xla = faster(build, arguments=(), calls=MANY)
    assert not uses_xla
    assert float(function()) == 1


class WithoutChance(Perturbation):
    """From one seed XLA draws other random numbers than TensorFlow's kernels do."""

    def random(self, generator: tf.random.Generator, x: Any, epsilon: Any) -> Any:
        generator.uniform((1,))
        return tf.zeros_like(x)


@pytest.mark.slow
def test_a_training_step_means_the_same_under_xla_and_a_probe_leaves_no_trace(
    blobs: Callable[..., Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = blobs(32)
    arguments = (examples.features, examples.labels, np.ones(32, np.float32))
    ones = np.ones(5, np.float32)
    space = InputSpace.free(norm="linf", names=list("abcde"), mean=0 * ones, scale=ones)

    def after_three_steps(*, xla: bool) -> list[Any]:
        model = tabular_classifier(mean=0 * ones, scale=ones, hidden=(4,), classes=2, seed=1)
        objective = pgd_objective(perturbation=WithoutChance(space), epsilon=0.3, steps=2, seed=2)
        # Plain descent: Adam would make as much of a rounding as of a gradient.
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        optimizer.build(model.trainable_variables)
        state = [*model.trainable_variables, *optimizer.variables, *objective.state]
        before = [variable.numpy() for variable in state]
        monkeypatch.setattr(compilation, "_CLEARLY", 1e-9 if xla else 1e9)
        step, chosen = faster(
            lambda use: compile_step(model, optimizer, objective=objective, batch_size=32, xla=use),
            arguments=arguments,
            calls=MANY,
            state=state,
        )
        assert chosen is xla
        assert all(np.array_equal(left, right.numpy()) for left, right in zip(before, state, strict=True))
        for _ in range(3):
            step(*arguments)
        assert not np.array_equal(before[0], state[0].numpy())
        return [variable.numpy() for variable in model.trainable_variables]

    for plain, compiled in zip(after_three_steps(xla=False), after_three_steps(xla=True), strict=True):
        np.testing.assert_allclose(plain, compiled, atol=2e-3)
