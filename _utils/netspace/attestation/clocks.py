"""Bounds on the difference between the clocks of hosts and of the master. Reads no clock."""

from __future__ import annotations

# Seconds by which a clock may have been set back before a result is "from the future".
SKEW = 300.0
