"""Release differentially private aggregates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lepton_airflow.operators.base import LeptonSparkOperator


class ReleaseAggregatesOperator(LeptonSparkOperator):
    """Release differentially private aggregates of a table against its shared privacy budget.

    .. code-block:: python

        ReleaseAggregatesOperator(
            task_id="release_visits",
            source={"name": "clinic.visits", "path": "/data/protected/visits"},
            privacy_unit="patient_id",
            group_by=["site"],
            groups=[["north"], ["south"]],
            metrics=[
                {"name": "visits", "type": "count"},
                {"name": "mean_charge", "type": "mean", "column": "charge", "lower": 0, "upper": 500},
            ],
            max_groups_per_unit=2,
            max_rows_per_unit_and_group=4,
            epsilon="1.0",
            target="/data/released/visits.json",
            purpose="public statistics",
            outlets=[Asset("clinic.visits_release")],
        )

    A retry or a cleared task returns the numbers that were drawn before and spends nothing.

    :param source: the table, protected or not: ``name`` and ``path`` (or ``table``), ``format``, ``options`` (templated)
    :param privacy_unit: the column that says whose row it is; it may stay deterministically encrypted
    :param metrics: each with ``name``, ``type`` (``count``, ``count_units``, ``sum``, ``mean``), and for the last two
        ``column``, ``lower`` and ``upper``; optional ``granularity`` and ``weight``
    :param max_groups_per_unit: in how many groups one unit can count (L0)
    :param max_rows_per_unit_and_group: with how many rows one unit can count in a group (Linf)
    :param epsilon: the privacy cost, as text to keep it exact (templated)
    :param target: the file of the release, JSON (templated)
    :param purpose: why; the policy grants actions for purposes (templated)
    :param group_by: the columns that make groups; without them there is one group
    :param groups: the public keys of the groups; only these are released, whether they occur or not
    :param budget: the dataset whose budget pays; default: the source's name
    :param mode: ``errorifexists`` (default) keeps a file that is there; ``overwrite`` replaces it
    :returns: ``cells``, ``epsilon_spent``, ``epsilon_left``, ``release`` (the file), ``replayed``
    """

    job: ClassVar[str] = "release_aggregates"
    spec_fields: ClassVar[tuple[str, ...]] = (
        "source",
        "privacy_unit",
        "metrics",
        "max_groups_per_unit",
        "max_rows_per_unit_and_group",
        "epsilon",
        "target",
        "purpose",
        "group_by",
        "groups",
        "budget",
        "mode",
    )
    template_fields = ("source", "epsilon", "target", "purpose")

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        privacy_unit: str,
        metrics: Sequence[Mapping[str, Any]],
        max_groups_per_unit: int,
        max_rows_per_unit_and_group: int,
        epsilon: str | float,
        target: str,
        purpose: str,
        group_by: Sequence[str] | None = None,
        groups: Sequence[Sequence[Any]] | None = None,
        budget: str | None = None,
        mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.privacy_unit = privacy_unit
        self.metrics = metrics
        self.max_groups_per_unit = max_groups_per_unit
        self.max_rows_per_unit_and_group = max_rows_per_unit_and_group
        self.epsilon = epsilon
        self.target = target
        self.purpose = purpose
        self.group_by = group_by
        self.groups = groups
        self.budget = budget
        self.mode = mode
