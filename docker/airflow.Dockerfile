# Airflow and Lepton's operators in one environment, Spark in another: spark-submit and the drivers that it starts run in
# /opt/spark-venv, which comes with the image of docker/spark.Dockerfile. Build it from the top of the repository:
#   docker build -f docker/airflow.Dockerfile --target airflow -t lepton-airflow .
FROM lepton-spark AS airflow
USER 0
COPY requirements/airflow.txt /opt/lepton/requirements/
RUN /usr/local/bin/python3 -m venv /opt/airflow-venv \
 && /opt/airflow-venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
      -r /opt/lepton/requirements/airflow.txt \
 && /opt/airflow-venv/bin/python -m pip install --no-cache-dir --no-deps --no-index /opt/lepton/wheels/*.whl
# `python`, `airflow` and `lepton` are this environment's, `spark-submit` is Spark's, and so is PYSPARK_PYTHON.
ENV PATH=/opt/airflow-venv/bin:$PATH \
    AIRFLOW_HOME=/var/lib/lepton/airflow
USER 10001
CMD ["airflow", "version"]

# The example's DAG, and what its own landing task and report need besides Airflow.
FROM airflow AS demo
USER 0
COPY requirements/demo.txt /opt/lepton/requirements/
RUN /opt/airflow-venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
      -r /opt/lepton/requirements/demo.txt
COPY docker/demo /opt/lepton/demo
COPY dags /opt/lepton/dags
USER 10001
CMD ["/opt/lepton/demo/run.sh"]
