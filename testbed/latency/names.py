"""Names of what a round's latency and airtime consist of, shared by prediction and measurement."""

from __future__ import annotations

# Tiles of a round, in order; they add up to its latency.
ROUND_PHASES = (
    "control",
    "sounding",
    "client-forward",
    "uplink",
    "server-forward",
    "server-backward",
    "broadcast",
    "unicast",
    "client-backward",
)

# What is radiated in a round; a cut move's own stream is "cut-move".
STREAMS = ("sounding", "uplink", "broadcast", "unicast")
