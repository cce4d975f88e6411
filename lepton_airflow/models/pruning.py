"""Magnitude pruning (Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NIPS 2015):
the smallest weights of each layer become 0 and stay 0 while the others are trained on.

Neither a ``.keras`` nor a LiteRT file stores zeros shorter, so pruning alone shrinks no file; a compressed archive of one, and a
runtime for sparse weights, gain by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from lepton_airflow.errors import InvalidData


class _Masked(keras.constraints.Constraint):  # type: ignore[misc]
    """Puts pruned weights back to 0. Optimizers apply a variable's constraint after every step; it is not saved."""

    def __init__(self, mask: Any) -> None:
        self._mask = keras.ops.convert_to_tensor(mask)

    def __call__(self, weights: Any) -> Any:
        return weights * self._mask


def prune(model: Any, *, share: float) -> dict[str, float]:
    """Set the smallest weights of every layer to 0, in place. Whatever optimizer trains ``model`` afterwards keeps them at 0.

    :param model: its layers with a trainable kernel are pruned (dense ones and convolutions), those inside an ensemble too;
        biases are not
    :param share: of each layer's weights, from 0 to below 1; of n weights the floor of ``share * n`` smallest go
    :returns: the share of zeros in each layer, see :func:`zero_shares`
    :raises InvalidData: not a share
    """
    if not 0 <= share < 1:
        raise InvalidData("The share of pruned weights is from 0 to below 1.", place="pruning", remedy="Correct it.")
    for _, kernel in _kernels(model):
        weights = np.asarray(keras.ops.convert_to_numpy(kernel))
        # By rank and not by a threshold: of equal weights no more go than were asked for.
        smallest = np.argsort(np.abs(weights), axis=None, kind="stable")[: int(share * weights.size)]
        mask = np.ones(weights.size, weights.dtype)
        mask[smallest] = 0
        mask = mask.reshape(weights.shape)
        kernel.assign(weights * mask)
        kernel.constraint = _Masked(mask) if share else None
    return zero_shares(model)


def zero_shares(model: Any) -> dict[str, float]:
    """The share of zeros among the weights of every layer that can be pruned, by its name, after the member's in an ensemble."""
    return {
        name: float(np.mean(np.asarray(keras.ops.convert_to_numpy(kernel)) == 0)) for name, kernel in _kernels(model)
    }


def _kernels(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            # A member of an ensemble: its layers are named like the other members'.
            yield from _kernels(layer, f"{path}{layer.name}/")
        elif getattr(layer, "kernel", None) is not None and layer.kernel.trainable:
            yield f"{path}{layer.name}", layer.kernel
