"""Which kinds of personal data a column may hold, by the look of its values and by its name.

Values are matched whole, against patterns and, where the kind has them, check digits: ISO 13616 (IBAN, mod 97), ISO/IEC
7812-1 (cards, Luhn), and the rules of national numbers. A tenth of all numbers pass the Luhn check, so one value says
nothing; a share of a column's values does.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

#: Kinds whose values a join key would be made of; the others are proposed for randomised encryption.
IDENTIFIERS = frozenset({"identifier", "national id"})

_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)+")
_PHONE = re.compile(r"(\+|00|0|\()[\d ()./-]{6,22}\d")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SEPARATORS = re.compile(r"[ -]")
_SSN = re.compile(r"(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}")
_NINO = re.compile(r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]")
_NIR = re.compile(r"[12]\d{2}(0[1-9]|1[0-2]|[2-9]\d)(\d{2}|2[AB])\d{8}")
_DNI = re.compile(r"[XYZ\d]\d{7}[A-Z]")
_CODICE = re.compile(r"[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]")
#: What a character in an odd place counts: digits and the letters A to J the same, K to Z as listed.
_ODD_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS = (*_ODD_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_CODICE_ODD = dict(zip(string.digits + string.ascii_uppercase, _ODD_DIGITS + _ODD_LETTERS, strict=True))


def is_email(value: str) -> bool:
    return len(value) <= 254 and _EMAIL.fullmatch(value) is not None


def is_phone(value: str) -> bool:
    """A number as people write it: it begins with +, 0 or a bracket. A bare number could be anything."""
    return _PHONE.fullmatch(value) is not None and 7 <= sum(map(str.isdigit, value)) <= 15


def is_iban(value: str) -> bool:
    compact = _SEPARATORS.sub("", value).upper()
    if not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", compact, re.ASCII):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def is_card(value: str) -> bool:
    digits = _SEPARATORS.sub("", value)
    if not re.fullmatch(r"[2-6]\d{12,18}", digits, re.ASCII):
        return False
    doubled = (int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits)))
    return sum(number // 10 + number % 10 for number in doubled) % 10 == 0


def is_ip_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def is_uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


def is_national_id(value: str) -> bool:
    """One of the numbers that states give to people: US, UK, Germany, France, Spain, Italy, the Netherlands, Poland."""
    if _SSN.fullmatch(value):
        return True
    compact = _SEPARATORS.sub("", value).upper()
    return any(check(compact) for check in (_is_uk, _is_german, _is_french, _is_spanish, _is_italian, _is_weighted))


def _is_uk(value: str) -> bool:
    """National insurance number; NHS number (weights 10 to 2, mod 11)."""
    if _NINO.fullmatch(value):
        return True
    if not re.fullmatch(r"\d{10}", value, re.ASCII):
        return False
    check = 11 - _weighted(value, range(10, 1, -1)) % 11
    return check % 11 == int(value[9]) and check != 10


def _is_german(value: str) -> bool:
    """Tax id: eleven digits, ISO 7064 mod 11,10; in the first ten, one digit or two are missing."""
    if not re.fullmatch(r"[1-9]\d{10}", value, re.ASCII) or len(set(value[:10])) not in (8, 9):
        return False
    product = 10
    for digit in value[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(value[10])


def _is_french(value: str) -> bool:
    """Social security number: 13 places and a key, 97 less the number mod 97; 2A and 2B count as 19 and 18."""
    if not _NIR.fullmatch(value):
        return False
    number = value[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(value[13:])


def _is_spanish(value: str) -> bool:
    """DNI and NIE: a letter by the number mod 23."""
    if not _DNI.fullmatch(value):
        return False
    number = value[0].translate(str.maketrans("XYZ", "012")) + value[1:8]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == value[8]


def _is_italian(value: str) -> bool:
    """Codice fiscale: a letter by the sum of two tables, mod 26."""
    if not _CODICE.fullmatch(value):
        return False
    odd = sum(_CODICE_ODD[character] for character in value[:15:2])
    even = sum(int(character, 36) - (10 if character.isalpha() else 0) for character in value[1:15:2])
    return ord(value[15]) - ord("A") == (odd + even) % 26


def _is_weighted(value: str) -> bool:
    """Dutch BSN (nine digits, eleven-test); Polish PESEL (eleven digits with a date of birth, mod 10)."""
    if re.fullmatch(r"\d{9}", value, re.ASCII) and int(value):
        return (_weighted(value, range(9, 1, -1)) - int(value[8])) % 11 == 0
    if not re.fullmatch(r"\d{11}", value, re.ASCII) or not (
        1 <= int(value[2:4]) % 20 <= 12 and "01" <= value[4:6] <= "31"
    ):
        return False
    return -_weighted(value, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10 == int(value[10])


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


#: In this order: where two kinds fit a column equally, the first is named.
VALUE_RECOGNISERS: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "e-mail address": is_email,
        "IBAN": is_iban,
        "card number": is_card,
        "national id": is_national_id,
        "IP address": is_ip_address,
        "identifier": is_uuid,
        "phone number": is_phone,
    }
)

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        word: kind
        for kind, words in {
            "e-mail address": "email mail",
            "phone number": "phone telephone tel mobile cell fax msisdn",
            "person's name": "surname lastname firstname forename fullname givenname familyname maiden",
            "address": "address street postcode postal zip zipcode city",
            "IBAN": "iban",
            "card number": "pan cardnumber creditcard",
            "national id": "ssn nhs nino passport licence license insurance taxid nir dni bsn pesel",
            "date of birth": "birth birthday birthdate dob born",
            "IP address": "ip ipaddress",
            "location": "latitude longitude lat lon lng geo",
            "free text": "comment comments note notes remark remarks message description",
            "credential": "password passwd secret token apikey pin",
        }.items()
        for word in words.split()
    }
)
_PEOPLE = frozenset(
    {"patient", "customer", "client", "user", "person", "employee", "member", "subscriber", "account", "citizen"}
    | {"student", "staff"}
)


def kind_by_name(column: str) -> str | None:
    """What a column's name says, such as ``homePhone`` or ``date_of_birth``; None when it says nothing."""
    words = re.findall(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]*", column.rpartition(".")[2])
    words = [word.lower() for word in words]
    joined = {first + second for first, second in pairwise(words)}
    for word in [*joined, *words]:
        if word in _NAMES:
            return _NAMES[word]
    if words and words[-1] in ("id", "no", "number", "key") and (_PEOPLE & set(words) or words == ["id"]):
        return "identifier"
    if words == ["name"] or (words and words[-1] == "name" and _PEOPLE & set(words)):
        return "person's name"
    return None


def kind_by_values(values: Sequence[str], *, least_share: float) -> tuple[str, float] | None:
    """The kind of which the largest share of ``values`` is, and that share; None below ``least_share``.

    Uses the pattern recognisers of Presidio too where it is installed; they need no language model.
    """
    if not values:
        return None
    recognisers = dict(VALUE_RECOGNISERS)
    for kind, recognise in presidio_recognisers().items():
        own = recognisers.get(kind)
        recognisers[kind] = recognise if own is None else _either(own, recognise)
    shares = {kind: sum(map(recognise, values)) / len(values) for kind, recognise in recognisers.items()}
    kind = max(shares, key=lambda each: shares[each])
    return (kind, shares[kind]) if shares[kind] >= least_share else None


def presidio_recognisers() -> dict[str, Callable[[str], bool]]:
    """Presidio's own recognisers for whole values, by kind; empty where the package ``presidio-analyzer`` is not installed."""
    try:
        predefined = importlib.import_module("presidio_analyzer.predefined_recognizers")
    except ImportError:
        return {}
    wanted = {
        "e-mail address": ("EmailRecognizer",),
        "IBAN": ("IbanRecognizer",),
        "card number": ("CreditCardRecognizer",),
        "IP address": ("IpRecognizer",),
        "crypto wallet": ("CryptoRecognizer",),
        "national id": (
            *("UsSsnRecognizer", "UsItinRecognizer", "UsPassportRecognizer", "NhsRecognizer", "EsNifRecognizer"),
            *(
                "ItFiscalCodeRecognizer",
                "PlPeselRecognizer",
                "SgFinRecognizer",
                "AuTfnRecognizer",
                "InAadhaarRecognizer",
            ),
        ),
    }
    return {
        kind: _presidio(made)
        for kind, names in wanted.items()
        if (made := [getattr(predefined, name)() for name in names if hasattr(predefined, name)])
    }


def _presidio(recognisers: Sequence[object]) -> Callable[[str], bool]:
    def recognise(value: str) -> bool:
        for recogniser in recognisers:
            found = recogniser.analyze(value, recogniser.supported_entities)  # type: ignore[attr-defined]
            # The whole value, and more than a pattern that anything fits.
            if any(result.score >= 0.5 and result.end - result.start == len(value) for result in found or ()):
                return True
        return False

    return recognise


def _either(first: Callable[[str], bool], second: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda value: first(value) or second(value)
