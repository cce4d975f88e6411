"""Row groups are shared out evenly, in order, and to few tasks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.columnar.dataset import RowGroup
from lepton_airflow.columnar.tasks import LARGEST_TASK, SMALLEST_TASK, plan_tasks

MIB = 1 << 20


def groups(*sizes: int, files: int = 1) -> list[RowGroup]:
    per_file = -(-len(sizes) // files)
    return [RowGroup(f"file:///{n // per_file}", n % per_file, 10, size) for n, size in enumerate(sizes)]


def order(tasks: list) -> list[tuple[str, int]]:  # type: ignore[type-arg]
    return [(uri, index) for task in tasks for uri, indexes in task.pieces for index in indexes]


@given(st.lists(st.integers(1, 300 * MIB), min_size=1, max_size=60), st.integers(1, 5), st.integers(1, 16))
def test_every_row_group_is_in_exactly_one_task_in_the_order_of_the_table(
    sizes: list[int], files: int, parallelism: int
) -> None:
    planned = groups(*sizes, files=files)
    tasks = plan_tasks(planned, parallelism=parallelism)
    assert order(tasks) == [(group.uri, group.index) for group in planned]
    assert [task.number for task in tasks] == list(range(len(tasks)))


@given(st.lists(st.integers(1, 300 * MIB), min_size=1, max_size=60), st.integers(1, 16))
def test_tasks_are_balanced_up_to_a_row_group(sizes: list[int], parallelism: int) -> None:
    tasks = plan_tasks(groups(*sizes), parallelism=parallelism)
    loads = [sum(sizes[index] for _, indexes in task.pieces for index in indexes) for task in tasks]
    assert max(loads) <= sum(sizes) / len(tasks) + max(sizes) * 2


@pytest.mark.parametrize(
    ("sizes", "parallelism", "count"),
    [
        ([128 * MIB] * 8, 2, 2),
        ([128 * MIB] * 8, 4, 4),
        ([128 * MIB] * 32, 2, 8),
        ([100] * 50, 8, 1),
        ([SMALLEST_TASK] * 3, 8, 3),
        ([LARGEST_TASK * 3], 2, 1),
        ([], 2, 0),
    ],
)
def test_their_number_follows_size_cores_and_row_groups(sizes: list[int], parallelism: int, count: int) -> None:
    assert len(plan_tasks(groups(*sizes), parallelism=parallelism)) == count
