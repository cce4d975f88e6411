"""On PostgreSQL a seal takes every row of the transactions that ended, in their order, and none but those since the last seal."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sql

from lepton_airflow.audit import unsealed
from lepton_airflow.audit.canonical import canonical_json
from lepton_airflow.audit.checkpoint import Signer
from lepton_airflow.audit.database import checkpoint_table, leaf_table, node_table
from lepton_airflow.audit.merkle import leaf_hash
from lepton_airflow.audit.sealer import seal
from lepton_airflow.audit.verify import verify

CHECKPOINT = checkpoint_table.c


def execute(engine: sql.Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(sql.text(statement))


def horizon(engine: sql.Engine) -> int:
    with engine.connect() as connection:
        stored = connection.scalar(sql.select(CHECKPOINT.horizon).order_by(CHECKPOINT.tree_size.desc()))
    assert stored is not None
    return int(stored)


def copied(engine: sql.Engine) -> None:
    """Write the checkpoints anew as they are: what a restore does."""
    execute(
        engine,
        "CREATE TABLE copy AS SELECT * FROM lepton_audit_checkpoint; DELETE FROM lepton_audit_checkpoint;"
        " INSERT INTO lepton_audit_checkpoint SELECT * FROM copy; DROP TABLE copy",
    )


def order(engine: sql.Engine) -> list[int]:
    """The ids of the sealed rows in the order of the tree."""
    index = leaf_table.c.tree_index
    with engine.connect() as connection:
        return list(connection.scalars(sql.select(leaf_table.c.id).where(index.is_not(None)).order_by(index)))


def found(engine: sql.Engine, signer: Signer) -> list[tuple[str, str]]:
    return [(one.kind, one.position) for one in verify(engine, verifier=signer.verifier, exports=[]).findings]


def assert_stranded(engine: sql.Engine, signer: Signer, *, row: int) -> None:
    ((kind, position),) = found(engine, signer)
    assert (kind, position.split(" (")[0]) == ("stranded", f"unsealed row {row}")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsealed, "_CHUNK", 4)


def test_rows_are_taken_in_chunks_to_the_last(engine: sql.Engine, signer: Signer, write: Any) -> None:
    for count in (7, 8, 2, 30):
        write(engine, count - 1)
        seal(engine, signer=signer, exports=[])
    assert order(engine) == [*range(1, 48)]
    assert found(engine, signer) == []


def test_rows_are_taken_in_the_order_of_their_transactions(
    postgresql_engine: sql.Engine, signer: Signer, write: Any
) -> None:
    write(postgresql_engine, 29)
    # Two rows for each transaction, with numbers of one, two and three digits; the highest of them last.
    execute(postgresql_engine, "UPDATE lepton_audit_leaf SET xid = CAST(CAST((31 - id) / 2 * 9 + 3 AS text) AS xid8)")
    seal(postgresql_engine, signer=signer, exports=[])
    assert order(postgresql_engine) == sorted(range(1, 31), key=lambda row: ((31 - row) // 2, row))


def test_the_next_seal_begins_at_the_horizon_of_the_last(
    postgresql_engine: sql.Engine, signer: Signer, write: Any
) -> None:
    write(postgresql_engine, 5)
    seal(postgresql_engine, signer=signer, exports=[])
    before = horizon(postgresql_engine)
    write(postgresql_engine, 0)
    write(postgresql_engine, 2)
    execute(postgresql_engine, f"UPDATE lepton_audit_leaf SET xid = '{before - 1}' WHERE id = 8")
    # Nothing but a change by hand makes such a row. That it stays shows where the seal began; verification tells.
    assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 10
    assert order(postgresql_engine) == [*range(1, 8), *range(9, 12)]
    assert before < horizon(postgresql_engine)
    assert_stranded(postgresql_engine, signer, row=8)


def test_a_row_of_a_transaction_that_is_yet_to_come_is_found(
    postgresql_engine: sql.Engine, signer: Signer, write: Any
) -> None:
    write(postgresql_engine, 5)
    seal(postgresql_engine, signer=signer, exports=[])
    write(postgresql_engine, 0)
    execute(postgresql_engine, "UPDATE lepton_audit_leaf SET xid = '1000000000' WHERE id = 8")
    assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 7
    assert_stranded(postgresql_engine, signer, row=8)


def test_a_log_that_was_restored_from_another_server_is_sealed_to_the_last_row(
    postgresql_engine: sql.Engine, signer: Signer, write: Any
) -> None:
    write(postgresql_engine, 5)
    seal(postgresql_engine, signer=signer, exports=[])
    write(postgresql_engine, 5)
    # The other server's transactions had higher numbers than there are here yet; rows that are written here have lower ones.
    execute(postgresql_engine, "UPDATE lepton_audit_checkpoint SET horizon = '900000000', xid = '900000007'")
    execute(
        postgresql_engine, "UPDATE lepton_audit_leaf SET xid = CAST(CAST(900000000 + id AS text) AS xid8) WHERE id > 6"
    )
    write(postgresql_engine, 2)
    assert found(postgresql_engine, signer) == []
    assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 15
    assert order(postgresql_engine) == [*range(1, 16)]
    write(postgresql_engine, 2)
    assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 18
    assert found(postgresql_engine, signer) == []


def test_a_horizon_that_was_restored_means_nothing_here(
    postgresql_engine: sql.Engine, signer: Signer, write: Any
) -> None:
    """Its number may be lower than the present ones, and higher than those of rows that were written meanwhile elsewhere."""
    write(postgresql_engine, 5)
    seal(postgresql_engine, signer=signer, exports=[])
    write(postgresql_engine, 2)
    execute(postgresql_engine, "UPDATE lepton_audit_leaf SET xid = '5' WHERE tree_index IS NULL")
    copied(postgresql_engine)
    assert found(postgresql_engine, signer) == []
    assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 9


@pytest.mark.parametrize("maintenance", ["VACUUM FREEZE", "VACUUM FULL", "ANALYZE"])
def test_maintenance_of_the_server_leaves_the_horizon_as_it_is(
    postgresql_engine: sql.Engine, signer: Signer, write: Any, maintenance: str
) -> None:
    write(postgresql_engine, 5)
    seal(postgresql_engine, signer=signer, exports=[])
    with postgresql_engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"{maintenance} lepton_audit_checkpoint")
    with postgresql_engine.connect() as connection:
        horizons = unsealed.Horizons.read(connection)
    assert horizons is not None
    assert horizons.last == horizon(postgresql_engine) <= horizons.now


@pytest.mark.parametrize("text", ["900000000000", "9" * 5000, "-1", "not a number", "\u0661", ""])
def test_a_horizon_that_cannot_be_one_is_not_believed(
    postgresql_engine: sql.Engine, signer: Signer, write: Any, text: str
) -> None:
    write(postgresql_engine, 5)
    # An edit in the transaction that wrote the row: it looks like the sealer's own.
    with postgresql_engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN NEW.horizon := '{text}'; RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER spoil BEFORE INSERT ON lepton_audit_checkpoint FOR EACH ROW EXECUTE FUNCTION spoil()"
        )
    seal(postgresql_engine, signer=signer, exports=[])
    write(postgresql_engine, 2)
    assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 9
    assert found(postgresql_engine, signer) == []


def test_a_transaction_with_savepoints_loses_nothing(postgresql_engine: sql.Engine, signer: Signer, write: Any) -> None:
    payload = canonical_json({"late": True})
    with postgresql_engine.begin() as connection:
        for name in ("kept", "undone"):
            savepoint = connection.begin_nested()
            row = {"event_id": name, "payload": payload.decode(), "leaf_hash": leaf_hash(payload)}
            connection.execute(leaf_table.insert().values(row))
            if name == "undone":
                savepoint.rollback()
        write(postgresql_engine, 2)
        assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 0
    assert seal(postgresql_engine, signer=signer, exports=[]).tree_size == 4
    assert order(postgresql_engine)[0] == 1


def test_a_subtree_that_is_there_already_keeps_nobody_from_sealing(
    engine: sql.Engine, signer: Signer, write: Any
) -> None:
    with engine.begin() as connection:
        connection.execute(node_table.insert().values(level=8, position=0, hash=bytes(32)))
    write(engine, 300)
    assert seal(engine, signer=signer, exports=[]).tree_size == 301
    assert found(engine, signer) == []
