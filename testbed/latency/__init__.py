"""What a round takes, from parameters alone, before it is run.

:mod:`testbed.latency.formula` is the paper's sum of terms, which allocators minimise; its names are
found here.  :mod:`testbed.latency.twin` draws whole rounds by the rules of the protocol: slots,
acknowledgements, repetitions, random channels and compute times.

No modem, no board and no record is imported: a prediction that shared code with what it predicts
would validate nothing.
"""

from testbed.latency.formula import (
    PHASES,
    RELATIVE_TOLERANCE,
    CutTerms,
    assigned_latency,
    assigned_times,
    broadcast_rate,
    cut_terms,
    downlink_rates,
    evaluate,
    explain,
    per_client,
    spectral_efficiency,
    violations,
)

__all__ = [
    "PHASES",
    "RELATIVE_TOLERANCE",
    "CutTerms",
    "assigned_latency",
    "assigned_times",
    "broadcast_rate",
    "cut_terms",
    "downlink_rates",
    "evaluate",
    "explain",
    "per_client",
    "spectral_efficiency",
    "violations",
]
