"""The Dockerfiles take only what is in the repository and in the locks, and run as nobody special."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from lepton_airflow.jobs.session import JAVA_VERSIONS

REPOSITORY = Path(__file__).parents[2]
DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))


@dataclass(frozen=True)
class Image:
    path: Path
    instructions: list[tuple[str, str]]

    def arguments(self, instruction: str) -> list[str]:
        return [argument for name, argument in self.instructions if name == instruction]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def image(request: pytest.FixtureRequest) -> Image:
    text = re.sub(r"^\s*#.*\n", "", request.param.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return Image(request.param, [tuple(line.split(None, 1)) for line in lines if line])


def is_in_context(path: str) -> bool:
    """What `.dockerignore` lets through: it names the top-level files and folders one by one."""
    rules = (REPOSITORY / ".dockerignore").read_text().split("\n")
    assert "*" in rules
    return f"!{path.split('/')[0]}" in rules


def test_there_is_an_image_for_each_environment() -> None:
    assert [path.name for path in DOCKERFILES] == ["airflow.Dockerfile", "spark.Dockerfile"]


def test_what_is_copied_is_in_the_repository_and_in_the_context(image: Image) -> None:
    stages = {argument.split(" AS ")[1] for argument in image.arguments("FROM") if " AS " in argument}
    for argument in image.arguments("COPY"):
        *sources, _ = argument.split()
        if sources[0].startswith("--from="):
            assert sources[0].removeprefix("--from=") in stages
            continue
        for source in sources:
            assert (REPOSITORY / source).exists(), source
            assert is_in_context(source), source


def test_the_context_holds_no_environment_key_or_demo() -> None:
    for path in (".git", ".venv", ".demo", "dist", "tests", "lepton.yaml"):
        assert not is_in_context(path)


def test_base_images_have_plain_names_and_a_supported_python(image: Image) -> None:
    for argument in image.arguments("FROM"):
        assert argument.split()[0] in ("python:3.11-slim-bookworm", "lepton-spark", "airflow")


def test_everything_installed_is_locked(image: Image) -> None:
    installs = [part for run in image.arguments("RUN") for part in run.split("&&") if "pip install" in part]
    assert installs
    for install in installs:
        assert "--no-deps" in install
        if "--no-index" in install:
            # Our own wheel, made in the image.
            assert "/opt/lepton/wheels/" in install
            continue
        assert "--require-hashes" in install
        assert "--only-binary :all:" in install
        lock = re.search(r"-r \S*requirements/(\S+)", install)
        assert lock
        assert (REPOSITORY / "requirements" / lock[1]).exists()


def test_java_is_one_that_spark_runs_on() -> None:
    text = (REPOSITORY / "docker" / "spark.Dockerfile").read_text()
    assert [int(version) for version in re.findall(r"openjdk-(\d+)-jre-headless", text)] == [JAVA_VERSIONS[0]]


def test_every_image_ends_as_a_user_without_rights(image: Image) -> None:
    user = ""
    finals = []
    for name, argument in [*image.instructions, ("FROM", "")]:
        if name == "FROM":
            finals.append(user)
        elif name == "USER":
            user = argument
    # The first is what there was before the first stage; the stage that builds the wheel is thrown away.
    assert set(finals[1:]) - {""} == {"10001"}
    assert finals[-1] == "10001"


def test_airflow_and_spark_are_two_environments() -> None:
    spark = (REPOSITORY / "docker" / "spark.Dockerfile").read_text()
    airflow = (REPOSITORY / "docker" / "airflow.Dockerfile").read_text()
    assert "PYSPARK_PYTHON=/opt/spark-venv/bin/python" in spark
    # Airflow's environment comes before Spark's on the PATH, which the image of Spark has set.
    assert "PATH=/opt/spark-venv/bin:$PATH" in spark
    assert "PATH=/opt/airflow-venv/bin:$PATH" in airflow
    assert "airflow.txt" not in spark
    assert "spark.txt" not in airflow


def test_scripts_that_images_start_are_in_them(image: Image) -> None:
    copies = {
        target: source
        for argument in image.arguments("COPY")
        if not argument.startswith("--from")
        for *sources, target in [argument.split()]
        for source in sources[:1]
    }
    for argument in [*image.arguments("ENTRYPOINT"), *image.arguments("CMD")]:
        path = re.match(r'\["(/[^"]+)"', argument)
        if path:
            folder, _, name = path[1].rpartition("/")
            assert (REPOSITORY / copies[folder] / name).is_file()


def test_no_image_or_script_names_a_registry() -> None:
    files = [*DOCKERFILES, *(REPOSITORY / "docker").rglob("*.sh"), REPOSITORY / "docker" / "compose.yaml"]
    for file in files:
        text = file.read_text()
        assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", text), file.name
