# Spark 4.3 on Java 17, TensorFlow and Lepton: Spark's masters, workers and drivers. Build it from the top of the repository:
#   docker build -f docker/spark.Dockerfile -t lepton-spark .
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY requirements/build.txt requirements/
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY spark_jobs spark_jobs
COPY lepton_airflow lepton_airflow
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# The folder for manual pages must be there for Java's package to configure itself.
RUN mkdir -p /usr/share/man/man1 \
 && apt-get update \
 && apt-get install --yes --no-install-recommends openjdk-17-jre-headless procps \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --shell /usr/sbin/nologin lepton \
 && install --directory --owner lepton --group lepton --mode 0700 /var/lib/lepton
# PySpark is the one package without a wheel; what builds it is locked too.
COPY requirements/build.txt requirements/spark.txt /opt/lepton/requirements/
RUN python3 -m venv /opt/spark-venv \
 && /opt/spark-venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
      -r /opt/lepton/requirements/build.txt \
 && /opt/spark-venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --no-build-isolation \
      --only-binary :all: --no-binary pyspark -r /opt/lepton/requirements/spark.txt
COPY --from=wheel /wheels /opt/lepton/wheels
RUN /opt/spark-venv/bin/python -m pip install --no-cache-dir --no-deps --no-index /opt/lepton/wheels/*.whl
COPY docker/spark /opt/lepton/spark
ENV PATH=/opt/spark-venv/bin:$PATH \
    PYSPARK_PYTHON=/opt/spark-venv/bin/python \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/lepton
ENTRYPOINT ["/opt/lepton/spark/entrypoint.sh"]
CMD ["spark-submit", "--version"]
