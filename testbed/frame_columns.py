"""The columns of a run's tables: name, unit and data type of each.

Units are those of the names; ``"1"`` marks numbers without a unit, ``"-"`` names and words.
"""

from __future__ import annotations

from collections.abc import Mapping

# Column: (unit, data type).
Columns = Mapping[str, tuple[str, str]]
TEXT = ("-", "str")
ANY = ("-", "object")
COUNT = ("1", "int64")
MAYBE_COUNT = ("1", "Int64")
NUMBER = ("1", "float64")
SECONDS = ("s", "float64")
FLAG = ("1", "bool")

_COMPARED: Columns = {
    "measured_s": SECONDS,
    "predicted_s": SECONDS,
    "low_s": SECONDS,
    "high_s": SECONDS,
    "persistence_s": SECONDS,
}
ROUNDS: Columns = {
    "round": COUNT,
    "start_s": SECONDS,
    "at_s": SECONDS,
    "latency_s": SECONDS,
    "cut_move_s": SECONDS,
    "join_s": SECONDS,
    "total_s": SECONDS,
    "predicted_s": SECONDS,
    "low_s": SECONDS,
    "high_s": SECONDS,
    "persistence_s": SECONDS,
    "formula_latency_s": SECONDS,
    "lower_bound_s": SECONDS,
    "gap": NUMBER,
    "loss": ("nat", "float64"),
    "cut_layer": COUNT,
    "num_clients": COUNT,
    "clients": ANY,
    "policy": TEXT,
    "method": TEXT,
    "model": TEXT,
    "subchannels_moved": MAYBE_COUNT,
    "total_power_dbm": ("dBm", "float64"),
    "words": ANY,
}
PHASES: Columns = {"round": COUNT, "phase": TEXT, **_COMPARED}
AIRTIME: Columns = {"round": COUNT, "stream": TEXT, **_COMPARED}
SPANS: Columns = {
    "round": COUNT,
    "node": TEXT,
    "resource": TEXT,
    "phase": TEXT,
    "start_s": SECONDS,
    "end_s": SECONDS,
    "duration_s": SECONDS,
    "attributes": ANY,
}
TRANSMISSIONS: Columns = {
    "round": COUNT,
    "at_s": SECONDS,
    "node": TEXT,
    "stream": TEXT,
    "transmitter": TEXT,
    "receivers": ANY,
    "subchannels": ANY,
    "mcs_index": ANY,
    "payload_bytes": ("byte", "int64"),
    "blocks_sent": COUNT,
    "blocks_failed": COUNT,
    "blocks_retransmitted": COUNT,
    "frames": COUNT,
    "airtime_s": SECONDS,
    "goodput_bps": ("bit/s", "float64"),
    "complete": FLAG,
}
RECEPTIONS: Columns = {
    "round": COUNT,
    "at_s": SECONDS,
    "node": TEXT,
    "stream": TEXT,
    "transmitter": TEXT,
    "receiver": TEXT,
    "received_bytes": ("byte", "int64"),
    "blocks_ok": COUNT,
    "blocks_failed": COUNT,
    "blocks_refused": COUNT,
    "blocks_combined": COUNT,
    "mean_snr_db": ("dB", "float64"),
    "subchannel_snr_db": ("dB", "object"),
    "evm": NUMBER,
    "complete_s": SECONDS,
    "failure": TEXT,
}
LINKS: Columns = {
    "round": COUNT,
    "at_s": SECONDS,
    "transmitter": TEXT,
    "receiver": TEXT,
    "subchannel": COUNT,
    "channel_gain_db": ("dB", "float64"),
    "noise_dbm_per_hz": ("dBm/Hz", "float64"),
    "snr_per_psd_db": ("dB Hz/W", "float64"),
    "cfo_hz": ("Hz", "float64"),
    "delay_samples": ("sample", "float64"),
    "detected": FLAG,
}
PLANS: Columns = {
    "round": COUNT,
    "subchannel": COUNT,
    "client": TEXT,
    "psd_dbm_per_hz": ("dBm/Hz", "float64"),
    "cut_layer": COUNT,
}
DECISIONS: Columns = {
    "round": COUNT,
    "cut_layer": COUNT,
    "uplink_client": TEXT,
    "uplink_slack_s": SECONDS,
    "downlink_client": TEXT,
    "downlink_slack_s": SECONDS,
    "phase": TEXT,
    "power": TEXT,
    "runner_up_cut": MAYBE_COUNT,
    "runner_up_latency_s": SECONDS,
    "runner_up_is_bound": FLAG,
    "why": TEXT,
    "notes": ANY,
}
CANDIDATES: Columns = {"round": COUNT, "name": TEXT, "cut_layer": COUNT, "predicted_s": SECONDS}
LOSSES: Columns = {"round": COUNT, "at_s": SECONDS, "client": TEXT, "loss": ("nat", "float64")}
EVALUATIONS: Columns = {
    "round": COUNT,
    "at_s": SECONDS,
    "split": TEXT,
    "accuracy": NUMBER,
    "worst_client_accuracy": NUMBER,
    "loss": ("nat", "float64"),
    "num_samples": COUNT,
}
CLIENT_EVALUATIONS: Columns = {
    "round": COUNT,
    "at_s": SECONDS,
    "split": TEXT,
    "client": TEXT,
    "accuracy": NUMBER,
}
ESTIMATES: Columns = {
    "round": COUNT,
    "at_s": SECONDS,
    "transmitter": TEXT,
    "receiver": TEXT,
    "subchannel": COUNT,
    "snr_per_psd_db": ("dB Hz/W", "float64"),
    "deviation_db": ("dB", "float64"),
    "age_rounds": ("round", "float64"),
    "outer_loop_db": ("dB", "float64"),
    "bias_db": ("dB", "float64"),
    "bler": NUMBER,
}
RADIO_EVENTS: Columns = {
    "round": COUNT,
    "at_s": SECONDS,
    "node": TEXT,
    "radio_event": TEXT,
    "count": COUNT,
    "detail": TEXT,
}
CUT_MOVES: Columns = {
    "round": COUNT,
    "start_s": SECONDS,
    "at_s": SECONDS,
    "latency_s": SECONDS,
    "from_cut": COUNT,
    "to_cut": COUNT,
    "loss_before": ("nat", "float64"),
    "loss_after": ("nat", "float64"),
}
TRUTH: Columns = {
    "round": COUNT,
    "board": TEXT,
    "attenuation_db": ("dB", "float64"),
    "slowdown": NUMBER,
    "present": FLAG,
    "redrawn": FLAG,
}
REMARKS: Columns = {"round": COUNT, "at_s": SECONDS, "node": TEXT, "kind": TEXT, "words": TEXT}
