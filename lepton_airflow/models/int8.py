"""LiteRT models (TensorFlow Lite) whose weights and activations are 8-bit integers.

Scales of activations come from representative examples (Jacob et al.: Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018). The one exception is the first layer, which standardises raw features: it stays in
32-bit floats, for one scale of 8 bits over all features would leave nothing of those measured in hundredths beside those
measured in thousands. So the file takes raw features [b, d] as floats and gives logits [b, classes] as floats, and all between
standardisation and logits is integers.

Weights have one scale for each channel where the network has convolutions, and one for each layer where it is all dense: there
the scales would take more room than the weights of small networks.

An integer model has no gradients, and it is another model than its parent: it is attacked by itself (see
:mod:`lepton_airflow.models.surrogate`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from lepton_airflow.errors import InvalidData, ModelTampered
from lepton_airflow.models.examples import Features
from lepton_airflow.models.prediction import Logits, Predict

#: What standardisation and rescaling are converted to.
_FLOAT_OPERATIONS = ("SUB", "MUL", "DIV", "ADD")
#: Examples from which scales are taken, at most; more change them little.
_MOST_REPRESENTATIVE = 512


def to_int8(model: Any, representative: Features) -> bytes:
    """Convert a Keras model.

    :param model: from raw features [b, d] to logits [b, classes]
    :param representative: [n, d], raw examples of the training split; not stored, but the scales tell their extremes
    :returns: the content of a ``.tflite`` file
    :raises InvalidData: no representative example, or some that are no numbers
    """
    if not len(representative) or not np.isfinite(representative).all():
        raise InvalidData(
            "Scales of integers come from examples; there are none, or some that are no numbers.",
            place="int8",
            remedy="Give examples of the training split.",
        )
    sample = np.asarray(representative[:_MOST_REPRESENTATIVE], np.float32)

    def examples() -> Iterator[list[Features]]:
        for position in range(len(sample)):
            yield [sample[position : position + 1]]

    with tempfile.TemporaryDirectory(prefix="lepton-int8-") as folder:
        # On disk go the model's graph and weights, which are published anyway; the examples do not.
        saved = str(Path(folder) / "saved")
        model.export(saved, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter._experimental_disable_per_channel = not _has_convolutions(model)
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(_FLOAT_OPERATIONS))
        with _without_deprecations():
            quantizer = tf.lite.experimental.QuantizationDebugger(
                converter=converter, debug_dataset=examples, debug_options=options
            )
        content: bytes = quantizer.get_nondebug_quantized_model()
    return content


def int8_predict(content: bytes, *, batch_size: int = 256) -> Predict:
    """How a LiteRT model predicts; not to be called from several threads at once.

    :param content: of a ``.tflite`` file; verified, for the interpreter trusts it
    :param batch_size: examples predicted at a time
    :raises ModelTampered: not a LiteRT model, or not one from float features to float logits
    """
    try:
        with _without_deprecations():
            interpreter = tf.lite.Interpreter(model_content=content, num_threads=1)
        (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(given["index"], (batch_size, given["shape"][1]), strict=False)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError, IndexError):
        raise _not_a_model() from None
    if given["dtype"] != np.float32 or returned["dtype"] != np.float32:
        raise _not_a_model()
    width, classes = int(given["shape"][1]), int(returned["shape"][-1])

    def predict(features: Features) -> Logits:
        logits = np.zeros((len(features), classes), np.float32)
        for start in range(0, len(features), batch_size):
            part = features[start : start + batch_size]
            batch = np.zeros((batch_size, width), np.float32)
            batch[: len(part)] = part
            interpreter.set_tensor(given["index"], batch)
            interpreter.invoke()
            logits[start : start + len(part)] = interpreter.get_tensor(returned["index"])[: len(part)]
        return logits

    return predict


def _has_convolutions(model: Any) -> bool:
    return any(len(getattr(layer, "kernel", np.empty(0)).shape) > 2 for layer in model._flatten_layers())


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """TensorFlow announces that its interpreter moves to another package; nobody who runs a job can do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated", UserWarning)
        yield


def _not_a_model() -> ModelTampered:
    return ModelTampered(
        "It is not a LiteRT model from features to logits.",
        place="int8 model",
        remedy="Do not load it; train and convert again.",
    )
