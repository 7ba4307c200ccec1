"""Speed of the radio's kernels in CPU time on one thread: `python -m radio.bench --json`.

Numbers from a shared machine vary; compare ratios inside one run.  Nothing here asserts a speed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, WindowRequest
from radio.air.front_end import IDEAL, PortImpairments, ReceiverImpairments, TransmitterImpairments
from radio.air.interference import Interference
from radio.air.kernels import add_link, receive_convert
from radio.air.noise import fill_noise, gaussian_noise, noise_key
from radio.air.oscillator import PhaseNoise
from radio.coding.transport_block import decode, encode, transport_block_code
from radio.mcs import mcs_table
from radio.modulation import Modulation, demodulate_llr, modulate
from radio.numerology import Numerology
from radio.phy import (
    CodedBlocks,
    ReceivedSlots,
    SoftBlocks,
    block_bytes,
    block_code,
    coded_to_samples,
    demodulate_slots,
    modulate_slots,
    samples_to_soft_blocks,
)
from radio.rotation import rotate
from radio.units import thermal_noise_w_per_hz, watt_to_dbm
from radio.warmup import warm_up

Result = dict[str, float | int | str]


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes
    ----------
    name
        Key in the report.
    unit
        Of the amount of work per second.
    work
        Work that one call does, in `unit` times one second.
    call
        What is timed.
    details
        Facts about the case for the report.
    """

    name: str
    unit: str
    work: float
    call: Callable[[], object]
    details: Result = field(default_factory=dict)


def measure(case: Case, min_duration_s: float = 0.4, min_batch_s: float = 0.01) -> Result:
    """Return mean and best throughput of repeated calls, from the CPU time of this thread.

    Calls are timed in batches of at least `min_batch_s`: on virtual machines the clock of a thread may
    stand still for milliseconds, and a single short call could take no time at all.
    """
    case.call()
    num_calls = 1
    while (duration := _thread_time_s(case.call, num_calls)) < min_batch_s:
        num_calls = max(2 * num_calls, math.ceil(num_calls * min_batch_s / max(duration, 1e-6)))
    durations = [duration]
    while sum(durations) < min_duration_s or len(durations) < 5:
        durations.append(_thread_time_s(case.call, num_calls))
    work = case.work * num_calls
    return {
        "unit": case.unit,
        "mean": round(work * len(durations) / sum(durations), 2),
        "best": round(work / min(durations), 2),
        "num_calls": num_calls * len(durations),
        **case.details,
    }


def _thread_time_s(call: Callable[[], object], num_calls: int) -> float:
    """CPU time of this thread for some calls in a row."""
    started = time.thread_time()
    for _ in range(num_calls):
        call()
    return time.thread_time() - started


def coding_cases() -> Iterator[Case]:
    """Yield encoder and decoder cases: code blocks of 8448 bits, QPSK on AWGN."""
    num_blocks = 40
    rng = np.random.default_rng(1)
    # Es/N0 of QPSK just above the waterfall, and 6 dB higher; short blocks at a link's usual SNR.
    plans = [
        ("r13", 8448, 1 / 3, (0.0, 6.0)),
        ("r12", 8448, 1 / 2, (2.0, 8.0)),
        ("r56", 8448, 5 / 6, (6.0, 12.0)),
        ("short_r12", 640, 1 / 2, (3.0, 9.0)),
    ]
    for label, num_bits, code_rate, snrs_db in plans:
        num_coded_bits = int(num_bits / code_rate) // 2 * 2
        code = transport_block_code(num_coded_bits, 2, code_rate)
        payload = rng.integers(0, 256, (num_blocks, code.num_info_bytes), dtype=np.uint8)
        work = payload.size * 8e-6
        bits = encode(code, payload)
        shape: Result = {"code_rate": round(code_rate, 4), "num_info_bits": code.num_info_bytes * 8}
        yield Case(
            f"ldpc_encode_{label}", "info Mbit/s", work, functools.partial(encode, code, payload), shape
        )
        for place, snr_db in zip(("near", "high"), snrs_db, strict=True):
            symbols = modulate(Modulation.QPSK, bits)
            variance = np.full(symbols.shape, 10 ** (-snr_db / 10), dtype=np.float32)
            noise = rng.standard_normal((num_blocks, 2 * symbols.shape[1]), dtype=np.float32)
            symbols += noise.view(np.complex64) * np.sqrt(variance / 2)
            llr = demodulate_llr(Modulation.QPSK, symbols, variance)
            result = decode(code, llr)
            yield Case(
                f"ldpc_decode_{label}_{place}",
                "info Mbit/s",
                work,
                functools.partial(decode, code, llr),
                {
                    **shape,
                    "snr_db": snr_db,
                    "mean_iterations": round(float(result.iterations.mean()), 2),
                    "bler": round(1 - float(result.ok.mean()), 4),
                },
            )


def modulation_cases() -> Iterator[Case]:
    """Yield mapper and soft demapper cases."""
    rng = np.random.default_rng(2)
    for modulation in Modulation:
        bits = rng.integers(0, 2, (20, 2000 * modulation), dtype=np.uint8)
        symbols = modulate(modulation, bits)
        variance = np.full(symbols.shape, 0.02, dtype=np.float32)
        name, work = modulation.name.lower(), symbols.size * 1e-6
        yield Case(f"modulate_{name}", "Msymbol/s", work, functools.partial(modulate, modulation, bits))
        yield Case(
            f"demodulate_{name}",
            "Msymbol/s",
            work,
            functools.partial(demodulate_llr, modulation, symbols, variance),
        )


LAPTOP = Numerology(20e6, 1024, 72, 20, 40, 28, 4)
CHAIN_MCS = 14  # 16QAM, rate 2/3
CHAIN_SNR_DB = 18.0
_TX_FULL_SCALE_DBM = 32.0
_AMPLITUDE = 0.01**0.5  # of a subcarrier: 800 of 1024 radiate 21 dB below full scale
# Six taps over half a microsecond, a carrier offset and a timing offset, as a lab's link has them;
# scattered power is so low that no subchannel fades below what its MCS needs.
_FADING = FadingProfile(delay_spread_s=150e-9, num_taps=6, rician_k_db=15.0, doppler_hz=2.0)
_TDL = FadingProfile(delay_spread_s=100e-9, doppler_hz=2.0, profile="tdl-c")
# What an ADALM-PLUTO has, about; both ends the same.
_PHASE_NOISE = PhaseNoise(0.5, 50e3)
_TRANSMITTER = TransmitterImpairments(0.1, 1.0, -50.0, 0.0)
_RECEIVER = ReceiverImpairments(0.1, 1.0, -50.0)
_DRIFT_PPM = 5.0
_INTERFERENCE = Interference("server", "noise", -90.0, 3e6, 1e6)


class _Link:
    """One client and one server on an air of their own; each call is the next frame.

    The path loss gives the mean SNR per subcarrier.
    """

    def __init__(
        self,
        snr_db: float,
        cfo_hz: float = 700.0,
        noise_only: bool = False,
        *,
        fading: FadingProfile = _FADING,
        impairments: PortImpairments = IDEAL,
        clock_drift_ppm: float = 0.0,
        interference: tuple[Interference, ...] = (),
    ) -> None:
        noise_w = thermal_noise_w_per_hz(7.0) * LAPTOP.sample_rate_hz
        path_loss_db = _TX_FULL_SCALE_DBM + 20 * np.log10(_AMPLITUDE) - snr_db - float(watt_to_dbm(noise_w))
        link = LinkParameters(
            "client",
            "server",
            path_loss_db,
            0.0,
            cfo_hz,
            9,
            fading,
            clock_drift_ppm=clock_drift_ppm,
            clock_realign_samples=LAPTOP.frame_samples,
        )
        ports = tuple(
            PortParameters(name, _TX_FULL_SCALE_DBM, impairments=impairments) for name in ("client", "server")
        )
        links = () if noise_only else (link,)
        self._air = AirCore(
            AirParameters(1, LAPTOP.sample_rate_hz, LAPTOP.slot_samples, ports, links, interference)
        )
        # Puts the strongest signal some 12 dB below full scale: no clipping.
        self._air.set_rx_gain("server", path_loss_db - _TX_FULL_SCALE_DBM)
        self._cycles_per_sample = cfo_hz / LAPTOP.sample_rate_hz
        self._next_sample = 0

    def frame(self, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """What the server receives of a frame, the client's carrier corrected beforehand."""
        first = self._next_sample
        self._next_sample += LAPTOP.frame_samples
        sent = rotate(samples, first, -self._cycles_per_sample)
        self._air.burst("client", first, sent)
        request = WindowRequest("server", 0, first, LAPTOP.frame_samples, frozenset())
        return self._air.request(request)[0].samples


def _frame(mcs_index: NDArray[np.int64], seed: int) -> dict[tuple[int, int], bytes]:
    """Random blocks that fill a frame."""
    rng = np.random.default_rng(seed)
    return {
        (slot, k): rng.bytes(block_bytes(LAPTOP, int(mcs_index[k])))
        for slot in range(LAPTOP.slots_per_frame)
        for k in range(LAPTOP.num_subchannels)
    }


def air_cases() -> Iterator[Case]:
    """Yield the air's kernels and a link through them."""
    count = LAPTOP.frame_samples
    work = count * 1e-6
    planes = np.empty((2, count), np.float32)
    key = noise_key(1, "bench")
    yield Case("noise", "MS/s", work, lambda: fill_noise(planes, 0, key, np.float32(1.0)))
    burst = gaussian_noise(noise_key(2, "bench"), 0, count)
    taps = np.full(6, 0.3 + 0.2j, np.complex64)
    delays = 9 + 2 * np.arange(6)
    yield Case(
        "air",
        "link-MS/s",
        work,
        lambda: add_link(planes, 0, 0, count, 0, burst, 0, delays, taps, 1e-5),
        {"num_taps": 6},
    )
    samples = (burst[0] + 1j * burst[1]).astype(np.complex64)
    yield Case("rotate", "MS/s", work, lambda: rotate(samples, 0, 1e-5, out=samples))
    yield Case("convert", "MS/s", work, lambda: receive_convert(planes, 0.1, 12, samples))
    link = _Link(CHAIN_SNR_DB)
    quiet = (samples * np.float32(0.02)).astype(np.complex64)
    # Everything that a window costs: rotation, both converters, taps, noise.
    yield Case("air_window", "MS/s", work, lambda: link.frame(quiet), {"num_taps": 6})
    yield from _impaired_air_cases(quiet)


def _impaired_air_cases(quiet: NDArray[np.complex64]) -> Iterator[Case]:
    """Yield ``air_window`` with a TDL channel, with one impairment each, and with all of them."""
    work = LAPTOP.frame_samples * 1e-6
    all_of_them = PortImpairments(_PHASE_NOISE, _TRANSMITTER, _RECEIVER)
    amplifier = TransmitterImpairments(pa_saturation_dbfs=0.0)
    mixer = TransmitterImpairments(0.1, 1.0, -50.0)
    links = {
        "air_tdl": _Link(CHAIN_SNR_DB, fading=_TDL),
        "air_phase_noise": _Link(CHAIN_SNR_DB, impairments=PortImpairments(_PHASE_NOISE)),
        "air_iq_dc": _Link(CHAIN_SNR_DB, impairments=PortImpairments(None, mixer, _RECEIVER)),
        "air_rapp": _Link(CHAIN_SNR_DB, impairments=PortImpairments(None, amplifier)),
        "air_clock_drift": _Link(CHAIN_SNR_DB, clock_drift_ppm=_DRIFT_PPM),
        "air_interference": _Link(CHAIN_SNR_DB, interference=(_INTERFERENCE,)),
        "air_impaired": _Link(
            CHAIN_SNR_DB,
            fading=_TDL,
            impairments=all_of_them,
            clock_drift_ppm=_DRIFT_PPM,
            interference=(_INTERFERENCE,),
        ),
    }
    for name, link in links.items():
        yield Case(name, "MS/s", work, functools.partial(link.frame, quiet))


class _Uplink:
    """The chain's scenario: one client fills the band with 16QAM 2/3 at 18 dB, frame after frame."""

    def __init__(self) -> None:
        num = LAPTOP.num_subchannels
        self.amplitude = np.full(num, _AMPLITUDE)
        self.mcs = np.full(num, CHAIN_MCS, np.int64)
        self.owner = np.zeros(num, np.int64)
        self.blocks = _frame(self.mcs, 1)
        self.code = block_code(LAPTOP, CHAIN_MCS)
        self.payload = np.frombuffer(b"".join(self.blocks.values()), np.uint8).reshape(len(self.blocks), -1)
        slots, subchannels = np.array(list(self.blocks), np.int64).T.copy()
        self.coded = [CodedBlocks(CHAIN_MCS, slots, subchannels, encode(self.code, self.payload))]
        self.link = _Link(CHAIN_SNR_DB)
        self.sent = self.transmit()
        self.received = self.link.frame(self.sent)

    def transmit(self) -> NDArray[np.complex64]:
        return modulate_slots(LAPTOP, LAPTOP.slots_per_frame, self.blocks, self.mcs, self.amplitude)

    def map(self) -> NDArray[np.complex64]:
        return coded_to_samples(LAPTOP, LAPTOP.slots_per_frame, self.coded, self.amplitude)

    def soft_blocks(self) -> tuple[ReceivedSlots, list[SoftBlocks]]:
        return samples_to_soft_blocks(LAPTOP, self.received, self.mcs, self.owner)

    def receive(self) -> ReceivedSlots:
        return demodulate_slots(LAPTOP, self.received, self.mcs, self.owner)

    def chain(self) -> ReceivedSlots:
        samples = self.link.frame(self.transmit())
        return demodulate_slots(LAPTOP, samples, self.mcs, self.owner)


def modem_cases() -> Iterator[Case]:
    """Yield OFDM without coding, the whole chain of one uplink, and five uplinks in one band."""
    work = LAPTOP.frame_samples * 1e-6
    num, slots = LAPTOP.num_subchannels, LAPTOP.slots_per_frame
    uplink = _Uplink()
    yield Case("ofdm_tx", "MS/s", work, uplink.map)
    yield Case("ofdm_rx", "MS/s", work, uplink.soft_blocks)
    missed = len(uplink.blocks) - len(uplink.chain().blocks)
    facts: Result = {"snr_db": CHAIN_SNR_DB, "bler": round(missed / len(uplink.blocks), 4)}
    yield Case("chain", "MS/s", work, uplink.chain, facts)

    five_owners = np.repeat(np.arange(5), num // 5)
    five_mcs = np.repeat([18, 14, 10, 7, 4], num // 5)
    five_blocks = _frame(five_mcs, 2)
    window = _Link(24.0).frame(modulate_slots(LAPTOP, slots, five_blocks, five_mcs, uplink.amplitude))
    missed = len(five_blocks) - len(demodulate_slots(LAPTOP, window, five_mcs, five_owners).blocks)
    yield Case(
        "uplink5",
        "MS/s",
        work,
        lambda: demodulate_slots(LAPTOP, window, five_mcs, five_owners),
        {"bler": round(missed / len(five_blocks), 4)},
    )


def profile(num_batches: int = 40, batch_calls: int = 5) -> dict[str, Result]:
    """Return where the CPU time of `chain` goes, part by part.

    Parts and chain are timed in turn on the same data, so that a machine that slows down slows all of
    them.  `rx_front` is everything from samples to equalised symbols; `rest` is what the chain takes
    beyond its parts: dictionaries of blocks, and buffers that other parts have driven out of the cache.
    """
    uplink = _Uplink()
    modulation = mcs_table()[CHAIN_MCS].modulation
    (soft,) = uplink.soft_blocks()[1]
    variance = np.full(soft.symbols.shape, 10 ** (-CHAIN_SNR_DB / 10), np.float32)
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(uplink.code, uplink.payload),
        "tx": uplink.map,
        "air": lambda: uplink.link.frame(uplink.sent),
        "rx": uplink.soft_blocks,
        "demod": lambda: demodulate_llr(modulation, soft.symbols, variance),
        "decode": lambda: decode(uplink.code, soft.llr),
        "chain": uplink.chain,
    }
    batches_s = {name: np.empty(num_batches) for name in calls}
    for batch in range(num_batches):
        for name, call in calls.items():
            batches_s[name][batch] = _thread_time_s(call, batch_calls)
    to_ns = 1e9 / (batch_calls * LAPTOP.frame_samples)
    mean, best = (
        {name: to_ns * float(pick(batch_s)) for name, batch_s in batches_s.items()}
        for pick in (np.mean, np.min)
    )
    for time_ns in (mean, best):
        time_ns["rx_front"] = time_ns.pop("rx") - time_ns["demod"]
        chain = time_ns.pop("chain")
        time_ns["rest"] = chain - sum(time_ns.values())
        time_ns["chain"] = chain
    order = ("encode", "tx", "air", "rx_front", "demod", "decode", "rest", "chain")
    return {
        name: {
            "unit": "ns/sample",
            "mean": round(mean[name], 3),
            "best": round(best[name], 3),
            "share": round(mean[name] / mean["chain"], 3),
        }
        for name in order
    }


CASE_GROUPS: tuple[Callable[[], Iterator[Case]], ...] = (
    coding_cases,
    modulation_cases,
    air_cases,
    modem_cases,
)


def _say(module: str) -> None:
    sys.stderr.write(f"warming {module}\n")


def main(arguments: list[str] | None = None) -> None:
    """Time all cases and print them."""
    parser = argparse.ArgumentParser(prog="python -m radio.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--only", default="", help="only names that contain one of these, with commas between"
    )
    parser.add_argument(
        "--profile", action="store_true", help="print as JSON where the chain's time goes, and nothing else"
    )
    options = parser.parse_args(arguments)
    warm_up(_say)
    if options.profile:
        sys.stdout.write(json.dumps(profile(), indent=1) + "\n")
        return
    results: dict[str, Result] = {}
    for group in CASE_GROUPS:
        for case in group():
            if any(part in case.name for part in options.only.split(",")):
                results[case.name] = measure(case)
                if not options.json:
                    found = results[case.name]
                    sys.stdout.write(
                        f"{case.name:24s} {found['mean']:>10} {found['best']:>10} {found['unit']}\n"
                    )
    if options.json:
        sys.stdout.write(json.dumps({"machine": {"unit": platform.machine()}, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
