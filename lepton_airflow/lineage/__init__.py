"""Where protected data came from and went: OpenLineage events, and the graph that the audit log itself tells."""
