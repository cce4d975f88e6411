"""The compose file is valid, and everything that it names is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
SERVICES = ("secrets", "postgres", "spark-master", "spark-worker", "demo")
#: Images that this repository builds: name -> its Dockerfile.
BUILT = {"lepton-spark": "docker/spark.Dockerfile", "lepton-demo": "docker/airflow.Dockerfile"}
PULLED = {"postgres:15-bookworm"}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, compose: dict[str, Any]) -> dict[str, Any]:
    assert set(compose["services"]) == set(SERVICES)
    return compose["services"][request.param]


def test_it_keeps_to_the_schema_of_compose_files(compose: dict[str, Any]) -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text()))


def test_docker_itself_accepts_it() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip(
            "no Compose 2 plugin beside the client (Debian 12 has none); the schema test checks the file without it"
        )
    command = [docker, "compose", "-f", DOCKER / "compose.yaml", "config", "--quiet"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_an_image_is_built_here_or_comes_under_a_plain_name(service: dict[str, Any]) -> None:
    image = service["image"]
    assert image in BUILT or image in PULLED
    if "build" in service:
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == REPOSITORY
        assert build["dockerfile"] == BUILT[image]
        dockerfile = (REPOSITORY / build["dockerfile"]).read_text()
        assert "target" not in build or re.search(rf"^FROM \S+ AS {build['target']}$", dockerfile, re.MULTILINE)
    if image in BUILT:
        # Never from a registry, where somebody else may own the name.
        assert service["pull_policy"] in ("build", "never")


def test_a_context_from_another_service_is_what_the_dockerfile_starts_from(compose: dict[str, Any]) -> None:
    build = compose["services"]["demo"]["build"]
    for name, source in build["additional_contexts"].items():
        other = compose["services"][source.removeprefix("service:")]
        assert other["image"] == name
        assert f"FROM {name} " in (REPOSITORY / build["dockerfile"]).read_text()


def test_every_mount_is_there(service: dict[str, Any], compose: dict[str, Any]) -> None:
    for mount in service["volumes"]:
        source, target, *options = mount.split(":")
        if source.startswith("."):
            assert (DOCKER / source).is_file()
            assert options == ["ro"]
        else:
            assert source in compose["volumes"]
        assert target.startswith("/")


def test_every_volume_is_used(compose: dict[str, Any]) -> None:
    mounts = [mount for service in compose["services"].values() for mount in service["volumes"]]
    assert {mount.split(":")[0] for mount in mounts if not mount.startswith(".")} == set(compose["volumes"])


def test_a_service_waits_for_services_that_can_say_when_they_are_ready(
    service: dict[str, Any], compose: dict[str, Any]
) -> None:
    for name, wait in service.get("depends_on", {}).items():
        assert wait["condition"] != "service_healthy" or "healthcheck" in compose["services"][name]


def test_paths_in_commands_and_variables_lead_to_mounts(service: dict[str, Any]) -> None:
    words = [*service.get("command", []), *service.get("entrypoint", []), *service.get("environment", {}).values()]
    targets = [mount.split(":")[1] for mount in service["volumes"]]
    # Other paths are the images' own.
    places = re.compile(r"/(?:run/lepton|secrets|etc/lepton|var/lib/lepton)/[\w./-]*")
    paths = [path for word in words for path in places.findall(word)]
    for path in paths:
        assert any(path == target or path.startswith(f"{target}/") for target in targets), path


def test_no_variable_holds_a_secret(service: dict[str, Any]) -> None:
    for name, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET", name):
            assert value.startswith("/run/lepton/"), name
        assert not re.search(r"://[^/@]*:[^/@]*@", value), name


def test_databases_are_reached_over_verified_tls_only(compose: dict[str, Any]) -> None:
    urls = [value for value in compose["services"]["demo"]["environment"].values() if value.startswith("postgresql")]
    assert len(urls) == 3
    for url in urls:
        assert "@postgres/" in url
        assert "sslmode=verify-full&sslrootcert=/" in url


def test_a_secret_reaches_only_those_who_need_it(compose: dict[str, Any]) -> None:
    def holders(volume: str) -> set[str]:
        return {
            name
            for name, service in compose["services"].items()
            if any(mount.startswith(f"{volume}:") for mount in service["volumes"])
        }

    assert holders("postgres-secrets") == {"secrets", "postgres"}
    assert holders("client-secrets") == {"secrets", "demo"}
    assert holders("spark-secrets") == {"secrets", "spark-master", "spark-worker", "demo"}
    # Only the service that makes them can write them.
    for name, service in compose["services"].items():
        for mount in service["volumes"]:
            assert name == "secrets" or "-secrets:" not in mount or mount.endswith(":ro")


def test_nothing_is_root_but_the_maker_of_secrets_and_nothing_is_reachable_from_outside(
    service: dict[str, Any], compose: dict[str, Any]
) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "ports", "devices", "pid", "ipc"} & set(service)
    if service.get("user") == "0:0":
        assert service["network_mode"] == "none"
    else:
        assert service["image"] in BUILT or service["user"] == "postgres"
        assert "cap_add" not in service
    assert compose["networks"] == {"default": {"internal": True}}


def test_the_spark_processes_share_one_place_for_data_and_keys(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert "lepton:/var/lib/lepton" in services["demo"]["volumes"]
    assert "lepton:/var/lib/lepton" in services["spark-worker"]["volumes"]
    variables = services["demo"]["environment"]
    assert variables["LEPTON_DEMO_FOLDER"].startswith("/var/lib/lepton/")
    assert variables["LEPTON_DEMO_SPARK_MASTER"] == services["spark-worker"]["command"][-1]


def test_the_demo_knows_its_variables(compose: dict[str, Any]) -> None:
    source = (REPOSITORY / "dags" / "clinic" / "demo.py").read_text()
    variables = [name for name in compose["services"]["demo"]["environment"] if name.startswith("LEPTON_")]
    assert variables
    for name in variables:
        assert name in source
