from __future__ import annotations

import itertools
import json

from lepton_airflow.encryption.associated_data import associated_data


def test_it_is_the_documented_canonical_json():
    assert associated_data("clinic.patients", "email", "string") == (
        b'{"column":"email","dataset":"clinic.patients","format":"lepton.associated-data/1","type":"string"}'
    )
    assert associated_data("clinic.patients", "patient_id", "bigint", "patient") == (
        b'{"domain":"patient","format":"lepton.associated-data/1","type":"bigint"}'
    )


def test_no_two_places_have_the_same():
    names = ["a", "b", "a.b", 'a","column":"b', "é", "e\u0301", ""]
    places = list(itertools.product(names, names, names, [None, *names]))
    made = {
        associated_data(dataset, column, logical_type, domain): (
            (domain, logical_type) if domain is not None else (dataset, column, logical_type)
        )
        for dataset, column, logical_type, domain in places
    }
    assert len(made) == len(set(made.values())) == len(names) ** 3 + len(names) ** 2


def test_columns_of_a_domain_share_it_whatever_their_table():
    assert associated_data("a", "x", "string", "patient") == associated_data("b", "y", "string", "patient")
    assert json.loads(associated_data("a", "x", "string", "patient"))["domain"] == "patient"
