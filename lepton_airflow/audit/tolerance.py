"""By how much times may go back before verification warns, and lie in the future."""

from __future__ import annotations

from datetime import timedelta

#: Within one producer, which has one clock.
PRODUCER_TOLERANCE = timedelta(seconds=1)
#: Between machines, whose clocks differ, and events that wait for their commit.
LOG_TOLERANCE = timedelta(minutes=10)
