"""The tamper-evident audit log, and the database that it shares with the privacy ledger."""
