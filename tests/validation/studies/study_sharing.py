"""Two clients on neighbouring subchannels, each with its own timing and carrier, on the emulated air.

The victim has the even subchannels, the other client the odd ones: every subchannel of the victim has
a neighbour on each side, the worst that an allocation can be.  Flat links, so that a threshold is one
of white noise; the loss is what separates the 10 % point from that of the victim alone with perfect
timing and carrier.  Bursts go through :class:`radio.air.core.AirCore`, converters made ideal.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study_bler import closed_form_loss_db
from study_common import (
    NUMEROLOGIES,
    Case,
    Outcome,
    as_lists,
    db,
    judge,
    random_slots,
    scaled,
    threshold_10_percent,
    white_noise,
)

from calibration.mcs_thresholds import BlerPoint
from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, WindowRequest
from radio.events import RadioEvent
from radio.mcs import SCHEMES, thresholds_db
from radio.numerology import Numerology
from radio.phy import UNUSED
from radio.rotation import rotate
from radio.units import thermal_noise_w_per_hz

MCS_INDICES = (2, 6, 12, 17, 22)  # QPSK 1/5 to 256-QAM 0.71
IMBALANCES_DB = (-10.0, 0.0, 10.0, 20.0)  # received power of the other client over the victim's
CFO_SPACINGS = 0.02  # at most, of either client
# Of the victim itself: what is left after its sounding, at most.
OWN_CFO_SPACINGS = 0.002
TIMING_SHARE = 0.9  # of the prefix, at most
NUM_BLOCKS = 2000  # of the victim, per point
GRID_DB = (-0.5, -0.2, 0.05, 0.3, 0.6)
NOISE_FIGURE_DB = 7.0
FULL_SCALE_DBM = 30.0
AMPLITUDE = 0.02  # of each subcarrier
BATCH_SLOTS = 4
FLAT = FadingProfile(num_taps=1, rician_k_db=200.0)


def _path_loss_db(numerology: Numerology, snr_db: float) -> float:
    """Path loss at which a subcarrier has this SNR: the FFT is unitary, noise per bin is k T F f_s."""
    noise_w = thermal_noise_w_per_hz(NOISE_FIGURE_DB) * numerology.sample_rate_hz
    sent_w = AMPLITUDE**2 * 10 ** ((FULL_SCALE_DBM - 30) / 10)
    return db(sent_w / noise_w) - snr_db


def _refuse_events(event: RadioEvent) -> None:
    raise AssertionError(f"the air is not ideal: {event}")


def heard(
    seed: int,
    numerology: Numerology,
    bursts: dict[str, NDArray[np.complex64]],
    snr_db: dict[str, float],
    offset_samples: dict[str, int],
    cfo_spacings: dict[str, float],
) -> NDArray[np.complex64]:
    """What the server's converter delivers of bursts that all begin at the same sample."""
    links = tuple(
        LinkParameters(
            name,
            "server",
            _path_loss_db(numerology, snr_db[name]),
            cfo_hz=cfo_spacings[name] * numerology.subcarrier_spacing_hz,
            timing_offset_samples=offset_samples[name],
            fading=FLAT,
        )
        for name in bursts
    )
    ports = (
        *(PortParameters(name, FULL_SCALE_DBM, converter_bits=24) for name in bursts),
        PortParameters("server", FULL_SCALE_DBM, FULL_SCALE_DBM, NOISE_FIGURE_DB, converter_bits=24),
    )
    parameters = AirParameters(seed, numerology.sample_rate_hz, numerology.slot_samples, ports, links)
    core = AirCore(parameters, _refuse_events)
    # The strongest client near -28 dBFS: room for noise, and for 24 bits far above their own.
    core.set_rx_gain("server", 10.0 + min(link.path_loss_db for link in links))
    length = max(len(samples) for samples in bursts.values())
    for name, samples in bursts.items():
        core.burst(name, 0, samples, silent_until=4 * length)
    (window,) = core.request(WindowRequest("server", 0, 0, length, frozenset()))
    return window.samples


def victim_blocks(
    rng: np.random.Generator,
    numerology: Numerology,
    mcs_index: int,
    snr_db: float,
    imbalance_db: float | None,
    own_spacings: float,
    num_slots: int,
    beyond_prefix_samples: int = 0,
) -> Outcome:
    """The victim's blocks beside another client (None: alone) in some slots."""
    num = numerology.num_subchannels
    even = np.arange(num) % 2 == 0
    mine = np.where(even, mcs_index, UNUSED)
    blocks, samples = random_slots(rng, numerology, num_slots, mine, AMPLITUDE)
    limit = int(TIMING_SHARE * numerology.prefix_samples)
    bursts, snr = {"victim": samples}, {"victim": snr_db}
    offset, cfo = {"victim": 0}, {"victim": 0.0}
    if own_spacings:
        offset["victim"] = int(rng.integers(0, limit + 1))
        cfo["victim"] = float(rng.uniform(-own_spacings, own_spacings))
    if imbalance_db is not None:
        theirs = np.where(even, UNUSED, mcs_index)
        bursts["other"] = random_slots(rng, numerology, num_slots, theirs, AMPLITUDE)[1]
        snr["other"] = snr_db + imbalance_db
        offset["other"] = int(rng.integers(0, limit + 1))
        if beyond_prefix_samples:
            offset["other"] = numerology.prefix_samples + beyond_prefix_samples
        cfo["other"] = float(rng.uniform(-CFO_SPACINGS, CFO_SPACINGS))
    received = heard(int(rng.integers(1 << 31)), numerology, bursts, snr, offset, cfo)
    return judge(numerology, received, blocks, mine, np.zeros(num, np.int64))


def _threshold(
    rng: np.random.Generator,
    numerology: Numerology,
    mcs_index: int,
    imbalance_db: float | None,
    own_spacings: float,
    start_db: float,
    num_blocks: int,
) -> dict[str, Any]:
    per_slot = numerology.num_subchannels // 2

    def point(snr_db: float, count: int) -> BlerPoint:
        failed = sent = 0
        while sent < count:
            outcome = victim_blocks(
                rng, numerology, mcs_index, snr_db, imbalance_db, own_spacings, BATCH_SLOTS
            )
            failed, sent = failed + int(outcome.failed.sum()), sent + int(outcome.sent.sum())
        return BlerPoint(snr_db, sent, failed)

    # A coarse walk finds the centre, wherever the disturbance has moved it to.
    centre = start_db
    while point(centre, 12 * per_slot).bler > 0.1 and centre < start_db + 8:
        centre += 0.5
    points = [point(centre + offset, num_blocks) for offset in GRID_DB]
    found = threshold_10_percent(points)
    # A floor above 10 %, or a curve too flat to say where it crosses.
    inside = points[0].snr_db - 1 < found.snr_db < points[-1].snr_db + 1
    if min(each.bler for each in points) > 0.1 or not inside:
        return {"measured_db": None, "points": as_lists(points)}
    return {
        "measured_db": found.snr_db,
        "measured_standard_error_db": found.standard_error_db,
        "points": as_lists(points),
    }


def expected_loss_db(numerology: Numerology, threshold_db: float, imbalance_db: float) -> float | None:
    """Loss if what leaks out of the other client's subchannels were white noise; None if it is too much.

    A carrier offset of e spacings leaves sin^2(pi e) / (pi (d + e))^2 of a subcarrier at distance d;
    the mean of e^2 over the uniform offsets is a third of the greatest, and the window's end is far.
    """
    num, width = numerology.num_subchannels, numerology.subcarriers_per_subchannel
    is_other = np.repeat(np.arange(num) % 2 == 1, width)
    offsets = numerology.subcarrier_offsets.astype(np.float64)
    distance = offsets[~is_other][:, None] - offsets[is_other]
    leaked = float((1 / distance**2).sum(axis=1).mean()) * CFO_SPACINGS**2 / 3
    left = 1 - leaked * 10 ** ((threshold_db + imbalance_db) / 10)
    return -db(left) if left > 0 else None


def _run_thresholds(name: str, mcs_index: int, rng: np.random.Generator, share: float) -> dict[str, Any]:
    numerology = NUMEROLOGIES[name]
    start_db = float(thresholds_db(numerology.block_resource_elements)[mcs_index])
    start_db += 0.2 if name == "laptop" else 0.7
    blocks = scaled(NUM_BLOCKS, share, 120)

    def measure(imbalance_db: float | None, own_spacings: float) -> dict[str, Any]:
        return _threshold(rng, numerology, mcs_index, imbalance_db, own_spacings, start_db, blocks)

    alone = measure(None, 0.0)
    situations = {"own offsets alone": measure(None, OWN_CFO_SPACINGS)}
    situations["own CFO of 2 %, alone"] = measure(None, CFO_SPACINGS)
    for imbalance_db in IMBALANCES_DB:
        situations[f"other at {imbalance_db:+.0f} dB"] = measure(imbalance_db, OWN_CFO_SPACINGS)
        situations[f"other at {imbalance_db:+.0f} dB"]["expected_loss_db"] = expected_loss_db(
            numerology, alone["measured_db"] or start_db, imbalance_db
        )
    for found in situations.values():
        found["loss_db"] = None
        if found["measured_db"] is not None and alone["measured_db"] is not None:
            found["loss_db"] = found["measured_db"] - alone["measured_db"]
            found["loss_standard_error_db"] = float(
                np.hypot(found["measured_standard_error_db"], alone["measured_standard_error_db"])
            )
    return {
        "numerology": name,
        "mcs_index": mcs_index,
        "mcs": SCHEMES[mcs_index].name,
        "alone": alone,
        "situations": situations,
    }


# ------------------------------------------------------------------------------ beyond the prefix
LEAKAGE_SLOTS = 60
LATE_SHARES = (0.02, 0.1, 0.25, 0.5)  # of a symbol, beyond the prefix


def expected_leakage(numerology: Numerology, late_samples: int, distances: NDArray[np.int64]) -> float:
    """Leaked power over a subcarrier's own, summed over interferers at these distances.

    The first ``late_samples`` of the receiver's window still hold the symbol before: the two symbols
    differ by 2 in power and the cut leaves sin^2(pi a d) / (N sin(pi d / N))^2 of it at distance d,
    with a = late / N.
    """
    size = numerology.fft_size
    d = distances.astype(np.float64)
    return float(
        np.sum(2 * np.sin(np.pi * late_samples * d / size) ** 2 / (size * np.sin(np.pi * d / size)) ** 2)
    )


def _run_leakage(name: str, rng: np.random.Generator, share: float) -> dict[str, Any]:
    """Power that a late client on the lower half of the band leaves in subchannels of the upper half."""
    numerology = NUMEROLOGIES[name]
    width, half = numerology.subcarriers_per_subchannel, numerology.num_subchannels // 2
    index = np.where(np.arange(numerology.num_subchannels) < half, 4, UNUSED)
    slots = scaled(LEAKAGE_SLOTS, share, 4)
    rows = []
    for late_share in LATE_SHARES:
        late = round(late_share * numerology.fft_size)
        _, samples = random_slots(rng, numerology, slots, index, 1.0)
        delayed = np.concatenate([np.zeros(numerology.prefix_samples + late, np.complex64), samples])
        useful = delayed[: len(samples)].reshape(-1, numerology.symbol_samples)
        # The first symbol has nothing before it.
        spectrum = np.fft.fft(useful[1:, numerology.prefix_samples :], axis=1, norm="ortho")
        grid = np.abs(spectrum[:, numerology.fft_bins]) ** 2
        offsets = numerology.subcarrier_offsets
        sources = offsets[: half * width]
        for distance in range(3):
            first = (half + distance) * width
            theory = np.mean(
                [
                    expected_leakage(numerology, late, offsets[k] - sources)
                    for k in range(first, first + width)
                ]
            )
            rows.append(
                {
                    "late_samples": late,
                    "subchannels_away": distance + 1,
                    "measured_db": db(float(grid[:, first : first + width].mean())),
                    "theory_db": db(float(theory)),
                }
            )
    # What eight guard subcarriers beside the edge leave of it, at half a symbol.
    guarded = grid[:, half * width + 8 : half * width + 8 + min(width, 10)]
    return {
        "numerology": name,
        "rows": rows,
        "behind_8_guard_subcarriers_db": db(float(guarded.mean())),
    }


# ------------------------------------------------------------------------------ a client's own carrier
OWN_CARRIERS = (0.0, 0.001, 0.002, 0.004, 0.008, 0.012, 0.02)  # of the subcarrier spacing
CARRIER_MEMBERS = (20, 4, 1)
CARRIER_MCS = 6
CARRIER_BLOCKS = 600


def _run_own_carrier(name: str, num_members: int, rng: np.random.Generator, share: float) -> dict[str, Any]:
    """Block error rate 1 dB above the threshold, by the carrier offset that is left after sounding.

    The phase between the two pilots of a slot is known modulo one turn only: beyond
    1 / (2 x pilot distance in subcarrier periods) of the spacing it cannot be told.
    """
    numerology = NUMEROLOGIES[name]
    num = numerology.num_subchannels
    index, owner = np.full(num, CARRIER_MCS), np.arange(num) % (num // num_members)
    table_db = float(thresholds_db(numerology.block_resource_elements)[CARRIER_MCS])
    snr_db = table_db + closed_form_loss_db(numerology, table_db) + 1.0
    rows = []
    for spacings in OWN_CARRIERS:
        failed = sent = 0
        while sent < scaled(CARRIER_BLOCKS, share, 60):
            blocks, samples = random_slots(rng, numerology, BATCH_SLOTS, index)
            cycles = float(rng.choice((-1, 1))) * spacings / numerology.fft_size
            samples = rotate(samples, 0, cycles, out=samples)
            samples += white_noise(rng, samples.shape, 10 ** (-snr_db / 10))
            outcome = judge(numerology, samples, blocks, index, owner)
            failed, sent = failed + int(outcome.failed.sum()), sent + int(outcome.sent.sum())
        rows.append([spacings, sent, failed])
    pilot_a, pilot_b = numerology.pilot_symbols
    periods = (pilot_b - pilot_a) * numerology.symbol_samples / numerology.fft_size
    return {
        "numerology": name,
        "subchannels_of_a_transmitter": num_members,
        "mcs": SCHEMES[CARRIER_MCS].name,
        "snr_db": snr_db,
        "ambiguous_beyond_spacings": 1 / (2 * periods),
        "rows": rows,
    }


def cases() -> list[Case]:
    """Thresholds beside another client, tolerance of an own offset, leakage without common timing."""
    found = [
        Case(f"sharing/{name}/{index:02d}", functools.partial(_run_thresholds, name, index))
        for name in NUMEROLOGIES
        for index in MCS_INDICES
    ]
    found += [
        Case(f"own-carrier/{name}/{members}", functools.partial(_run_own_carrier, name, members))
        for name in NUMEROLOGIES
        for members in CARRIER_MEMBERS
    ]
    return found + [Case(f"leakage/{name}", functools.partial(_run_leakage, name)) for name in NUMEROLOGIES]
