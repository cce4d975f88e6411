"""Seeds of a training run. They fix weights, batches and attack starts; no secret may ever come from one."""

from __future__ import annotations

import hashlib


def derived_seed(root: int, use: str) -> int:
    """An independent seed of 31 bits for one use of the root seed."""
    return int.from_bytes(hashlib.sha256(f"{root}/{use}".encode()).digest()[:4], "big") >> 1
