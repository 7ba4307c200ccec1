"""Block error rates of every MCS through the whole modem, and the goodput that link adaptation makes of them.

The decoder's thresholds hold for a known channel.  A receiver that estimates it from two pilot symbols
loses something, and theory says how much: white noise of power N on the pilots leaves, behind the
projection P on the channels inside the prefix (rank r, width n), an error of covariance N P / 2 in the
mean of both.  Per subcarrier that is p = r / (2 n) of N on the average, and

    SNR_effective = SNR / (1 + p + p / SNR)

(signal times error, noise, and noise times error).  The error stands still over a slot and weighs most
at the edges of a subchannel, which a formula in the mean does not see.  So the expected threshold is
found with the decoder: symbols, noise, and channel errors drawn from that covariance, without pilots,
FFT, prefix or anything else of the modem.  What the modem loses beyond that is the modem's fault.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from study_common import (
    NUMEROLOGIES,
    Case,
    as_lists,
    binomial_interval,
    db,
    rising_pairs,
    scaled,
    threshold_10_percent,
    through_noise,
    white_noise,
)

from calibration.mcs_thresholds import BlerPoint
from radio.adaptation import LinkAdaptation
from radio.coding.transport_block import decode, encode
from radio.estimation import FALSE_ALARM, TRIAL_FALSE_ALARM, prefix_span
from radio.mcs import SCHEMES, thresholds_db
from radio.modulation import demodulate_llr, modulate
from radio.numerology import Numerology
from radio.phy import block_bytes, block_code
from radio.tracking import RESIDUAL_CFO_SPACINGS

# Offsets from the expected 10 % point [dB]; the two outermost are for the shape of the curve only.
GRID_DB = (-2.0, -0.55, -0.25, 0.0, 0.25, 0.6, 3.0)
COARSE_DB = (-0.8, 0.0, 0.8, 2.0)
NUM_BLOCKS = 1600  # per point of the modem
NUM_EXPECTED_BLOCKS = 1600  # per point of the expectation
# Subchannels of one transmitter: it has the whole band, or shares it with four others.
MEMBERS = (20, 4)
SLOTS_PER_CALL = 8


# ---------------------------------------------------------------------------- what theory expects
def mean_error_share(numerology: Numerology) -> float:
    """p: power of the error of the mean channel estimate over noise power, mean over subcarriers."""
    width = numerology.subcarriers_per_subchannel
    return prefix_span(numerology.prefix_samples, numerology.fft_size, width)[1] / (2 * width)


def closed_form_loss_db(numerology: Numerology, threshold_db: float) -> float:
    """Estimation loss at a threshold, from the mean of the error alone [dB]."""
    share, needed = mean_error_share(numerology), 10 ** (threshold_db / 10)
    # SNR^2 - needed (1 + p) SNR - needed p = 0
    half = needed * (1 + share) / 2
    return db((half + np.sqrt(half**2 + needed * share)) / needed)


def miss_probability(numerology: Numerology, num_members: int, snr_db: float) -> float:
    """Probability that a transmitter's blocks of a slot are not even tried, from that slot alone."""
    width = numerology.subcarriers_per_subchannel
    _, rank = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    energy = 2 * 2 * width * num_members * 10 ** (snr_db / 10)
    return 1 - detection_probability(rank * num_members, width * num_members, energy, TRIAL_FALSE_ALARM)


def detection_probability(
    rank: int, width: int, noncentrality: float, false_alarm: float = FALSE_ALARM
) -> float:
    """Probability that an F-test on two pilot symbols finds a channel inside the prefix."""
    dimensions = 4 * rank, 4 * (width - rank)
    limit = stats.f.isf(false_alarm, *dimensions)
    return float(stats.ncf.sf(limit, *dimensions, noncentrality))


def _phase_error_deviation(numerology: Numerology, num_members: int, noise_power: float) -> float:
    """Standard deviation of the estimated phase between the pilots [rad], shrunk by its prior."""
    width = numerology.subcarriers_per_subchannel
    _, rank = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    energy = num_members * width
    variance = noise_power / energy + num_members * rank * noise_power**2 / (2 * energy**2)
    spacing = numerology.pilot_symbols[1] - numerology.pilot_symbols[0]
    prior = 2 * np.pi * RESIDUAL_CFO_SPACINGS * numerology.symbol_samples / numerology.fft_size * spacing
    shrunk = prior**2 / (prior**2 + noise_power / (energy + num_members * rank * noise_power))
    return float(shrunk * np.sqrt(variance))


def expected_bler(
    rng: np.random.Generator,
    numerology: Numerology,
    mcs_index: int,
    num_members: int,
    snr_db: float,
    num_blocks: int,
) -> BlerPoint:
    """Block errors of the decoder when channel errors have the covariance that theory gives them."""
    code, mcs = block_code(numerology, mcs_index), SCHEMES[mcs_index]
    width, power = numerology.subcarriers_per_subchannel, 10 ** (-snr_db / 10)
    projection, _ = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    pilot_a, pilot_b = numerology.pilot_symbols
    positions = (numerology.data_symbols - (pilot_a + pilot_b) / 2) / (pilot_b - pilot_a)
    phase_deviation = _phase_error_deviation(numerology, num_members, power)
    missed = miss_probability(numerology, num_members, snr_db)
    num_errors = 0
    for start in range(0, num_blocks, 200):
        count = min(200, num_blocks - start)
        payload = rng.integers(0, 256, (count, code.num_info_bytes), dtype=np.uint8)
        received = modulate(mcs.modulation, encode(code, payload))
        received += white_noise(rng, received.shape, power)
        grid = received.reshape(count, len(positions), width)
        estimate = 1 + white_noise(rng, (count, width), power / 2) @ projection.T
        angle = rng.standard_normal((count, 1)) * phase_deviation
        turn = np.exp(-1j * angle * positions).astype(np.complex64)
        equalised = (grid * turn[:, :, None] / estimate[:, None, :]).astype(np.complex64)
        variance = np.broadcast_to((power / np.abs(estimate) ** 2)[:, None, :], grid.shape)
        llr = demodulate_llr(
            mcs.modulation, equalised.reshape(count, -1), variance.reshape(count, -1).astype(np.float32)
        )
        found = decode(code, llr)
        arrived = found.ok & (found.payload == payload).all(axis=1) & (rng.random(count) >= missed)
        num_errors += int((~arrived).sum())
    return BlerPoint(snr_db, num_blocks, num_errors)


# ---------------------------------------------------------------------------------- what is measured
def modem_bler(
    rng: np.random.Generator,
    numerology: Numerology,
    mcs_index: int,
    num_members: int,
    snr_db: float,
    num_blocks: int,
) -> tuple[BlerPoint, int]:
    """Block errors through the whole modem, and how many were not noticed."""
    num = numerology.num_subchannels
    index, owner = np.full(num, mcs_index), np.arange(num) % (num // num_members)
    num_slots = -(-num_blocks // num)
    failed = wrong = 0
    for start in range(0, num_slots, SLOTS_PER_CALL):
        count = min(SLOTS_PER_CALL, num_slots - start)
        outcome = through_noise(rng, numerology, count, index, owner, snr_db)
        failed += int(outcome.failed.sum())
        wrong += outcome.num_wrong
    return BlerPoint(snr_db, num_slots * num, failed), wrong


def _run_mcs(
    name: str, mcs_index: int, num_members: int, rng: np.random.Generator, share: float
) -> dict[str, Any]:
    numerology = NUMEROLOGIES[name]
    table_db = float(thresholds_db(numerology.block_resource_elements)[mcs_index])
    guess_db = table_db + closed_form_loss_db(numerology, table_db)
    # The formula may be off where pilots are missed; a first coarse fit centres the grid.
    for offsets, num_blocks in ((COARSE_DB, 60), (GRID_DB[1:-1], scaled(NUM_EXPECTED_BLOCKS, share, 60))):
        expected = threshold_10_percent(
            [
                expected_bler(rng, numerology, mcs_index, num_members, guess_db + offset, num_blocks)
                for offset in offsets
            ]
        )
        guess_db = float(np.clip(expected.snr_db, guess_db - 1.5, guess_db + 4.0))
    points, num_wrong = [], 0
    for offset in GRID_DB:
        point, wrong = modem_bler(
            rng, numerology, mcs_index, num_members, guess_db + offset, scaled(NUM_BLOCKS, share, 80)
        )
        points.append(point)
        num_wrong += wrong
    found = threshold_10_percent(points[1:-1])
    return {
        "numerology": name,
        "mcs_index": mcs_index,
        "mcs": SCHEMES[mcs_index].name,
        "subchannels_of_a_transmitter": num_members,
        "table_db": table_db,
        "expected_db": expected.snr_db,
        "expected_standard_error_db": expected.standard_error_db,
        "measured_db": found.snr_db,
        "measured_standard_error_db": found.standard_error_db,
        "estimation_loss_db": expected.snr_db - table_db,
        "closed_form_loss_db": closed_form_loss_db(numerology, table_db),
        "excess_db": found.snr_db - expected.snr_db,
        "rising_pairs": rising_pairs(points),
        "points": as_lists(points),
        "num_undetected": num_wrong,
    }


# ---------------------------------------------------------------------------------- goodput
GOODPUT_SNR_DB = tuple(range(3, 31))
GOODPUT_BLOCKS = 400  # per MCS that comes into question
ADAPTED_BLOCKS = 3200  # after the outer loop has settled
TARGET_BLER = 0.01  # as the shipped presets have it
SNR_MEMORY = 0.9  # of the link adaptation on a channel that stands still


def shannon_bits(numerology: Numerology, snr_db: float) -> float:
    """Capacity of the resource elements of one block [bit]: pilots, prefix and guards are taken out."""
    return float(numerology.block_resource_elements * np.log2(1 + 10 ** (snr_db / 10)))


def _adapted_bits(
    rng: np.random.Generator, numerology: Numerology, snr_db: float, num_frames: int, memory: float
) -> tuple[float, float]:
    """Payload bits per block that arrive under link adaptation, and the block error rate.

    ``memory`` is what a frame keeps of the SNR that was known before it; 0 believes the last frame.
    """
    num, loop = numerology.num_subchannels, LinkAdaptation(TARGET_BLER, 0.0)
    owner = np.zeros(num, np.int64)
    index = np.zeros(num, np.int64)
    arrived = failed = sent = 0
    settle = 40
    known: NDArray[np.float64] | None = None
    for frame in range(settle + num_frames):
        outcome = through_noise(rng, numerology, numerology.slots_per_frame, index, owner, snr_db)
        num_failed, num_sent = int(outcome.failed.sum()), int(outcome.sent.sum())
        loop.observe(num_sent - num_failed, num_failed)
        if frame >= settle:
            bits = 8 * np.array([block_bytes(numerology, int(m)) for m in index])
            arrived += int(((outcome.sent & ~outcome.failed) * bits).sum())
            failed += num_failed
            sent += outcome.sent.size
        fresh = outcome.snr.mean(axis=0, dtype=np.float64)
        known = fresh if known is None else memory * known + (1 - memory) * fresh
        index = loop.choose(known, numerology.block_resource_elements)
    return arrived / sent, failed / sent


def _run_goodput(name: str, snr_db: int, rng: np.random.Generator, share: float) -> dict[str, Any]:
    numerology = NUMEROLOGIES[name]
    capacity = shannon_bits(numerology, snr_db)
    thresholds = thresholds_db(numerology.block_resource_elements)
    best: dict[str, Any] = {"share": 0.0}
    for mcs_index in np.flatnonzero((thresholds > snr_db - 3.5) & (thresholds < snr_db)).tolist():
        point, _ = modem_bler(rng, numerology, mcs_index, 20, snr_db, scaled(GOODPUT_BLOCKS, share, 80))
        bits = 8 * block_bytes(numerology, mcs_index)
        if (1 - point.bler) * bits / capacity > best["share"]:
            low, high = binomial_interval(point.num_errors, point.num_blocks)
            best = {
                "mcs": SCHEMES[mcs_index].name,
                "bler": point.bler,
                "share": (1 - point.bler) * bits / capacity,
                "share_interval": [(1 - high) * bits / capacity, (1 - low) * bits / capacity],
            }
    per_frame = numerology.num_subchannels * numerology.slots_per_frame
    num_frames = scaled(ADAPTED_BLOCKS // per_frame, share, 4)
    adapted = {}
    for label, memory in (("adapted", SNR_MEMORY), ("adapted_from_single_frames", 0.0)):
        bits, bler = _adapted_bits(rng, numerology, snr_db, num_frames, memory)
        adapted[label] = {"share": bits / capacity, "bler": bler}
    return {
        "numerology": name,
        "snr_db": snr_db,
        "shannon_bits_per_block": capacity,
        "best_mcs": best,
        "target_bler": TARGET_BLER,
        **adapted,
    }


def cases() -> list[Case]:
    """Every MCS of both numerologies, then every SNR of the goodput."""
    found = [
        Case(
            f"bler/{name}/{num_members}/{mcs.index:02d}",
            functools.partial(_run_mcs, name, mcs.index, num_members),
        )
        for name in NUMEROLOGIES
        for num_members in MEMBERS
        for mcs in SCHEMES
    ]
    return found + [
        Case(f"goodput/{name}/{snr_db:02d}", functools.partial(_run_goodput, name, snr_db))
        for name in NUMEROLOGIES
        for snr_db in GOODPUT_SNR_DB
    ]
