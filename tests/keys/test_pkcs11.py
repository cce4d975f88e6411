"""PKCS #11 identities against SoftHSM2, in an interpreter of their own.

SoftHSM2 is linked to OpenSSL, TensorFlow brings BoringSSL under the same symbol names: a process that loaded TensorFlow first
crashes inside the token's library. (The retrain job opens its keys before it loads TensorFlow.) A test worker may have loaded
TensorFlow for another test, so the tests of the token run beside it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("pkcs11_in_own_process.py")


def test_identities_in_a_token_keep_their_promises() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout
    assert " skipped" not in finished.stdout
