"""How many values each AES-GCM key has encrypted, and the limit above which it encrypts no more.

Nonces of 96 bits are drawn at random, so two values under one key share a nonce with a probability that grows with the
square of their number; shared nonces give away both values and the authentication key. NIST SP 800-38D, section 8.3, keeps
that below 2^-32 by at most 2^32 values for each key. AES-SIV has no nonce and FF1 no such limit: neither is counted.

A job reserves its values durably *before* it encrypts the first of them. A reservation is never given back: a job that
dies in the middle, or runs again, counts more than it used and never less. What Spark may do more than once, such as a
task that is tried again, the job reserves as often.

The counts are in the audit database. Two deployments that share a keyset but not that database each count their own
values only, and who exported a keyset counts nothing here: give such parties keysets of their own.
"""

from __future__ import annotations

import sqlalchemy as sql

from lepton_airflow.errors import InvalidData, KeyExhausted

#: Values under one key, at most (SP 800-38D, section 8.3).
VALUES_PER_KEY = 2**32
#: From here on a rotation is proposed.
ROTATE_AT = VALUES_PER_KEY // 2

#: Not in the audit's ``metadata``: keys and audit are two parts of one layer, and neither imports the other.
usage_table = sql.Table(
    "lepton_key_usage",
    sql.MetaData(),
    sql.Column("keyset", sql.Text, primary_key=True),
    sql.Column("key_id", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("reserved", sql.BigInteger, nullable=False),
    sql.CheckConstraint(f"reserved BETWEEN 0 AND {VALUES_PER_KEY}", name="lepton_key_usage_limit"),
)


def reserve_usage(engine: sql.Engine, keyset: str, key_id: int, values: int) -> str | None:
    """Add ``values`` to what the key may have encrypted, before any of them is; durable when it returns.

    Reservations of several processes at once add up; one that would pass the limit changes nothing.

    :param engine: the audit database
    :param key_id: of an AES-GCM key; the one that will encrypt
    :param values: how many are to be encrypted, at most: rows times columns, times how often a task may be tried
    :returns: a sentence that proposes to rotate, from half of the limit on; else None
    :raises KeyExhausted: the key would encrypt more than 2^32 values
    :raises InvalidData: a negative number of values
    :raises AuditUnavailable: the database cannot be reached
    """
    from sqlalchemy.dialects import postgresql, sqlite

    place = f"keyset {keyset!r}, key {key_id}"
    if values < 0:
        raise InvalidData("A number of values is not negative.", place=place, remedy="Count rows times columns.")
    if values > VALUES_PER_KEY:
        raise _exhausted(place, keyset, values)
    # Both dialects have the same ON CONFLICT clause, under two names. One statement: no two processes can both pass.
    dialect = postgresql if engine.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(usage_table).values(keyset=keyset, key_id=key_id, reserved=values)
    total = usage_table.c.reserved + insert.excluded.reserved
    upsert = insert.on_conflict_do_update(
        index_elements=[usage_table.c.keyset, usage_table.c.key_id],
        set_={"reserved": total},
        where=total <= VALUES_PER_KEY,
    )
    with engine.begin() as connection:
        reserved = connection.execute(upsert.returning(usage_table.c.reserved)).scalar_one_or_none()
    if reserved is None:
        raise _exhausted(place, keyset, values)
    if reserved < ROTATE_AT:
        return None
    return (
        f"{place}: {reserved:,} of at most {VALUES_PER_KEY:,} values are encrypted under this key. "
        f"Run `lepton keys rotate {keyset}` soon."
    )


def usage(engine: sql.Engine, keyset: str) -> dict[int, int]:
    """How many values each key of ``keyset`` has encrypted at most, by key id; a key that never did is left out.

    :raises AuditUnavailable: the database cannot be reached
    """
    statement = sql.select(usage_table.c.key_id, usage_table.c.reserved).where(usage_table.c.keyset == keyset)
    with engine.begin() as connection:
        return {row.key_id: row.reserved for row in connection.execute(statement)}


def _exhausted(place: str, keyset: str, values: int) -> KeyExhausted:
    return KeyExhausted(
        f"With {values:,} values more the key would have encrypted more than the {VALUES_PER_KEY:,} that are safe "
        "with random nonces.",
        place=place,
        remedy=f"Run `lepton keys rotate {keyset}` and try again; what is encrypted already stays readable.",
    )
