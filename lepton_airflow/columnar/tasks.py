"""Row groups shared out to Spark tasks: few, of nearly equal size, each a run of neighbours, so that rows keep their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_airflow.columnar.dataset import RowGroup

#: Uncompressed bytes that one task is given at most, as far as row groups allow: a try that fails is soon repeated.
LARGEST_TASK = 512 << 20
#: Below this a further task costs more than it saves.
SMALLEST_TASK = 4 << 20


@dataclass(frozen=True)
class Task:
    """Row groups for one Spark task and one output file.

    :ivar number: of the task, from 0
    :ivar pieces: files and the row groups of each, in the order of the table
    """

    number: int
    pieces: tuple[tuple[str, tuple[int, ...]], ...]


def plan_tasks(groups: Sequence[RowGroup], *, parallelism: int) -> list[Task]:
    """Share out row groups.

    :param parallelism: tasks that run at once; their number is a multiple of it unless there is too little to do
    :returns: tasks whose sizes differ by about one row group at most
    """
    total = sum(group.size for group in groups)
    rounds = -(-total // (LARGEST_TASK * parallelism))
    wanted = min(max(rounds, 1) * parallelism, max(total // SMALLEST_TASK, 1), len(groups))
    shares: dict[int, list[RowGroup]] = {}
    before = 0
    for group in groups:
        middle = before + group.size / 2
        shares.setdefault(min(int(middle * wanted / total), wanted - 1) if total else 0, []).append(group)
        before += group.size
    return [Task(number, _pieces(share)) for number, share in enumerate(shares.values())]


def _pieces(groups: Sequence[RowGroup]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    by_file: dict[str, list[int]] = {}
    for group in groups:
        by_file.setdefault(group.uri, []).append(group.index)
    return tuple((uri, tuple(indexes)) for uri, indexes in by_file.items())
