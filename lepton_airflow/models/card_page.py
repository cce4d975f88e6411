"""The model card as one HTML page that loads nothing: no script, no font, no picture from elsewhere.

Everything on it is read from the card, except pictures of attacked images, which are given beside it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lepton_airflow.models.curve_plot import draw_curve
from lepton_airflow.models.example_pictures import ExamplePicture

#: What the parts of a page may load: their own styles and pictures inside the page, and nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root{color-scheme:light;--ink:#1c2733;--soft:#5b6b7b;--rule:#d9e0e7;--good:#1b6e3c;--bad:#b3261e;--paper:#fff;--wash:#f5f7f9}
*{box-sizing:border-box}
body{margin:0;background:var(--wash);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 3rem}
h1{font-size:1.6rem;margin:0 0 .2rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:0 0 .8rem}
.sub{color:var(--soft);margin:0 0 1.4rem;overflow-wrap:anywhere}
section{background:var(--paper);border:1px solid var(--rule);border-radius:8px;padding:1.1rem 1.25rem;margin:0 0 1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:1rem;margin:0 0 1rem}
.cards section{margin:0}
.figure{font-size:2rem;font-weight:650;line-height:1.15;font-variant-numeric:tabular-nums}
.note{color:var(--soft);font-size:.85rem;margin:.3rem 0 0}
.good{color:var(--good)}.bad{color:var(--bad)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
.wide+.wide{margin-top:1rem}
th,td{text-align:left;padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:600}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{overflow-x:auto}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
ul{margin:.2rem 0;padding-left:1.2rem}
.curve{width:100%;height:auto;font:12px system-ui,sans-serif}
.curve .rule{stroke:var(--rule)}.curve .axis{stroke:var(--soft)}
.curve .chance{stroke:var(--soft);stroke-dasharray:4 4}
.curve .whisker{stroke:var(--bad);stroke-width:1.6}
.curve text{fill:var(--ink)}.curve .tick{fill:var(--soft)}
.curve .middle{text-anchor:middle}.curve .end{text-anchor:end}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:1rem}
figure{margin:0}
figure img{width:31%;image-rendering:pixelated;border:1px solid var(--rule);border-radius:4px;margin-right:1.5%}
figcaption{font-size:.85rem;color:var(--soft)}
""".strip()


def card_page(card: Mapping[str, Any], *, pictures: Sequence[ExamplePicture] = ()) -> str:
    """The page of a card.

    :param card: see :func:`~lepton_airflow.models.card.model_card`
    :param pictures: attacked images, if the spec asks for them
    """
    data, evaluation = card["data"], card["evaluation"]
    title = f"Model of {data['label']}, from {data['dataset']}"
    body = (
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{_origin(card)}</p>',
        _headline(card),
        _section("Accuracy against epsilon", _curve(card)),
        _section("Attacks", _suite(evaluation)),
        _section("Gate", _gate(card)),
        *([_section("Integer model", _int8(card["int8"]))] if "int8" in card else []),
        *(
            [_section("Differential privacy", _table(_flat(card["differential_privacy"])))]
            if "differential_privacy" in card
            else []
        ),
        *([_section("Attacked images", _pictures(pictures))] if pictures else []),
        _section("Threat model", _table(_flat(card["threat_model"]))),
        _section("Data", _table(_data_rows(data))),
        _section("Training", _table([*_flat(card["training"]), *_flat({"hardening": card["hardening"]})])),
        _section("Limits", _list(card["limits"])),
        _section(
            "To find this model again",
            _table(_flat({"model": card["model"], "seeds": card["seeds"], "versions": card["versions"]})),
        ),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _origin(card: Mapping[str, Any]) -> str:
    created, purpose, run_key = (escape(card[name]) for name in ("created", "purpose", "run_key"))
    return f"Made {created} for the purpose “{purpose}”, run <code>{run_key}</code>"


def _headline(card: Mapping[str, Any]) -> str:
    evaluation, gate = card["evaluation"], card["gate"]
    robust = evaluation["robust"]
    verdict, kind = ("Passed", "good") if gate["passed"] else ("Refused", "bad")
    boxes = (
        (_percent(evaluation["clean"]["accuracy"]), "", "Clean accuracy", _between(evaluation["clean"])),
        (
            _percent(robust["accuracy"]),
            "",
            f"Robust accuracy at epsilon {robust['epsilon']:g}",
            f"{_between(robust)}: correct and misled by none of {len(evaluation['suite']) - 1} attacks",
        ),
        (verdict, kind, "Gate", f"on {robust['n']} test examples of {robust['units']} units"),
    )
    return (
        '<div class="cards">'
        + "".join(
            f'<section><h2>{escape(name)}</h2><div class="figure {kind}">{escape(figure)}</div>'
            f'<p class="note">{escape(note)}</p></section>'
            for figure, kind, name, note in boxes
        )
        + "</div>"
    )


def _curve(card: Mapping[str, Any]) -> str:
    evaluation = card["evaluation"]
    drawing = draw_curve(
        evaluation["curve"],
        robust=evaluation["robust"],
        chance=1 / len(card["data"]["classes"]),
        units=card["threat_model"]["units"],
    )
    return (
        drawing
        + '<p class="note">Lines are PGD alone at each radius, bands their 95% intervals. The diamond is what the whole suite '
        "left at the threat model’s epsilon; it is the number that counts. Chance is a guess among the classes.</p>"
    )


def _int8(section: Mapping[str, Any]) -> str:
    figures = _flat({name: section[name] for name in ("file", "bytes", "sha256")})
    return _table(figures) + _suite(section)


def _suite(evaluation: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(stage["name"]),
            escape(stage["kind"]),
            escape(
                ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in stage["parameters"].items())
            ),
            str(stage["successes"]),
            _percent(stage["accuracy"]),
            _range(stage),
        )
        for stage in evaluation["suite"]
    ]
    table = _grid(("Attack", "Sees", "Parameters", "Left", "Accuracy", "95% interval"), rows, numbers=3)
    return table + (
        '<p class="note">Each attack is given what survived those before it; an example counts as robust only if it survives '
        f"all. {escape(evaluation['interval'])}. {evaluation['violations']} attacked examples left the ball or the "
        "constraints.</p>"
    )


def _gate(card: Mapping[str, Any]) -> str:
    gate, evaluation = card["gate"], card["evaluation"]
    parts = [
        _grid(
            ("Asked", "Measured", "At least"),
            [
                ("clean accuracy", _percent(evaluation["clean"]["accuracy"]), _percent(gate["minimum_clean_accuracy"])),
                (
                    "robust accuracy",
                    _percent(evaluation["robust"]["accuracy"]),
                    _percent(gate["minimum_robust_accuracy"]),
                ),
            ],
            numbers=2,
        )
    ]
    comparison = evaluation["comparison"]
    if comparison:
        parts.append(
            _grid(
                ("Against the champion", "Gained", "Lost", "Difference", "95% interval", "Allowed loss"),
                [
                    (
                        f"{name} accuracy",
                        str(comparison[name]["gained"]),
                        str(comparison[name]["lost"]),
                        f"{100 * comparison[name]['difference']:+.1f} points",
                        "{:+.1f} to {:+.1f}".format(*(100 * end for end in comparison[name]["interval_95"])),
                        f"{100 * gate[f'allowed_{name}_loss']:.1f} points",
                    )
                    for name in ("clean", "robust")
                ],
                numbers=5,
            )
            + f'<p class="note">On the same examples. {escape(comparison["interval"])}.</p>'
        )
    else:
        parts.append('<p class="note">There was no champion to compare with.</p>')
    if gate["reasons"]:
        parts.append('<p class="bad">Refused because:</p>' + _list(gate["reasons"]))
    elif not evaluation["refusals"]:
        parts.append('<p class="note">No sign of masked gradients was found.</p>')
    return "".join(parts)


def _pictures(pictures: Sequence[ExamplePicture]) -> str:
    figures = []
    for picture in pictures:
        outcome = (
            f'<span class="bad">misled: taken for {escape(picture.after)}</span>'
            if picture.misled
            else '<span class="good">withstood every attack</span>'
        )
        figures.append(
            "<figure>"
            + _image(picture.original, f"{picture.label}, as it is")
            + _image(picture.perturbation, "what the attack added")
            + _image(picture.adversarial, f"attacked, taken for {picture.after}")
            + f"<figcaption>{escape(picture.label)}, taken for {escape(picture.before)} before the attack; {outcome}. "
            f"Largest change of a pixel: {picture.size:.2g} epsilon.</figcaption></figure>"
        )
    return (
        f'<div class="grid">{"".join(figures)}</div>'
        '<p class="note">Original, perturbation (grey is no change, black and white the largest one) and attacked image. They '
        "are derived from records of the test data: whoever reads this page sees them.</p>"
    )


def _image(content: bytes, text: str) -> str:
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    features = data["features"]
    return [
        ("dataset", data["dataset"]),
        ("digest", data["digest"]),
        ("rows, examples, units", f"{data['rows']}, {data['examples']}, {data['units']}"),
        ("an example is", data["example"]),
        ("label", f"{data['label']}: {', '.join(map(str, data['classes']))}"),
        ("privacy unit", data["privacy_unit"]),
        ("split", data["split"]),
        ("training", f"{data['train']['examples']} examples of {data['train']['units']} units"),
        ("test", f"{data['test']['examples']} examples of {data['test']['units']} units"),
        (f"{len(features)} features", ", ".join(features)),
    ]


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(
            f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(value)}</code></td></tr>' for name, value in rows
        )
        + "</table>"
    )


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int) -> str:
    """A table whose last ``numbers`` columns are numbers; cells are HTML already."""
    first = len(heads) - numbers

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if place >= first else ''}>{value}</{tag}>" for place, value in enumerate(values)
        )

    head = cells("th", [escape(name) for name in heads])
    return (
        f'<div class="wide"><table><tr>{head}</tr>'
        + "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
        + "</table></div>"
    )


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _flat(fields: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested fields as rows, named by their path."""
    rows: list[tuple[str, str]] = []
    for name, value in fields.items():
        path = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{path}: ")
        else:
            rows.append((path, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _between(share: Mapping[str, Any]) -> str:
    return f"95% interval {_range(share)}"


def _range(share: Mapping[str, Any]) -> str:
    low, high = share["interval_95"]
    return f"{100 * low:.1f}% to {100 * high:.1f}%"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
