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

    A retry or a cleared task returns the numbers that were drawn before and spends nothing. What the arguments mean in
    full is said in :class:`lepton_airflow.privacy.design.ReleaseDesign`.

    :param source: the table, protected or not: ``name`` and ``path`` (or ``table``), ``format``, ``options`` (templated)
    :param privacy_unit: the column that says whose row it is; it may stay deterministically encrypted
    :param metrics: each with ``name``, ``type`` (``count``, ``count_units``, ``sum``, ``mean``, ``variance``,
        ``standard_deviation``, ``quantiles``, ``histogram``), and but for the first two ``column``, ``lower`` and ``upper``
    :param max_groups_per_unit: in how many groups one unit can count (L0)
    :param max_rows_per_unit_and_group: with how many rows one unit can count in a group (Linf)
    :param epsilon: the privacy cost, as text to keep it exact (templated)
    :param delta: with Gaussian noise or private groups: the probability that epsilon does not hold (templated)
    :param noise: ``laplace`` (default) or ``gaussian``
    :param target: the file of the release, JSON (templated)
    :param plot: the file of a picture of it, ``.svg`` or ``.png`` (templated)
    :param purpose: why; the policy grants actions for purposes (templated)
    :param group_by: the columns that make groups; without them there is one group
    :param groups: the public keys of the groups, only these are released, whether they occur or not; or a public table of them
        (``name`` and ``path`` or ``table``); or ``private``
    :param groupings: several sets of columns and keys instead: each with ``by`` and ``keys``
    :param post_processing: ``nonnegative``, ``consistent``, ``decimals``
    :param backend: what samples the noise: ``opendp`` (default) or ``diffprivlib``
    :param mechanism: for the record, diffprivlib's name of it: ``Geometric`` or ``GaussianDiscrete``
    :param approval: ``required``: the numbers are drawn but not published until somebody other than the requester approves, see
        :class:`lepton_airflow.operators.publish.PublishReleaseOperator`
    :param budget: the dataset whose budget pays; default: the source's name
    :param mode: ``errorifexists`` (default) keeps a file that is there; ``overwrite`` replaces it
    :param road: how the table is read: ``auto`` (default), ``direct`` or ``dataframe``
    :returns: ``cells``, ``epsilon_spent``, ``epsilon_left``, ``release`` (the file), ``published``, ``replayed``
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
        "groupings",
        "delta",
        "noise",
        "post_processing",
        "backend",
        "mechanism",
        "approval",
        "plot",
        "budget",
        "mode",
        "road",
    )
    template_fields = ("source", "epsilon", "delta", "target", "plot", "purpose")

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
        groups: Sequence[Any] | Mapping[str, Any] | str | None = None,
        groupings: Sequence[Mapping[str, Any]] | None = None,
        delta: str | float | None = None,
        noise: str | None = None,
        post_processing: Mapping[str, Any] | None = None,
        backend: str | None = None,
        mechanism: str | None = None,
        approval: str | None = None,
        plot: str | None = None,
        budget: str | None = None,
        mode: str | None = None,
        road: str | None = None,
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
        self.groupings = groupings
        self.delta = delta
        self.noise = noise
        self.post_processing = post_processing
        self.backend = backend
        self.mechanism = mechanism
        self.approval = approval
        self.plot = plot
        self.budget = budget
        self.mode = mode
        self.road = road
