"""Alembic's entry: runs the migrations on the connection that `lepton_airflow.audit.database.migrate` opened."""

from alembic import context

from lepton_airflow.audit.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
