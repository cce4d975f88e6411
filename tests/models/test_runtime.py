"""How TensorFlow is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOAD = "from lepton_airflow.models.runtime import load_tensorflow; load_tensorflow()"


@pytest.mark.slow
def test_loading_is_silent_and_leaves_standard_error_as_it_was() -> None:
    program = f"{LOAD}; import sys, os; os.write(2, b'after\\n'); import tensorflow as tf; tf.ones(2) + 1"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stderr == "after\n"


def test_what_goes_wrong_while_loading_is_not_swallowed() -> None:
    blocked = "import sys; sys.modules['tensorflow'] = None"
    finished = subprocess.run([sys.executable, "-c", f"{blocked}; {LOAD}"], capture_output=True, text=True, check=False)
    assert "MissingDependency" in finished.stderr
    assert "lepton-airflow[tensorflow]" in finished.stderr
