"""PostgreSQL roles: writers may add events and change none, the sealer may only place them, sign and archive.

The database's owner can still do anything; against it help the checkpoints in other places. The roles cannot log in: give
them to the users of jobs and of the sealer (``GRANT lepton_writer TO etl``).
"""

from __future__ import annotations

import sqlalchemy as sql

#: The execution option of an engine that names the two roles, writer first.
ROLES = "lepton_roles"

#: What each role may do; everything else is taken from it. ``(columns)`` narrows a right down to these columns.
_WRITER = {
    # Neither the position in the tree nor the id nor the transaction's number is a writer's to choose.
    "lepton_audit_leaf": "SELECT, INSERT (event_id, payload, leaf_hash)",
    "lepton_audit_checkpoint": "SELECT",
    "lepton_audit_node": "SELECT",
    "lepton_audit_archive": "SELECT",
    "lepton_run": "SELECT, INSERT, UPDATE",
    "lepton_budget": "SELECT, INSERT, UPDATE",
    "lepton_release": "SELECT, INSERT, UPDATE",
    "lepton_mechanism": "SELECT, INSERT, UPDATE, DELETE",
    "lepton_key_usage": "SELECT, INSERT, UPDATE",
    "lepton_model": "SELECT, INSERT, UPDATE",
    "lepton_stored_dataset": "SELECT, INSERT, UPDATE",
    # A model's history only grows.
    "lepton_model_change": "SELECT, INSERT",
    "lepton_schema_version": "SELECT",
}
_SEALER = {
    "lepton_audit_leaf": "SELECT, UPDATE (tree_index)",
    "lepton_audit_checkpoint": "SELECT, INSERT",
    "lepton_audit_node": "SELECT, INSERT",
    "lepton_audit_archive": "SELECT, INSERT",
    "lepton_schema_version": "SELECT",
}
#: Empties payloads, and only those that an archive's row covers: the sealer needs no right to change leaves otherwise.
_CLEAR = "lepton_audit_clear(bigint, bigint)"
_MAKE = """
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
    BEGIN
      CREATE ROLE {name} NOLOGIN;
    EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN NULL;
    END;
  END IF;
END $$
"""


def grant_roles(connection: sql.Connection) -> tuple[str, ...]:
    """Make the roles that the engine names, if the user may, and set their rights; part of every migration.

    :returns: the roles that are there and have their rights; one that could not be made has to be made by an administrator
    """
    writer, sealer = connection.get_execution_options().get(ROLES) or ("", "")
    if connection.dialect.name != "postgresql":
        return ()
    quote = connection.dialect.identifier_preparer.quote
    tables = set(sql.inspect(connection).get_table_names())
    there_is_clear = connection.scalar(sql.text("SELECT to_regprocedure(:name) IS NOT NULL"), {"name": _CLEAR})
    made = []
    for role, rights in ((writer, _WRITER), (sealer, _SEALER)):
        if not role:
            continue
        literal = "'" + role.replace("'", "''") + "'"
        connection.exec_driver_sql(_MAKE.format(literal=literal, name=quote(role)))
        there = connection.scalar(sql.text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": role})
        if not there:
            continue
        for table, allowed in rights.items():
            if table in tables:
                connection.exec_driver_sql(f"REVOKE ALL ON {quote(table)} FROM {quote(role)}")
                connection.exec_driver_sql(f"GRANT {allowed} ON {quote(table)} TO {quote(role)}")
        if there_is_clear:
            connection.exec_driver_sql(f"REVOKE ALL ON FUNCTION {_CLEAR} FROM {quote(role)}")
            if role == sealer:
                connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {_CLEAR} TO {quote(role)}")
        made.append(role)
    return tuple(made)
