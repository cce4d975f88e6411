"""Airflow operators: each submits one Lepton job, or runs one in the worker."""
