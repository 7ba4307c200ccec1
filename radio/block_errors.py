"""Block error rate of the decoder behind the modem's own receiver, by MCS and effective SNR.

:func:`radio.mcs.block_error_rate` is the decoder's on AWGN with a known channel.  Behind an estimator the
curves lie a few hundredths of a dB off what :class:`radio.effective_snr.BlockQuality` says; these offsets
are data, measured through modulator, air and demodulator by `python -m calibration.block_errors`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from radio.mcs import SCHEMES, thresholds_db

BLOCK_ERRORS_FORMAT = "block-errors/1"
BLOCK_ERRORS_FILE = "block_errors.json"


@dataclass(frozen=True, eq=False)
class BlockErrors:
    """Where each scheme's curve lies against the thresholds of :mod:`radio.mcs`.

    Attributes
    ----------
    offset_10_percent_db, offset_1_percent_db
        float64 ``[num_mcs]``: effective SNR at 10 % and at 1 % less the AWGN threshold [dB].
    provenance
        What measured them, and how.
    """

    offset_10_percent_db: NDArray[np.float64]
    offset_1_percent_db: NDArray[np.float64]
    provenance: dict[str, Any]


def parse_block_errors(document: dict[str, Any]) -> BlockErrors:
    """Return the offsets in a document.

    Raises
    ------
    ValueError
        If the document has another format or was measured for other schemes.
    """
    found = document.get("format")
    if found != BLOCK_ERRORS_FORMAT:
        raise ValueError(
            f"reading block errors: format is {found!r}, this version reads {BLOCK_ERRORS_FORMAT!r}; "
            "measure again with python -m calibration.block_errors"
        )
    entries = document["mcs"]
    measured = [(entry["modulation"], round(entry["code_rate"], 6)) for entry in entries]
    if measured != [(mcs.modulation.name, round(mcs.code_rate, 6)) for mcs in SCHEMES]:
        raise ValueError(
            "reading block errors: they were measured for another list of schemes; measure again with "
            "python -m calibration.block_errors"
        )
    at_10_percent = np.array([entry["offset_db_at_bler_10_percent"] for entry in entries], np.float64)
    at_1_percent = np.array([entry["offset_db_at_bler_1_percent"] for entry in entries], np.float64)
    for array in (at_10_percent, at_1_percent):
        array.flags.writeable = False
    return BlockErrors(at_10_percent, at_1_percent, document["provenance"])


@functools.cache
def block_errors() -> BlockErrors:
    """Return the packaged offsets, read once."""
    source = resources.files("radio").joinpath("data", BLOCK_ERRORS_FILE)
    return parse_block_errors(json.loads(source.read_text(encoding="utf-8")))


def failure_rate(
    mcs_index: NDArray[np.int64], effective_snr_db: NDArray[np.float64], num_resource_elements: int
) -> NDArray[np.float64]:
    """Probability that the decoder fails.

    Parameters
    ----------
    mcs_index, effective_snr_db
        ``[num_blocks]``; the SNR as :meth:`radio.effective_snr.BlockQuality.effective_snr_db` has it.
    num_resource_elements
        Data symbols of one block.

    Returns
    -------
    ``[num_blocks]``
        The normal distribution function through the 10 % and the 1 % point.
    """
    offsets = block_errors()
    at_10_percent = (thresholds_db(num_resource_elements, 0.1) + offsets.offset_10_percent_db)[mcs_index]
    at_1_percent = (thresholds_db(num_resource_elements, 0.01) + offsets.offset_1_percent_db)[mcs_index]
    low, high = special.ndtri(0.1), special.ndtri(0.01)
    slope = (high - low) / (at_1_percent - at_10_percent)
    return np.asarray(special.ndtr(low + slope * (effective_snr_db - at_10_percent)), np.float64)
