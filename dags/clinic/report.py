"""The demo's result: a summary for the terminal and one self-contained HTML page with two plots."""

from __future__ import annotations

import html
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_airflow.settings import load_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lepton_airflow.audit.verify import VerificationReport

INK, MUTED = "#1d2433", "#6b7385"
BLUE, ORANGE = "#2563a8", "#c2571a"


@dataclass(frozen=True)
class Results:
    """What the pipeline left behind.

    :param protected: the commit record of the protected table
    :param release: the release document
    :param card: the model card
    :param budget: epsilon in all, spent and left, as text
    """

    protected: dict[str, Any]
    release: dict[str, Any]
    card: dict[str, Any]
    budget: tuple[str, str, str]
    audit: VerificationReport

    @classmethod
    def read(cls, home: Path, data: Path) -> Results:
        from lepton_airflow.audit.checkpoint import Verifier
        from lepton_airflow.audit.database import connect
        from lepton_airflow.audit.verify import verify
        from lepton_airflow.privacy.amount import amount_text
        from lepton_airflow.privacy.ledger import Ledger

        settings = load_settings(home)
        engine = connect(settings)
        balance = Ledger(engine).balance(dataset="clinic.visits", unit="patient_id")
        audit = verify(
            engine, verifier=Verifier.load(settings.checkpoint_verifier), exports=settings.checkpoint_exports
        )
        engine.dispose()
        return cls(
            protected=json.loads((data / "protected/visits/_lepton_commit.json").read_text()),
            release=json.loads((data / "released/visits.json").read_text()),
            card=json.loads((data / "models/diagnosis/model_card.json").read_text()),
            budget=(
                amount_text(balance.epsilon),
                amount_text(balance.epsilon - balance.left),
                amount_text(balance.left),
            ),
            audit=audit,
        )

    def summary(self) -> list[tuple[str, str]]:
        """The figures that matter, as name and text."""
        evaluation, gate = self.card["evaluation"], self.card["gate"]
        clean, robust = evaluation["clean"], evaluation["robust"]
        total, spent, left = self.budget
        standard = next(p for p in evaluation["curve"]["standard"] if p["epsilon"] == robust["epsilon"])
        return [
            ("rows protected", f"{self.protected['rows']:,}"),
            ("epsilon spent", f"{spent} of {total} per patient (add/remove), {left} left"),
            ("clean accuracy", _share(clean)),
            (
                f"robust accuracy, all attacks, L-inf {robust['epsilon']} sd",
                f"{_share(robust)}; without hardening, by PGD alone, {standard['accuracy']:.3f}",
            ),
            ("gate", "passed" if gate["passed"] else "refused"),
            ("audit", f"{'verified' if self.audit.ok else 'DOES NOT VERIFY'}, {self.audit.tree_size} sealed events"),
            ("audit root", self.audit.root),
        ]


def write_report(results: Results, file: Path) -> None:
    """Write the page; everything it shows is inside it."""
    rows = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in results.summary())
    release, card = results.release, results.card
    bounds = release["groupings"][0]["bounds"]
    limits = "".join(f"<li>{html.escape(limit)}</li>" for limit in card["limits"])
    file.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The clinic's pipeline</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {INK}; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
table {{ border-collapse: collapse; }} th {{ text-align: left; font-weight: 500; color: {MUTED}; }}
th, td {{ padding: .25rem 1.2rem .25rem 0; vertical-align: top; overflow-wrap: anywhere; }}
svg {{ max-width: 100%; height: auto; }} p, li {{ max-width: 46rem; }} .note {{ color: {MUTED}; }}
</style></head><body>
<h1>The clinic's pipeline</h1>
<p class="note">The measurements and diagnoses are the real Wisconsin diagnostic breast cancer records that scikit-learn ships.
Patient ids, names, e-mail addresses, phone and insurance numbers, sites and visits are invented from a fixed seed.</p>
<table>{rows}</table>
<h2>What was released</h2>
<p>Differentially private numbers, epsilon {html.escape(release["epsilon"])} per patient in all
({html.escape(release["neighbours"])}); a patient counts in at most {bounds["max_groups_per_unit"]} group
with at most {bounds["max_rows_per_unit_and_group"]} visits. The bars are 95% confidence intervals of the
noise; what the bounds
left out is not in them.</p>
{_svg(_released(release))}
<h2>What was learned</h2>
<p>Both models were attacked with projected gradient descent at every radius, on
{card["evaluation"]["clean"]["n"]} test
patients whom neither had seen. The radius is in standard deviations of each feature. The dotted line
marks the threat model of the
gate.</p>
{_svg(_robustness(card))}
<h2>What this does not say</h2>
<ul>{limits}</ul>
</body></html>
"""
    )


def _share(result: dict[str, Any]) -> str:
    low, high = result["interval_95"]
    return f"{result['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f}, n = {result['n']})"


def _axes(columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(MUTED)
        axis.tick_params(colors=INK, length=3)
    return figure, axes


def _released(release: dict[str, Any]) -> Figure:
    """One panel a metric, one row a group."""
    names = [metric["name"] for metric in release["metrics"]]
    cells = release["groupings"][0]["cells"]
    figure, axes = _axes(len(names), 9.5, 0.5 + 0.42 * len(cells), sharey=True)
    labels = [", ".join(str(value) for value in cell["group"].values()) for cell in cells]
    positions = list(range(len(labels), 0, -1))
    for axis, name in zip(axes, names, strict=True):
        for position, cell in zip(positions, cells, strict=True):
            value, (low, high) = cell["values"][name]["value"], cell["values"][name]["interval"]
            axis.plot([low, high], [position, position], color=BLUE, linewidth=2, alpha=0.45, solid_capstyle="round")
            axis.plot([value], [position], "o", color=BLUE, markersize=5)
        axis.set_title(name.replace("_", " "), fontsize=11, loc="left", color=INK)
        axis.grid(axis="x", color="#e3e6ec", linewidth=0.8)
        axis.set_axisbelow(True)
    axes[0].set_yticks(positions, labels)
    return figure


def _robustness(card: dict[str, Any]) -> Figure:
    figure, (axis,) = _axes(1, 9.5, 4.2)
    for name, colour, marker in (("standard", ORANGE, "s"), ("hardened", BLUE, "o")):
        points = sorted(card["evaluation"]["curve"][name], key=lambda point: point["epsilon"])
        radii = [point["epsilon"] for point in points]
        lows, highs = zip(*(point["interval_95"] for point in points), strict=True)
        axis.fill_between(radii, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axis.plot(radii, [p["accuracy"] for p in points], color=colour, marker=marker, label=f"{name} training")
    axis.axvline(card["threat_model"]["epsilon"], color=MUTED, linestyle=":", linewidth=1.2)
    axis.set_xlabel("attack radius, L-infinity, standard deviations")
    axis.set_ylabel("accuracy under attack")
    axis.set_ylim(0, 1.02)
    axis.grid(color="#e3e6ec", linewidth=0.8)
    axis.legend(frameon=False, loc="upper right")
    return figure


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # From the element on: the XML declaration has no place inside a page.
    return text.getvalue()[text.getvalue().index("<svg") :]
