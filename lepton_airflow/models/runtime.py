"""Loads TensorFlow once, quietly, with the settings that the rest of this package counts on."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from lepton_airflow.errors import MissingDependency

#: Notes that TensorFlow's native code writes before its log level is in force: absl's preface, information, no CUDA
#: driver.
_STARTUP_NOTE = re.compile(rb"WARNING: All log messages before absl|I\d{4} |[WE]\d{4} .*(cuInit|cudart)")


def load_tensorflow() -> None:
    """Import TensorFlow and Keras, and start TensorFlow's devices.

    Call it once before any other module of :mod:`lepton_airflow.models` that computes; it takes 5 to 10 seconds.

    :raises MissingDependency: TensorFlow is not installed
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        with _startup_notes_held_back():
            import tensorflow as tf

            tf.zeros(())
    except ImportError:
        raise MissingDependency(
            "TensorFlow is not installed.", place="tensorflow", remedy="Install lepton-airflow[tensorflow]."
        ) from None


@contextmanager
def _startup_notes_held_back() -> Iterator[None]:
    """Send file descriptor 2 to a file meanwhile; afterwards pass on every line that is not a start-up note."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _STARTUP_NOTE.match(line):
                    os.write(2, line)
