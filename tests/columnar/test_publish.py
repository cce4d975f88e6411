"""A published dataset is the whole old one or the whole new one, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lepton_airflow.columnar.publish import COMMIT_FILE, Publication, Written
from lepton_airflow.errors import TargetExists


@pytest.fixture(params=["rename(2)", "Hadoop FileContext"])
def publication(request: pytest.FixtureRequest, spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes publications of the same target; in both ways of renaming, the second as on HDFS."""
    if request.param != "rename(2)":
        monkeypatch.setattr(Publication, "_local", lambda self, path: None)

    def make(run: str = "dag/task/run/-1", spec: str = "sha256:1") -> Publication:
        return Publication(spark, str(tmp_path / "visits"), run_key=run, spec_digest=spec)

    return make


def writer(spark: Any, rows: int) -> Any:
    def write(folder: str) -> Written:
        spark.range(rows).write.parquet(folder)
        return Written(rows, {"road": "dataframe"})

    return write


def rows_at(spark: Any, path: Path) -> int:
    return int(spark.read.parquet(str(path)).count())


def test_a_dataset_appears_with_its_commit_record_and_no_leftovers(
    spark: Any, tmp_path: Path, publication: Any
) -> None:
    commit = publication().publish(writer(spark, 3), mode="errorifexists")
    assert commit.rows == rows_at(spark, tmp_path / "visits") == 3
    assert publication().committed() == commit
    assert commit.details == {"road": "dataframe"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["visits"]


def test_a_rerun_recognises_its_own_commit_and_no_other(spark: Any, publication: Any) -> None:
    publication().publish(writer(spark, 1), mode="errorifexists")
    commit = publication().committed()
    assert publication().is_mine(commit)
    assert not publication(run="dag/task/other/-1").is_mine(commit)
    assert not publication(spec="sha256:2").is_mine(commit)


def test_an_existing_target_is_refused_and_kept(spark: Any, tmp_path: Path, publication: Any) -> None:
    publication().publish(writer(spark, 3), mode="errorifexists")
    other = publication(run="another")
    with pytest.raises(TargetExists, match="visits"):
        other.check_target("errorifexists")
    with pytest.raises(TargetExists):
        other.publish(writer(spark, 5), mode="errorifexists")
    assert rows_at(spark, tmp_path / "visits") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["visits"]


def test_overwriting_replaces_the_whole_dataset(spark: Any, tmp_path: Path, publication: Any) -> None:
    publication().publish(writer(spark, 3), mode="errorifexists")
    publication(run="next").publish(writer(spark, 5), mode="overwrite")
    assert rows_at(spark, tmp_path / "visits") == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["visits"]


def test_a_failed_write_leaves_the_old_dataset(spark: Any, tmp_path: Path, publication: Any) -> None:
    publication().publish(writer(spark, 3), mode="errorifexists")

    def fail(folder: str) -> Written:
        spark.range(9).write.parquet(folder)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publication(run="next").publish(fail, mode="overwrite")
    assert rows_at(spark, tmp_path / "visits") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["visits"]


def test_a_crash_between_the_two_renames_loses_nothing(spark: Any, tmp_path: Path, publication: Any) -> None:
    publication().publish(writer(spark, 3), mode="errorifexists")
    # The state in which a driver that is killed between the renames leaves the folder.
    (tmp_path / "visits").rename(tmp_path / ".visits.previous")
    assert publication().committed().rows == 3
    assert rows_at(spark, tmp_path / "visits") == 3


def test_what_a_killed_try_left_is_cleared_by_its_rerun(spark: Any, tmp_path: Path, publication: Any) -> None:
    staging = Path(publication().staging.removeprefix("file:"))
    staging.mkdir()
    (staging / "part-0.parquet").write_bytes(b"half")
    publication().publish(writer(spark, 2), mode="errorifexists")
    assert rows_at(spark, tmp_path / "visits") == 2
    assert not staging.exists()


def test_the_commit_record_is_durable_before_the_old_dataset_is_deleted(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Publication(spark, str(tmp_path / "visits"), run_key="a", spec_digest="s").publish(
        writer(spark, 3), mode="errorifexists"
    )
    synced: set[str] = set()
    deleted: list[bool] = []
    real_fsync, real_delete = os.fsync, Publication._delete

    def fsync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def delete(self: Publication, path: str) -> None:
        if path.endswith(".visits.previous") and Path(path.removeprefix("file:")).exists():
            deleted.append(COMMIT_FILE in synced)
        real_delete(self, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Publication, "_delete", delete)
    Publication(spark, str(tmp_path / "visits"), run_key="b", spec_digest="s").publish(
        writer(spark, 5), mode="overwrite"
    )
    assert deleted == [True]
