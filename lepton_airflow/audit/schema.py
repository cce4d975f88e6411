"""The schema of the audit log's leaves, which each of them names; see :mod:`lepton_airflow.audit.event`."""

SCHEMA = "lepton.audit.event/1"
#: The action of a producer's last event, whose phase is "close".
PRODUCER = "producer"
