"""The paper's formula as a prediction of a round, to be held against the twin's.

Sounding, slots, acknowledgements and control messages are not in the formula, and cost nothing here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from testbed.allocator.problem import FloatArray, Problem, RateModel
from testbed.latency.formula import (
    assigned_times,
    broadcast_rate,
    cut_terms,
    downlink_rates,
    evaluate,
)
from testbed.latency.names import ROUND_PHASES, STREAMS
from testbed.latency.twin import RoundPrediction


def predict_formula(
    problem: Problem, cut: int, assignment: ArrayLike, psd: ArrayLike, rate_model: RateModel
) -> RoundPrediction:
    """Return the formula's latency in the tiles of a round, as a single draw.

    The straggler of a direction is the client whose sum of computation and transmission is largest.

    Raises
    ------
    AllocationError
        For a decision that makes no sense.
    """
    latency_s, _ = evaluate(problem, cut, assignment, psd, rate_model)
    owners, densities = np.asarray(assignment, np.int64), np.asarray(psd, np.float64)
    down_bps = downlink_rates(problem, rate_model)
    terms = cut_terms(problem, cut, broadcast_rate(problem, down_bps))
    up_s, down_s = assigned_times(problem, terms, down_bps, owners, densities, rate_model)
    first, last = int(up_s.argmax()), int(down_s.argmax())
    uplink_s, unicast_s = up_s - terms.forward_s, down_s - terms.backward_s
    tiles = dict.fromkeys(ROUND_PHASES, 0.0) | {
        "client-forward": float(terms.forward_s[first]),
        "uplink": float(uplink_s[first]),
        "server-forward": terms.server_forward_s,
        "server-backward": terms.server_backward_s,
        "broadcast": terms.broadcast_s,
        "unicast": float(unicast_s[last]),
        "client-backward": float(terms.backward_s[last]),
    }
    radiated = dict.fromkeys(STREAMS, 0.0) | {
        "uplink": float(uplink_s.sum()),
        "broadcast": terms.broadcast_s,
        "unicast": float(unicast_s.sum()),
    }

    def once(value: float) -> FloatArray:
        return np.array([value])

    return RoundPrediction(
        model="paper",
        latency_s=once(latency_s),
        phases_s={name: once(value) for name, value in tiles.items()},
        airtime_s={name: once(value) for name, value in radiated.items()},
        uplink_s=uplink_s[None, :],
        unicast_s=np.where(terms.unicast_bits > 0, unicast_s, np.nan)[None, :],
        uplink_straggler=np.array([first]),
        downlink_straggler=np.array([last]),
        missed=np.array([False]),
    )
