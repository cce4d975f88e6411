# `make demo` and `make test` set everything up that they need; neither needs anything else to be run first.
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# What the JVMs of the tests begin with.
CLASSES := .cache/spark-classes.jsa

.PHONY: demo test check bench setup lock clean

setup: $(STAMP)
	@docker/setup/system.sh java

$(STAMP): requirements/all.txt pyproject.toml docker/setup/venv.sh
	@PYTHON=$(PYTHON) docker/setup/venv.sh $(VENV)

demo: setup
	@$(BIN)/python dags/clinic/demo.py

$(CLASSES): $(STAMP) tests/class_archive.py | setup
	@$(BIN)/python tests/class_archive.py $@

test: setup $(CLASSES)
	@docker/setup/system.sh postgresql
	@docker/setup/system.sh softhsm
	@$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: setup
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

# Needs uv; commit what it writes. all.txt is what tests run with; the others are its parts, version for version.
# Every package but PySpark must come as a wheel, so that installing compiles nothing.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --only-binary :all: --no-binary pyspark
PART := $(LOCK) --constraint requirements/all.txt

lock:
	$(LOCK) pyproject.toml --all-extras --group dev --upgrade -o requirements/all.txt
	$(PART) pyproject.toml --extra airflow --extra postgres -o requirements/airflow.txt
	$(PART) pyproject.toml --extra spark --extra privacy --extra tensorflow --extra postgres --extra storage -o requirements/spark.txt
	printf '%s\n' hatchling setuptools wheel | $(PART) - -o requirements/build.txt
	printf '%s\n' matplotlib pyarrow scikit-learn | $(PART) - -o requirements/demo.txt

clean:
	rm -rf $(VENV) .demo dist
