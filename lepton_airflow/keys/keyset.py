"""Keysets: the data keys of one name and one cipher, in Google Tink's terms and formats.

A keyset holds keys with ids. The primary one encrypts; every enabled one decrypts. A destroyed key keeps its id, so
that its ciphertexts can be told from forgeries, but its bytes are gone: that is crypto-shredding.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NoReturn, get_args

import tink
from google.protobuf.message import DecodeError
from tink import aead, daead, json_proto_keyset_format, proto_keyset_format, secret_key_access
from tink.proto import aes_gcm_pb2, aes_siv_pb2, tink_pb2

from lepton_airflow.errors import ConfigurationError, KeyExposure, KeyUnavailable
from lepton_airflow.keys.cipher import KEY_BYTES, Cipher

KeyStatus = Literal["ENABLED", "DISABLED", "DESTROYED"]

_PROTO = {"AES256_GCM": aes_gcm_pb2.AesGcmKey, "AES256_SIV": aes_siv_pb2.AesSivKey}
#: Tink has no FF1: its keys are of a type of our own, whose value is the 32 bytes as they are, and are not written for Tink.
_TYPE_URL = {
    "FF1": "type.lepton-airflow/lepton.Ff1Key",
    "AES256_GCM": "type.googleapis.com/google.crypto.tink.AesGcmKey",
    "AES256_SIV": "type.googleapis.com/google.crypto.tink.AesSivKey",
}

aead.register()
daead.register()


class Keyset:
    """Data keys with ids, exactly one of them primary and enabled. Holds secrets: it cannot be pickled or copied.

    Immutable: what changes a keyset returns another one.

    :ivar name: the keyset's name in its keyring
    :ivar cipher: the one cipher for which all its keys are
    :ivar primary_key_id: the id of the key that encrypts
    :ivar keys: the status of every key by its id, in order of creation
    """

    def __init__(self, *, name: str, cipher: Cipher, proto: Any) -> None:
        """Take over a ``google.crypto.tink.Keyset`` message; callers outside this package use the class methods.

        :raises ConfigurationError: not a keyset of exactly this cipher in Tink's prefixed format
        """
        place = f"keyset {name!r} ({cipher})"
        check_cipher(cipher, place=place)
        self.name = name
        self.cipher: Cipher = cipher
        self._material: dict[int, bytes] = {}
        keys: dict[int, KeyStatus] = {}
        for key in proto.key:
            if key.key_id in keys or key.status not in (tink_pb2.ENABLED, tink_pb2.DISABLED, tink_pb2.DESTROYED):
                raise _not_a_keyset(place)
            keys[key.key_id] = tink_pb2.KeyStatusType.Name(key.status)
            if key.status != tink_pb2.DESTROYED:
                self._material[key.key_id] = _key_material(cipher, key, place=place)
        self.keys: Mapping[int, KeyStatus] = MappingProxyType(keys)
        self.primary_key_id: int = proto.primary_key_id
        if keys.get(self.primary_key_id) != "ENABLED":
            raise _not_a_keyset(place)
        self._proto = proto
        self._handle = None if cipher == "FF1" else _handle(proto, secret_key_access.TOKEN, place=place)

    @classmethod
    def generate(cls, name: str, *, cipher: Cipher) -> Keyset:
        """Make a keyset with one fresh key."""
        check_cipher(cipher, place=f"keyset {name!r}")
        return cls(name=name, cipher=cipher, proto=_add_primary(tink_pb2.Keyset(), cipher))

    def aead(self) -> aead.Aead:
        """Tink's AEAD over this keyset: encrypts under the primary key, decrypts under every enabled one.

        :raises ConfigurationError: the keyset is for another cipher
        """
        return self._tink("AES256_GCM").primitive(aead.Aead)

    def deterministic_aead(self) -> daead.DeterministicAead:
        """Tink's deterministic AEAD over this keyset.

        :raises ConfigurationError: the keyset is for another cipher
        """
        return self._tink("AES256_SIV").primitive(daead.DeterministicAead)

    def material(self, key_id: int) -> bytes:
        """The bytes of an enabled key, 32 for GCM and FF1 and 64 for SIV; for the column ciphers of this package only.

        :raises KeyUnavailable: no such key, or it is disabled or destroyed
        """
        status = self.keys.get(key_id)
        if status != "ENABLED":
            raise KeyUnavailable(
                f"Key {key_id} is {status.lower() if status else 'not in the keyset'}.",
                place=f"keyset {self.name!r} ({self.cipher})",
                remedy="See `lepton keys list`.",
            )
        return self._material[key_id]

    def with_new_primary(self) -> Keyset:
        """This keyset and one fresh key more, which becomes primary; the others still decrypt."""
        return Keyset(name=self.name, cipher=self.cipher, proto=_add_primary(self._proto, self.cipher))

    def with_status(self, key_id: int, status: KeyStatus) -> Keyset:
        """This keyset with one key enabled, disabled (can be enabled again) or destroyed (cannot: its bytes go).

        :raises KeyUnavailable: no such key, the primary one, or one that is destroyed already
        """
        place = f"keyset {self.name!r} ({self.cipher}), key {key_id}"
        before = self.keys.get(key_id)
        if before is None or before == "DESTROYED":
            raise KeyUnavailable(
                f"The key is {'destroyed' if before else 'not in the keyset'}.",
                place=place,
                remedy="See `lepton keys list`.",
            )
        if key_id == self.primary_key_id and status != "ENABLED":
            raise KeyUnavailable(
                "The primary key encrypts new values and stays enabled.",
                place=place,
                remedy="Run `lepton keys rotate` first, so that another key is primary.",
            )
        proto = tink_pb2.Keyset()
        proto.CopyFrom(self._proto)
        for key in proto.key:
            if key.key_id == key_id:
                key.status = tink_pb2.KeyStatusType.Value(status)
                if status == "DESTROYED":
                    key.ClearField("key_data")
        return Keyset(name=self.name, cipher=self.cipher, proto=proto)

    def to_proto(self, token: tink.KeyAccess) -> bytes:
        """The keyset in clear, as a serialised Tink ``Keyset`` message.

        :param token: ``tink.secret_key_access.TOKEN``, by which the caller shows that it means to handle secrets
        :raises KeyExposure: any other token
        """
        self._require_token(token)
        serialized: bytes = self._proto.SerializeToString(deterministic=True)
        return serialized

    @classmethod
    def from_proto(cls, serialized: bytes, *, name: str, cipher: Cipher) -> Keyset:
        """Read what :meth:`to_proto` wrote.

        :raises ConfigurationError: not a keyset of this cipher
        """
        try:
            proto = tink_pb2.Keyset.FromString(serialized)
        except DecodeError:
            raise _not_a_keyset(f"keyset {name!r} ({cipher})") from None
        return cls(name=name, cipher=cipher, proto=proto)

    def to_tink_json(self, token: tink.KeyAccess) -> str:
        """The keyset in clear, in Tink's JSON format, which every Tink library reads. Destroyed keys are left out.

        :param token: ``tink.secret_key_access.TOKEN``, by which the caller shows that it means to handle secrets
        :raises KeyExposure: any other token
        :raises ConfigurationError: the keyset is for FF1, which Tink does not have
        """
        self._require_token(token)
        self._tink(self.cipher)
        proto = tink_pb2.Keyset(primary_key_id=self.primary_key_id)
        # Tink for Java refuses JSON keys without key data, whatever their status.
        proto.key.extend(key for key in self._proto.key if key.status != tink_pb2.DESTROYED)
        handle = _handle(proto, token, place=f"keyset {self.name!r} ({self.cipher})")
        return str(json_proto_keyset_format.serialize(handle, token))

    @classmethod
    def from_tink_json(cls, text: str, token: tink.KeyAccess, *, name: str, cipher: Cipher) -> Keyset:
        """Read a keyset that a Tink library wrote in clear.

        :raises ConfigurationError: not Tink JSON, keys of other ciphers or without Tink's output prefix, or FF1
        """
        if cipher == "FF1":
            raise _not_of_tink(f"keyset {name!r}")
        try:
            handle = json_proto_keyset_format.parse(text, token)
            serialized = proto_keyset_format.serialize(handle, token)
        except tink.TinkError:
            raise _not_a_keyset(f"keyset {name!r} ({cipher})") from None
        return cls.from_proto(serialized, name=name, cipher=cipher)

    def __repr__(self) -> str:
        return f"Keyset(name={self.name!r}, cipher={self.cipher!r}, keys={dict(self.keys)!r})"

    def __reduce__(self) -> NoReturn:
        raise KeyExposure(
            "A keyset holds keys in clear and is not pickled or copied.",
            place=f"keyset {self.name!r} ({self.cipher})",
            remedy="Send a KeysetReference instead; it is opened where the keys are used.",
        )

    def _tink(self, cipher: Cipher) -> tink.KeysetHandle:
        """Tink's handle of this keyset, which must be for ``cipher``."""
        if self._handle is None:
            raise _not_of_tink(f"keyset {self.name!r}")
        if self.cipher != cipher:
            raise ConfigurationError(
                f"The keyset is for {self.cipher}, not for {cipher}.",
                place=f"keyset {self.name!r}",
                remedy=f"Open the keyset's {cipher} part.",
            )
        return self._handle

    def _require_token(self, token: tink.KeyAccess) -> None:
        if not tink.has_secret_key_access(token):
            raise KeyExposure(
                "Writing keys in clear needs Tink's secret key access token.",
                place=f"keyset {self.name!r} ({self.cipher})",
                remedy="Pass `tink.secret_key_access.TOKEN` if that is what you want.",
            )


def check_cipher(cipher: str, *, place: str) -> None:
    """Refuse a cipher for which there are no keysets.

    :raises ConfigurationError: naming those that there are
    """
    if cipher not in get_args(Cipher):
        raise ConfigurationError(
            "The cipher is not known.", place=place, remedy=f"Use one of {', '.join(get_args(Cipher))}."
        )


def _add_primary(proto: Any, cipher: Cipher) -> Any:
    extended = tink_pb2.Keyset()
    extended.CopyFrom(proto)
    taken = {key.key_id for key in proto.key}
    key_id = secrets.randbelow(2**31 - 1) + 1
    while key_id in taken:
        key_id = secrets.randbelow(2**31 - 1) + 1
    key = extended.key.add()
    key.key_id = key_id
    key.status = tink_pb2.ENABLED
    key.output_prefix_type = _output_prefix(cipher)
    key.key_data.type_url = _TYPE_URL[cipher]
    material = os.urandom(KEY_BYTES[cipher])
    key.key_data.value = material if cipher == "FF1" else _PROTO[cipher](key_value=material).SerializeToString()
    key.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    extended.primary_key_id = key_id
    return extended


def _output_prefix(cipher: Cipher) -> int:
    """Ciphertexts begin with the key id, except those of FF1, which have no room for it."""
    prefix: int = tink_pb2.RAW if cipher == "FF1" else tink_pb2.TINK
    return prefix


def _key_material(cipher: Cipher, key: Any, *, place: str) -> bytes:
    if key.key_data.type_url != _TYPE_URL[cipher] or key.output_prefix_type != _output_prefix(cipher):
        raise _not_a_keyset(place)
    if cipher == "FF1":
        if len(key.key_data.value) != KEY_BYTES[cipher]:
            raise _not_a_keyset(place)
        return bytes(key.key_data.value)
    try:
        parsed = _PROTO[cipher].FromString(key.key_data.value)
    except DecodeError:
        raise _not_a_keyset(place) from None
    if parsed.version != 0 or len(parsed.key_value) != KEY_BYTES[cipher]:
        raise _not_a_keyset(place)
    return bytes(parsed.key_value)


def _handle(proto: Any, token: tink.KeyAccess, *, place: str) -> tink.KeysetHandle:
    try:
        return proto_keyset_format.parse(proto.SerializeToString(), token)
    except tink.TinkError:
        raise _not_a_keyset(place) from None


def _not_of_tink(place: str) -> ConfigurationError:
    return ConfigurationError(
        "Tink has no FF1, so there is no Tink form of these keys.",
        place=place,
        remedy="Use AES256_GCM or AES256_SIV where other programs are to read the values; seal FF1 keys to whoever needs them.",
    )


def _not_a_keyset(place: str) -> ConfigurationError:
    return ConfigurationError(
        "The keys are not a Tink keyset of this cipher with Tink's output prefix and one enabled primary key.",
        place=place,
        remedy="Import a keyset of that kind, or create a new one with `lepton keys create`.",
    )
