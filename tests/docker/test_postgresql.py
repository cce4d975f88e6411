"""The compose file's PostgreSQL: a real server with the certificate, users and rules that it ships."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sql
from sqlalchemy.engine import make_url

from lepton_airflow.audit.database import connect, migrate
from lepton_airflow.settings import Settings

# One worker starts the server.
AUDIT, AIRFLOW = "LEPTON_DEMO_AUDIT_DATABASE", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def refusal(stack: Any, **changes: str) -> str:
    """Connect as the demo does, but for ``changes``; the text of the refusal."""
    url = make_url(stack.url(AUDIT))
    parameters = {"host": url.host, "dbname": url.database, "user": url.username, **url.query, **changes}
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(**parameters).close()
    return str(refused.value)


def test_the_audit_database_is_reached_over_verified_tls_without_a_password_in_the_environment(
    postgresql: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEPTON_AUDIT_DATABASE_PASSWORD", raising=False)
    settings = Settings(home=tmp_path, audit_database=postgresql.url(AUDIT))
    migrate(connect(settings, check_schema=False))
    engine = connect(settings)
    with engine.connect() as connection:
        row = connection.execute(sql.text("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).one()
    engine.dispose()
    assert tuple(row) == (True, "TLSv1.3")


def test_a_client_without_the_authority_refuses_the_server(postgresql: Any, tmp_path: Path) -> None:
    assert "root certificate file" in refusal(postgresql, sslrootcert=str(tmp_path / "none.crt"))


def test_a_client_of_another_authority_refuses_the_server(postgresql: Any, tmp_path: Path) -> None:
    script = postgresql.compose["services"]["secrets"]["entrypoint"][0]
    folders = [str(tmp_path / name) for name in ("postgres", "client", "spark")]
    owners = {"POSTGRES_OWNER": postgresql.user, "LEPTON_OWNER": str(os.getuid())}
    made = postgresql.run("secrets", [script, "postgres", *folders], variables=owners)
    assert made.returncode == 0, made.stderr
    text = refusal(postgresql, sslrootcert=str(tmp_path / "client" / "authority.crt"))
    assert "certificate verify failed" in text


def test_a_client_refuses_the_certificate_under_another_host_name(postgresql: Any) -> None:
    assert 'server certificate for "postgres" does not match host name' in refusal(postgresql, host="elsewhere")


def test_the_server_refuses_a_client_without_tls(postgresql: Any) -> None:
    assert "no encryption" in refusal(postgresql, sslmode="disable")


def test_the_server_refuses_a_wrong_password(postgresql: Any) -> None:
    assert "password authentication failed" in refusal(postgresql, password="guess")


@pytest.mark.parametrize(("user", "database"), [("lepton", "airflow"), ("airflow", "lepton"), ("postgres", "lepton")])
def test_a_user_has_no_way_into_another_database(postgresql: Any, user: str, database: str) -> None:
    assert "no pg_hba.conf entry" in refusal(postgresql, user=user, dbname=database)


@pytest.mark.slow
def test_airflow_reaches_its_metadata_database(postgresql: Any, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        AIRFLOW: postgresql.url(AIRFLOW),
        f"{AIRFLOW}_ASYNC": postgresql.url(f"{AIRFLOW}_ASYNC"),
    }
    program = Path(sys.executable).with_name("airflow")
    checked = subprocess.run([program, "db", "check"], env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_passwords_are_in_no_server_log(postgresql: Any) -> None:
    secrets = postgresql.folder / "mounts" / "postgres-secrets"
    log = (postgresql.folder / "server.log").read_text()
    for name in ("superuser", "lepton", "airflow"):
        assert (secrets / f"{name}.password").read_text().strip() not in log
