"""The schema of the audit log's leaves, which each of them names; see :mod:`lepton_airflow.audit.event`."""

SCHEMA = "lepton.audit.event/2"
#: Of leaves that were written before: their event ids are UUIDs of version 5, and a producer's first event is like any other.
#: They are read, one by one, and written no more.
FIRST_SCHEMA = "lepton.audit.event/1"
SCHEMAS = (FIRST_SCHEMA, SCHEMA)
#: The action of a producer's first event, whose phase is "open", and of its last, whose phase is "close".
PRODUCER = "producer"
