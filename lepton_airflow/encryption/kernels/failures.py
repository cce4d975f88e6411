"""What a kernel says when ciphertexts are not authentic."""

from __future__ import annotations

import numpy as np

from lepton_airflow.encryption.kernels.columns import Index


class NotAuthentic(Exception):
    """Some values of an array are not authentic under the kernel's key, prefix and associated data.

    Internal: the caller knows the dataset, the column and the key id, and turns this into
    :class:`lepton_airflow.errors.DecryptionFailed`.

    :ivar rows: row numbers in the array, ascending
    """

    def __init__(self, rows: Index) -> None:
        self.rows: tuple[int, ...] = tuple(np.sort(rows).tolist())
        super().__init__(f"{len(self.rows)} values are not authentic")
