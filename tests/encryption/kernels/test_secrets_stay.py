"""Kernels hold keys: they cannot be sent anywhere and do not show them."""

from __future__ import annotations

import pickle

import pytest

from lepton_airflow.encryption.kernels.ff1 import Ff1Kernel
from lepton_airflow.encryption.kernels.gcm import GcmKernel
from lepton_airflow.encryption.kernels.siv import SivKernel

_KEY = b"canary-key-of-32-bytes-0123456789"[:32]


@pytest.mark.parametrize(
    "kernel",
    [
        GcmKernel(_KEY, prefix=b"", associated_data=b""),
        SivKernel(2 * _KEY, prefix=b"", associated_data=b""),
        Ff1Kernel(_KEY),
    ],
    ids=["gcm", "siv", "ff1"],
)
def test_a_kernel_is_neither_pickled_nor_printed(kernel: object) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(kernel)
    for text in (repr(kernel), str(kernel)):
        assert "canary" not in text
        assert _KEY.hex() not in text
