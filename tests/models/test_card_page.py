"""The page of a model card: true to the card, loading nothing, and no way in for what a name may hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from lepton_airflow.models.card_page import card_page
from lepton_airflow.models.example_pictures import example_pictures
from lepton_airflow.models.examples import Examples
from lepton_airflow.models.input_space import image_space
from lepton_airflow.models.plan import ImageColumn
from lepton_airflow.models.threat_model import ThreatModel

HOSTILE = '<script>alert("x")</script><img src=https://evil.example/x onerror=alert(1)>'


def share(successes: int) -> dict[str, Any]:
    value = successes / 200
    return {
        "accuracy": value,
        "interval_95": [max(0.0, value - 0.05), min(1.0, value + 0.05)],
        "successes": successes,
        "n": 200,
        "units": 180,
    }


def card(name: str = "clinic.visits", **evaluation: Any) -> dict[str, Any]:
    difference = {"difference": -0.01, "interval_95": [-0.04, 0.02], "gained": 3, "lost": 5, "n": 200, "units": 180}
    return {
        "created": "2026-11-25T12:00:00+00:00",
        "run_key": f"dag/{name}/run/-1",
        "purpose": name,
        "data": {
            "dataset": name,
            "digest": "sha256:1",
            "rows": 700,
            "examples": 600,
            "units": 540,
            "example": "a distinct row",
            "features": ["radius", name],
            "label": "diagnosis",
            "classes": ["benign", name],
            "privacy_unit": "patient",
            "split": "by privacy unit",
            "train": {"examples": 400, "units": 360},
            "test": {"examples": 200, "units": 180},
        },
        "model": {"file": "model.keras", "sha256": "sha256:2", "bytes": 4096},
        "threat_model": {"norm": "linf", "epsilon": 0.5, "units": "standard deviations"},
        "training": {"method": "pgd", "hidden": [64], "warm_start": False},
        "hardening": {"ensemble": 1},
        "evaluation": {
            "interval": "Wilson score, 95%, over privacy units",
            "clean": share(190),
            "robust": {"epsilon": 0.5, **share(140)},
            "suite": [
                {"name": "clean", "kind": "none", "parameters": {}, **share(190)},
                {"name": "pgd", "kind": "white-box", "parameters": {"step_length": name, "steps": 40}, **share(150)},
                {"name": "square", "kind": "black-box", "parameters": {"queries": 1000}, **share(140)},
            ],
            "curve": {
                "standard": [{"epsilon": 0.0, **share(195)}, {"epsilon": 1.0, **share(2)}],
                "hardened": [{"epsilon": 0.0, **share(190)}, {"epsilon": 1.0, **share(60)}],
            },
            "violations": 0,
            "refusals": [],
            "comparison": {"clean": difference, "robust": difference, "interval": "paired"},
            **evaluation,
        },
        "gate": {
            "minimum_clean_accuracy": 0.9,
            "minimum_robust_accuracy": 0.6,
            "allowed_clean_loss": 0.02,
            "allowed_robust_loss": 0.05,
            "passed": True,
            "reasons": [],
        },
        "seeds": {"training": 5, "given": True},
        "limits": [f"limit {name}"],
        "versions": {"keras": "3"},
    }


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "circle", "polygon", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag, "tags must nest"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_the_card_says() -> None:
    page = Page(card_page(card()))
    assert page.open == []
    for expected in (
        "95.0%",
        "70.0%",
        "Passed",
        "misled by none of 2 attacks",
        "-1.0 points",
        "square",
        "queries 1000",
    ):
        assert expected in page.text
    assert "90.0% to 100.0%" in page.text, "the interval of the clean accuracy"
    refused = card()
    refused["gate"] |= {"passed": False, "reasons": ["zero-gradients: the loss has no gradient"]}
    text = Page(card_page(refused)).text
    assert "Refused" in text
    assert "zero-gradients: the loss has no gradient" in text
    assert "No sign of masked gradients" not in text


def test_the_curve_is_drawn_where_its_numbers_are() -> None:
    page = Page(card_page(card()))
    places = [
        (float(attributes["cx"] or 0), float(attributes["cy"] or 0)) for tag, attributes in page.tags if tag == "circle"
    ]
    (left, clean), (right, attacked) = places[2:]
    top, bottom = 18.0, 274.0
    assert clean == pytest.approx(bottom - 0.95 * (bottom - top), abs=0.1)
    assert attacked == pytest.approx(bottom - 0.30 * (bottom - top), abs=0.1)
    assert left < right


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = card_page(card(HOSTILE))
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "img", "form", "a"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert text.count(HOSTILE) == 0
    assert page.text.count(HOSTILE) >= 8, "escaped, and shown as it is"
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?!data:image/png)", re.sub(r"&lt;.*?&gt;", "", text))
    assert "url(" not in text
    assert "@import" not in text
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_a_first_model_has_no_champion_beside_it() -> None:
    assert "There was no champion to compare with." in Page(card_page(card(comparison=None))).text


@pytest.fixture
def pictured(blobs: Callable[..., Examples]) -> tuple[Any, Examples, Any]:
    """Ten images, the first four of which were brightened by epsilon until they misled."""
    from dataclasses import replace

    from lepton_airflow.models.attacks.suite import Stage, SuiteResult

    space = image_space(
        ImageColumn(column="x", shape=(4, 4, 1), high=16),
        threat_model=ThreatModel(norm="linf", epsilon=0.25, units="pixel range"),
    )
    draw = np.random.default_rng(1)
    examples = replace(blobs(10), features=draw.integers(0, 12, size=(10, 16)).astype(np.float32))
    order = np.arange(10)
    adversarial = examples.features + np.where(order[:, None] < 4, 4.0, 1.0).astype(np.float32)
    result = SuiteResult(
        epsilon=0.25,
        stages=(
            Stage(name="clean", kind="none", survivors=order < 9),
            Stage(name="pgd", kind="white-box", survivors=(order >= 4) & (order < 9)),
        ),
        adversarial=adversarial,
        violations=0,
    )
    return result, examples, space


def test_pictures_show_misled_and_withstanding_images_with_their_classes(
    pictured: tuple[Any, Examples, Any],
) -> None:
    result, examples, space = pictured
    answers = {row.tobytes(): label for row, label in zip(examples.features, examples.labels, strict=True)}
    for row, label, bright in zip(result.adversarial, examples.labels, range(10), strict=True):
        answers[row.tobytes()] = 1 - label if bright < 4 else label

    def predict(features: Any) -> Any:
        return np.eye(2, dtype=np.float32)[[answers[row.tobytes()] for row in features]]

    pictures = example_pictures(result, examples, space=space, predict=predict, classes=("no", "yes"), count=6)
    assert [picture.misled for picture in pictures] == [True] * 3 + [False] * 3
    assert all(picture.before == picture.label for picture in pictures)
    assert {picture.label for picture in pictures[:3]} == {"no", "yes"}
    assert [picture.size for picture in pictures] == pytest.approx([1.0] * 3 + [0.25] * 3)
    page = Page(card_page(card(), pictures=pictures))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 18
    assert all((image["src"] or "").startswith("data:image/png;base64,iVBOR") for image in images)
    assert "derived from records of the test data" in page.text


def test_a_picture_is_the_image(pictured: tuple[Any, Examples, Any]) -> None:
    import tensorflow as tf

    result, examples, space = pictured
    (picture,) = example_pictures(
        result,
        examples,
        space=space,
        predict=lambda features: np.eye(2, dtype=np.float32)[np.zeros(len(features), int)],
        classes=("no", "yes"),
        count=1,
    )
    shown = tf.io.decode_png(picture.original).numpy()
    assert shown.shape == (96, 96, 1)
    row = int(np.argmax((np.rint(examples.features * 255 / 16) == shown[::24, ::24, 0].reshape(1, 16)).all(axis=1)))
    assert np.array_equal(shown[::24, ::24, 0].ravel(), np.rint(examples.features[row] * 255 / 16))
    changed = tf.io.decode_png(picture.perturbation).numpy()
    assert changed.min() == 255, "everything was brightened as far as anything"
