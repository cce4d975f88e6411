"""The ciphers for which there are keysets; the first two named as Tink names their key templates."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Cipher = Literal["AES256_GCM", "AES256_SIV", "FF1"]

#: AES-256-SIV (RFC 5297) takes two AES-256 keys, one for the synthetic IV and one for the counter mode. FF1 (NIST SP 800-38G)
#: takes one AES-256 key; Tink has no such primitive.
KEY_BYTES: Mapping[Cipher, int] = MappingProxyType({"AES256_GCM": 32, "AES256_SIV": 64, "FF1": 32})
