"""The code: zero syndromes, the cost of int8 against floating point, and errors that nobody notices."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats
from study_common import NUMEROLOGIES, Case, as_lists, scaled, threshold_10_percent

from calibration.mcs_thresholds import BlerPoint
from radio.coding.base_graph import NUM_PUNCTURED_COLUMNS
from radio.coding.crc import Crc, crc_bits_reference
from radio.coding.reference import decode_float
from radio.coding.scrambling import gold_sequence
from radio.coding.transport_block import (
    LLR_MAX,
    LLR_SCALE,
    SCRAMBLING_STATE,
    TransportBlockCode,
    decode,
    encode,
    transport_block_code,
)
from radio.mcs import SCHEMES, mcs_table

SYNDROME_BLOCKS = 5  # per MCS and class
FLOAT_RATES = {"1/3": 1 / 3, "1/2": 1 / 2, "5/6": 5 / 6}
FLOAT_BLOCKS = 3000  # per point
FLOAT_CODED_BITS = 1536
UNDETECTED_BLOCKS = 3_000_000
_UNDETECTED_CODES = ((520, 1, 1 / 4), (520, 2, 1 / 2), (1040, 2, 3 / 4))


def sparse_parity_check(code: TransportBlockCode) -> sparse.csr_array:
    """H of TS 38.212, 5.3.2: row i of an entry's block has its one in column (i + shift) mod Z."""
    lifted, size = code.lifted, code.lifting_size
    layer = np.repeat(np.arange(lifted.num_layers), np.diff(lifted.layer_start))
    row = np.arange(size)
    rows = layer[:, None] * size + row
    columns = lifted.entry_column[:, None] * size + (row + lifted.entry_shift[:, None]) % size
    num_columns = code.base_graph.num_systematic_columns + lifted.num_layers
    shape = lifted.num_layers * size, num_columns * size
    return sparse.csr_array((np.ones(rows.size, np.int64), (rows.ravel(), columns.ravel())), shape)


def unsatisfied_checks(code: TransportBlockCode, payload: NDArray[np.uint8]) -> tuple[int, int]:
    """Parity checks that encoded words break, and how many were looked at.

    The coded bits are put back to their places in the code word; beside them only the punctured
    bits, which are the block's own first ones, are filled in.  Checks that touch a parity bit which
    was not sent say nothing and are left out; a repeated bit must be equal to its first sending.
    """
    coded = encode(code, payload)
    block = np.concatenate(
        (np.unpackbits(payload, axis=1), _check_bits(Crc.CRC24A, np.unpackbits(payload, axis=1))), axis=1
    )
    block ^= gold_sequence(SCRAMBLING_STATE, block.shape[1])
    parity_check = sparse_parity_check(code)
    first_parity = code.base_graph.num_systematic_columns * code.lifting_size
    punctured = NUM_PUNCTURED_COLUMNS * code.lifting_size
    broken = checks = start = 0
    for index, num_bits in enumerate(code.code_block_coded_bits):
        bits = np.split(block, code.num_code_blocks, axis=1)[index]
        if code.num_code_blocks > 1:
            bits = np.concatenate((bits, _check_bits(Crc.CRC24B, bits)), axis=1)
        part = coded[:, start : start + num_bits]
        start += num_bits
        natural = part.reshape(len(part), -1, code.bits_per_symbol).transpose(0, 2, 1).reshape(len(part), -1)
        places = np.concatenate(
            (
                np.arange(punctured, code.num_code_block_bits),
                np.arange(first_parity, first_parity + code.num_layers * code.lifting_size),
            )
        )
        num_once = min(num_bits, places.size)
        word = np.zeros((len(part), parity_check.shape[1]), np.int64)
        word[:, :punctured] = bits[:, :punctured]
        word[:, places[:num_once]] = natural[:, :num_once]
        known = np.zeros(parity_check.shape[1], bool)
        known[:first_parity] = True  # sent, punctured, or filler
        known[places[:num_once]] = True
        complete = parity_check @ (~known).astype(np.int64) == 0
        checks += int(complete.sum()) * len(part)
        broken += int((parity_check[complete] @ word.T % 2).sum())
        for place in range(num_once, num_bits, num_once):
            again = natural[:, place : place + num_once]
            broken += int((again != natural[:, : again.shape[1]]).sum())
        broken += int((word[:, : code.num_code_block_bits] != bits).sum())
    return broken, checks


def _check_bits(kind: Crc, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    check = crc_bits_reference(kind, bits)
    return ((check[:, None] >> np.arange(23, -1, -1)) & 1).astype(np.uint8)


def _run_syndromes(mcs_index: int, rng: np.random.Generator, share: float) -> dict[str, Any]:
    mcs = SCHEMES[mcs_index]
    lengths = {*mcs_table().block_resource_elements.tolist()}
    lengths |= {numerology.block_resource_elements for numerology in NUMEROLOGIES.values()}
    broken = checks = 0
    for length in sorted(lengths):
        code = transport_block_code(length * int(mcs.modulation), int(mcs.modulation), mcs.code_rate)
        payload = rng.integers(0, 256, (scaled(SYNDROME_BLOCKS, share), code.num_info_bytes), dtype=np.uint8)
        found = unsatisfied_checks(code, payload)
        broken, checks = broken + found[0], checks + found[1]
    return {"mcs": mcs.name, "block_resource_elements": sorted(lengths), "checks": checks, "broken": broken}


def antipodal_llr(rng: np.random.Generator, bits: NDArray[np.uint8], snr_db: float) -> NDArray[np.float64]:
    """Soft bits of antipodal signalling at an Es/N0 [dB], in natural units."""
    variance = 10 ** (-snr_db / 10) / 2
    return 2 * (1.0 - 2.0 * bits + rng.standard_normal(bits.shape) * np.sqrt(variance)) / variance


def quantised(llr: NDArray[np.float64]) -> NDArray[np.int8]:
    return np.clip(np.rint(llr * LLR_SCALE), -LLR_MAX, LLR_MAX).astype(np.int8)


def _run_float(rate: str, rng: np.random.Generator, share: float) -> dict[str, Any]:
    """10 % points of int8 and of floating point over the same words and the same noise."""
    code = transport_block_code(FLOAT_CODED_BITS, 2, FLOAT_RATES[rate])
    centre_db = {"1/3": -3.2, "1/2": -1.15, "5/6": 2.6}[rate]
    count = scaled(FLOAT_BLOCKS, share, 60)
    fixed, floating = [], []
    for offset in (-0.4, -0.15, 0.1, 0.35):
        snr_db, lost = centre_db + offset, [0, 0]
        for start in range(0, count, 150):
            num = min(150, count - start)
            payload = rng.integers(0, 256, (num, code.num_info_bytes), dtype=np.uint8)
            llr = antipodal_llr(rng, encode(code, payload), snr_db)
            lost[0] += int((~decode(code, quantised(llr)).ok).sum())
            lost[1] += int((decode_float(code, llr) != payload).any(axis=1).sum())
        fixed.append(BlerPoint(snr_db, count, lost[0]))
        floating.append(BlerPoint(snr_db, count, lost[1]))
    ours, reference = threshold_10_percent(fixed), threshold_10_percent(floating)
    return {
        "code_rate": rate,
        "num_coded_bits": FLOAT_CODED_BITS,
        "int8_db": ours.snr_db,
        "float_db": reference.snr_db,
        "loss_db": ours.snr_db - reference.snr_db,
        # An upper bound: the noise is shared, so the difference is known better than either.
        "standard_error_db": float(np.hypot(ours.standard_error_db, reference.standard_error_db)),
        "int8_points": as_lists(fixed),
        "float_points": as_lists(floating),
    }


def _run_undetected(code_index: int, rng: np.random.Generator, share: float) -> dict[str, Any]:
    """Blocks that must fail: pure noise, and words 1.5 dB below the threshold."""
    length, order, rate = _UNDETECTED_CODES[code_index]
    code = transport_block_code(length * order, order, rate)
    blocks = scaled(UNDETECTED_BLOCKS // len(_UNDETECTED_CODES), share, 1000)
    below_db = {1 / 4: -9.2, 1 / 2: -2.6, 3 / 4: 0.0}[rate]
    failed = wrong = 0
    for start in range(0, blocks, 4000):
        count = min(4000, blocks - start)
        payload = rng.integers(0, 256, (count, code.num_info_bytes), dtype=np.uint8)
        if start // 4000 % 2:
            llr = rng.integers(-40, 41, (count, code.num_coded_bits), dtype=np.int8)
        else:
            variance = np.float32(10 ** (-below_db / 10) / 2)
            steps = rng.standard_normal((count, code.num_coded_bits), dtype=np.float32)
            steps = (1 - 2 * encode(code, payload).astype(np.float32)) + steps * np.sqrt(variance)
            llr = np.clip(np.rint(steps * (2 * LLR_SCALE / variance)), -LLR_MAX, LLR_MAX).astype(np.int8)
        found = decode(code, llr)
        right = found.ok & (found.payload == payload).all(axis=1)
        failed += int((~right).sum())
        wrong += int((found.ok & ~right).sum())
    return {
        "code_rate": rate,
        "num_coded_bits": code.num_coded_bits,
        "num_failed": failed,
        "num_undetected": wrong,
        "upper_bound_95_percent": float(stats.binomtest(wrong, failed).proportion_ci(0.90, "exact").high),
    }


def cases() -> list[Case]:
    """Syndromes of every MCS, three rates against floating point, undetected errors of three codes."""
    found = [
        Case(f"syndrome/{mcs.index:02d}", functools.partial(_run_syndromes, mcs.index)) for mcs in SCHEMES
    ]
    found += [Case(f"float/{rate}", functools.partial(_run_float, rate)) for rate in FLOAT_RATES]
    return found + [
        Case(f"undetected/{index}", functools.partial(_run_undetected, index))
        for index in range(len(_UNDETECTED_CODES))
    ]
