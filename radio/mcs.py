"""Modulation and coding schemes, and the SNR from which each one works.

The list is this project's own: rates chosen so that neighbours lie about 1 dB apart from -6 to 30 dB.
The thresholds are data, measured on AWGN by `python -m calibration.mcs_thresholds` with this modem's own
modulator, soft demodulator and decoder, and stored with their provenance.  Choosing an MCS for a grant
is the allocator's task, tracking the channel is the link's; both read this table.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from radio.modulation import Modulation

THRESHOLDS_FORMAT = "mcs-thresholds/1"
THRESHOLDS_FILE = "mcs_thresholds.json"

_RATES: dict[Modulation, tuple[float, ...]] = {
    Modulation.BPSK: (1 / 4, 1 / 3),
    Modulation.QPSK: (1 / 5, 1 / 4, 1 / 3, 2 / 5, 1 / 2, 3 / 5, 2 / 3, 3 / 4),
    Modulation.QAM16: (0.42, 1 / 2, 0.55, 3 / 5, 2 / 3, 3 / 4),
    Modulation.QAM64: (0.54, 3 / 5, 2 / 3, 3 / 4, 5 / 6),
    Modulation.QAM256: (2 / 3, 0.71, 3 / 4, 4 / 5, 5 / 6, 0.87),
    Modulation.QAM1024: (3 / 4, 4 / 5, 5 / 6, 8 / 9),
}


@dataclass(frozen=True)
class Mcs:
    """One modulation and coding scheme.

    Attributes
    ----------
    index
        Place in the table, from 0, in order of efficiency and of threshold.
    modulation
        The constellation.
    code_rate
        Payload with its check over coded bits.
    """

    index: int
    modulation: Modulation
    code_rate: float

    @property
    def spectral_efficiency(self) -> float:
        """Payload bits, check included, per resource element [bit/s/Hz]."""
        return int(self.modulation) * self.code_rate

    @property
    def name(self) -> str:
        """For people, such as `QAM16 0.50`."""
        return f"{self.modulation.name} {self.code_rate:.2f}"


SCHEMES: tuple[Mcs, ...] = tuple(
    Mcs(index, modulation, code_rate)
    for index, (modulation, code_rate) in enumerate(
        (modulation, code_rate) for modulation, rates in _RATES.items() for code_rate in rates
    )
)


@dataclass(frozen=True, eq=False)
class McsTable:
    """All schemes with their measured thresholds.

    Attributes
    ----------
    schemes
        In order of efficiency.
    block_resource_elements
        int64 [num_classes], ascending: block lengths at which thresholds were measured.
    threshold_10_percent_db, threshold_1_percent_db
        float64 [num_mcs, num_classes]: Es/N0 at 10 % and at 1 % block error rate [dB].
    provenance
        What measured the thresholds, and how.
    """

    schemes: tuple[Mcs, ...]
    block_resource_elements: NDArray[np.int64]
    threshold_10_percent_db: NDArray[np.float64]
    threshold_1_percent_db: NDArray[np.float64]
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.schemes)

    def __getitem__(self, index: int) -> Mcs:
        return self.schemes[index]


def parse_table(document: dict[str, Any]) -> McsTable:
    """Return the table in a thresholds document.

    Raises
    ------
    ValueError
        If the document has another format or was measured for other schemes.
    """
    found = document.get("format")
    if found != THRESHOLDS_FORMAT:
        raise ValueError(
            f"reading MCS thresholds: format is {found!r}, this version reads {THRESHOLDS_FORMAT!r}; "
            "measure again with python -m calibration.mcs_thresholds"
        )
    entries = document["mcs"]
    measured = [(entry["modulation"], round(entry["code_rate"], 6)) for entry in entries]
    if measured != [(mcs.modulation.name, round(mcs.code_rate, 6)) for mcs in SCHEMES]:
        raise ValueError(
            "reading MCS thresholds: they were measured for another list of schemes; measure again with "
            "python -m calibration.mcs_thresholds"
        )
    at_10_percent = np.array([entry["snr_db_at_bler_10_percent"] for entry in entries], dtype=np.float64)
    at_1_percent = np.array([entry["snr_db_at_bler_1_percent"] for entry in entries], dtype=np.float64)
    classes = np.array(document["block_resource_elements"], dtype=np.int64)
    for array in (at_10_percent, at_1_percent, classes):
        array.flags.writeable = False
    return McsTable(SCHEMES, classes, at_10_percent, at_1_percent, document["provenance"])


@functools.cache
def mcs_table() -> McsTable:
    """Return the packaged table, read once."""
    source = resources.files("radio").joinpath("data", THRESHOLDS_FILE)
    return parse_table(json.loads(source.read_text(encoding="utf-8")))


@functools.lru_cache(maxsize=256)
def thresholds_db(num_resource_elements: int, target_bler: float = 0.1) -> NDArray[np.float64]:
    """Return the Es/N0 that each scheme needs for a block length [dB].

    Between measured lengths the threshold is linear in the logarithm of the length; outside it is that
    of the nearest class.  Between 10 % and 1 %, and beyond, the block error rate is taken as a normal
    distribution function of the SNR in dB, which is how a fixed-length code behaves near its threshold.

    Parameters
    ----------
    num_resource_elements
        Data symbols of one transport block.
    target_bler
        Block error rate, 1e-4 to 0.5.

    Returns
    -------
    float64 [num_mcs]
        Ascending.  Read only.
    """
    if num_resource_elements < 1 or not 1e-4 <= target_bler <= 0.5:
        raise ValueError(
            f"looking up MCS thresholds: {num_resource_elements} resource elements at block error rate "
            f"{target_bler}; at least one element and a rate in 1e-4..0.5 are needed"
        )
    table = mcs_table()
    lengths = np.log(table.block_resource_elements)
    position = np.interp(np.log(num_resource_elements), lengths, np.arange(lengths.size))
    below = min(int(position), max(lengths.size - 2, 0))
    above = min(below + 1, lengths.size - 1)
    weight = position - below

    def at_length(threshold_db: NDArray[np.float64]) -> NDArray[np.float64]:
        return (1 - weight) * threshold_db[:, below] + weight * threshold_db[:, above]

    at_10_percent = at_length(table.threshold_10_percent_db)
    at_1_percent = at_length(table.threshold_1_percent_db)
    share = (_normal_quantile(target_bler) - _QUANTILE_10_PERCENT) / (
        _normal_quantile(0.01) - _QUANTILE_10_PERCENT
    )
    result = np.asarray(at_10_percent + share * (at_1_percent - at_10_percent))
    result.flags.writeable = False
    return result


def block_error_rate(
    mcs_index: ArrayLike, snr_db: ArrayLike, num_resource_elements: int
) -> NDArray[np.float64]:
    """Return the block error rate on AWGN that the measured thresholds imply.

    Parameters
    ----------
    mcs_index, snr_db
        Broadcast against each other; Es/N0 [dB].
    num_resource_elements
        Data symbols of one transport block.

    Returns
    -------
    float64 [...]
        The normal distribution function through the 10 % and the 1 % point.
    """
    index = np.asarray(mcs_index)
    at_10_percent = thresholds_db(num_resource_elements, 0.1)[index]
    at_1_percent = thresholds_db(num_resource_elements, 0.01)[index]
    slope = (_normal_quantile(0.01) - _QUANTILE_10_PERCENT) / (at_1_percent - at_10_percent)
    argument = _QUANTILE_10_PERCENT + slope * (np.asarray(snr_db, dtype=np.float64) - at_10_percent)
    return np.asarray(special.ndtr(argument), dtype=np.float64)


def highest_mcs(snr_db: ArrayLike, num_resource_elements: int, backoff_db: float = 0.0) -> NDArray[np.int64]:
    """Return the most efficient scheme whose 10 % threshold the SNR reaches.

    Parameters
    ----------
    snr_db
        Es/N0 [dB], any shape; not a number counts as too low.
    num_resource_elements
        Data symbols of one transport block.
    backoff_db
        Margin that is subtracted from the SNR first [dB].

    Returns
    -------
    int64 [...]
        Index into the table; -1 where even the lowest scheme needs more.
    """
    usable = np.asarray(snr_db, dtype=np.float64) - backoff_db
    usable = np.where(np.isnan(usable), -np.inf, usable)
    found = np.searchsorted(thresholds_db(num_resource_elements), usable, side="right") - 1
    return np.asarray(found, dtype=np.int64)


def _normal_quantile(probability: float) -> float:
    return float(special.ndtri(probability))


_QUANTILE_10_PERCENT = _normal_quantile(0.1)
