"""The privacy boundary for Airflow and Spark pipelines."""

__version__ = "0.1.0"
