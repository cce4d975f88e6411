"""Values are recognised by pattern and check digits, columns by their names; look-alikes are not."""

from __future__ import annotations

import random

import pytest

from lepton_airflow.cli.recognisers import VALUE_RECOGNISERS, kind_by_name, kind_by_values, presidio_recognisers

# Published examples, none of a real person.
EXAMPLES = {
    "e-mail address": ["ada@example.org", "a.b+c@sub.example.co.uk"],
    "IBAN": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000"],
    "card number": ["4111 1111 1111 1111", "5500005555555559", "378282246310005"],
    "IP address": ["192.0.2.1", "2001:db8::1"],
    "identifier": ["123e4567-e89b-12d3-a456-426614174000"],
    "phone number": ["+49 30 901820", "(030) 901820", "0049-30-901820"],
    "national id": [
        "078-05-1120",  # US social security number
        "AB123456C",  # UK national insurance number
        "943 476 5919",  # UK NHS number
        "86095742719",  # German tax id
        "255081416802538",  # French NIR
        "12345678Z",  # Spanish DNI
        "X1234567L",  # Spanish NIE
        "RSSMRA85T10A562S",  # Italian codice fiscale
        "111222333",  # Dutch BSN
        "44051401359",  # Polish PESEL
    ],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in EXAMPLES.items() for value in values])
def test_a_published_example_is_recognised(kind, value):
    assert VALUE_RECOGNISERS[kind](value)


@pytest.mark.parametrize("kind", ["IBAN", "card number", "national id"])
def test_one_digit_changed_breaks_the_check(kind):
    for value in EXAMPLES[kind]:
        if value in ("078-05-1120", "AB123456C"):
            continue  # these have no check digit
        place = next(place for place in range(len(value) - 2, 0, -1) if value[place].isdigit())
        changed = value[:place] + str((int(value[place]) + 1) % 10) + value[place + 1 :]
        assert not VALUE_RECOGNISERS[kind](changed), changed


@pytest.mark.parametrize(
    "value", ["", "12", "hello", "2024-01-31", "3.14", "a@b", "@example.org", "12345", "0", "999.1.1.1", "None", "²³"]
)
def test_ordinary_values_are_nothing(value):
    assert [kind for kind, recognise in VALUE_RECOGNISERS.items() if recognise(value)] == []


def test_columns_of_random_numbers_are_nothing_though_some_pass_a_check():
    draw = random.Random(7)
    for digits in (5, 9, 10, 11, 13, 16):
        values = [str(draw.randrange(10 ** (digits - 1), 10**digits)) for _ in range(2000)]
        assert kind_by_values(values, least_share=0.5) is None


def test_the_share_counts_and_not_the_single_value():
    values = ["ada@example.org"] * 60 + ["unknown"] * 40
    assert kind_by_values(values, least_share=0.5) == ("e-mail address", 0.6)
    assert kind_by_values(values, least_share=0.7) is None
    assert kind_by_values([], least_share=0.5) is None


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("email", "e-mail address"),
        ("contact.homePhone", "phone number"),
        ("DATE_OF_BIRTH", "date of birth"),
        ("patient_id", "identifier"),
        ("userId", "identifier"),
        ("id", "identifier"),
        ("first_name", "person's name"),
        ("customer_name", "person's name"),
        ("name", "person's name"),
        ("IBAN", "IBAN"),
        ("clientIP", "IP address"),
        ("notes", "free text"),
        ("product_id", None),
        ("hospital_name", None),
        ("radius_mean", None),
        ("skip", None),
        ("description", "free text"),
        ("charge", None),
        ("", None),
    ],
)
def test_names_say_what_they_say(column, kind):
    assert kind_by_name(column) == kind


def test_presidios_recognisers_are_used_where_it_is_installed():
    pytest.importorskip(
        "presidio_analyzer",
        reason="optional, and not in the lock: it holds spaCy and an older mpmath than the rest resolves to",
    )
    theirs = presidio_recognisers()
    assert {"e-mail address", "IBAN", "card number", "national id", "crypto wallet"} <= set(theirs)
    for kind in ("e-mail address", "IBAN", "card number"):
        assert theirs[kind](EXAMPLES[kind][1]), kind
        assert not theirs[kind]("hello")
    wallet = "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"
    assert kind_by_values([wallet] * 3, least_share=0.5) == ("crypto wallet", 1.0)
