"""This modem, liquid-dsp and GNU Radio on one payload, in one run: samples per CPU second, and ratios.

    python tests/benchmarks/peers.py [--frames 4] [--rounds 5]

Prints one JSON object.  Each modem sends the same bytes and receives its own samples with noise added.
liquid-dsp (`ofdmflexframe`) and GNU Radio (`ofdm_tx` / `ofdm_rx`) have no soft-decision code, so the
ratios compare OFDM without FEC: here from coded bits to samples, and from samples to soft bits.  What
the LDPC code costs on top is given beside it.  A peer that is not installed is said to be missing.

CPU time is that of the thread, and for GNU Radio, which runs a thread for each block, of its process.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from radio.bench import LAPTOP
from radio.coding.transport_block import encode
from radio.phy import (
    CodedBlocks,
    block_code,
    coded_to_samples,
    demodulate_slots,
    modulate_slots,
    samples_to_soft_blocks,
)
from radio.warmup import warm_up

SNR_DB = 25.0
MCS_INDEX = 14  # 16QAM, rate 2/3
GNURADIO_SCRIPT = Path(__file__).parent / "flowgraphs" / "gnuradio_ofdm.py"
GNURADIO_TIMEOUT_S = 300.0
Figures = dict[str, Any]


class MissingPeerError(Exception):
    """A peer is not on this machine; the message says what to install."""


def with_noise(samples: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    power = np.mean(np.abs(samples) ** 2)
    noise = rng.standard_normal(2 * samples.size, np.float32).view(np.complex64)
    return (samples + noise * np.float32(np.sqrt(power / 2) * 10 ** (-SNR_DB / 20))).astype(np.complex64)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.thread_time()
    result = call()
    return time.thread_time() - started, result


class Ours:
    """Frames of the laptop numerology, all 20 subchannels at 16QAM 2/3."""

    def __init__(self, num_frames: int) -> None:
        self.code = block_code(LAPTOP, MCS_INDEX)
        num = LAPTOP.num_subchannels
        self.places = [(slot, k) for slot in range(LAPTOP.slots_per_frame) for k in range(num)]
        rng = np.random.default_rng(1)
        shape = (num_frames, len(self.places), self.code.num_info_bytes)
        self.payload = rng.integers(0, 256, shape, np.uint8)
        self.mcs = np.full(num, MCS_INDEX, np.int64)
        self.owner = np.zeros(num, np.int64)
        self.amplitude = np.ones(num)
        slots, subchannels = np.array(self.places, np.int64).T.copy()
        self.coded = [
            [CodedBlocks(MCS_INDEX, slots, subchannels, encode(self.code, frame))] for frame in self.payload
        ]
        self.blocks = [
            dict(zip(self.places, (row.tobytes() for row in frame), strict=True)) for frame in self.payload
        ]
        self.received = [with_noise(samples, n) for n, samples in enumerate(self.map())]

    def map(self) -> list[np.ndarray]:
        return [
            coded_to_samples(LAPTOP, LAPTOP.slots_per_frame, groups, self.amplitude) for groups in self.coded
        ]

    def modulate(self) -> list[np.ndarray]:
        return [
            modulate_slots(LAPTOP, LAPTOP.slots_per_frame, blocks, self.mcs, self.amplitude)
            for blocks in self.blocks
        ]

    def soft_bits(self) -> None:
        for window in self.received:
            samples_to_soft_blocks(LAPTOP, window, self.mcs, self.owner)

    def demodulate(self) -> list[dict[tuple[int, int], bytes]]:
        return [demodulate_slots(LAPTOP, window, self.mcs, self.owner).blocks for window in self.received]

    def measure(self) -> Figures:
        found = self.demodulate()
        right = [
            received.get(place) == sent[place]
            for received, sent in zip(found, self.blocks, strict=True)
            for place in self.places
        ]
        return {
            "num_samples": len(self.received) * LAPTOP.frame_samples,
            "payload_bytes": self.payload.size,
            "tx_cpu_s": timed(self.map)[0],
            "rx_cpu_s": timed(self.soft_bits)[0],
            "tx_with_code_cpu_s": timed(self.modulate)[0],
            "rx_with_code_cpu_s": timed(self.demodulate)[0],
            "decoded_share": float(np.mean(right)),
            "what": "coded bits to samples, samples to soft bits; FFT 1024, prefix 72, 16QAM",
        }


class _FrameStatistics(ctypes.Structure):
    """framesyncstats_s, which liquid passes to the callback by value."""

    _fields_ = (
        ("evm", ctypes.c_float),
        ("rssi", ctypes.c_float),
        ("cfo", ctypes.c_float),
        ("symbols", ctypes.c_void_p),
        ("num_symbols", ctypes.c_uint),
        ("modulation", ctypes.c_uint),
        ("bits_per_symbol", ctypes.c_uint),
        ("check", ctypes.c_uint),
        ("fec0", ctypes.c_uint),
        ("fec1", ctypes.c_uint),
    )


class _GeneratorProperties(ctypes.Structure):
    """ofdmflexframegenprops_s."""

    _fields_ = (
        ("check", ctypes.c_uint),
        ("fec0", ctypes.c_uint),
        ("fec1", ctypes.c_uint),
        ("modulation", ctypes.c_uint),
    )


_FRAME_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_int,
    _FrameStatistics,
    ctypes.c_void_p,
)


class Liquid:
    """liquid-dsp's ofdmflexframe with the FFT, prefix and modulation of ours; no FEC, CRC-32.

    The subcarrier plan is its default.
    """

    def __init__(self, payload: np.ndarray) -> None:
        name = ctypes.util.find_library("liquid")
        if name is None:
            raise MissingPeerError("liquid-dsp is not installed; Debian has it as libliquid1")
        self._library = library = ctypes.CDLL(name)
        for function in ("ofdmflexframegen_create", "ofdmflexframesync_create"):
            getattr(library, function).restype = ctypes.c_void_p
        for function in ("str2mod", "str2crc", "str2fec"):
            getattr(library, f"liquid_getopt_{function}").argtypes = (ctypes.c_char_p,)
        self._payload = payload  # [num_frames, bytes]
        self._received = 0
        self._buffer = np.empty(2 * LAPTOP.frame_samples, np.complex64)
        self._windows = [with_noise(samples, n) for n, samples in enumerate(self.transmit())]

    def _pointer(self, array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def transmit(self) -> list[np.ndarray]:
        library = self._library
        properties = _GeneratorProperties(
            library.liquid_getopt_str2crc(b"crc32"),
            library.liquid_getopt_str2fec(b"none"),
            library.liquid_getopt_str2fec(b"none"),
            library.liquid_getopt_str2mod(b"qam16"),
        )
        generator = ctypes.c_void_p(
            library.ofdmflexframegen_create(
                LAPTOP.fft_size, LAPTOP.prefix_samples, 0, None, ctypes.byref(properties)
            )
        )
        header = np.zeros(8, np.uint8)
        frames = []
        try:
            for payload in self._payload:
                library.ofdmflexframegen_assemble(
                    generator, self._pointer(header), self._pointer(payload), payload.size
                )
                num_symbols = library.ofdmflexframegen_getframelen(generator)
                count = num_symbols * LAPTOP.symbol_samples
                # It says that a frame is complete once it is asked for more, and appends zeros.
                asked = count + LAPTOP.symbol_samples
                if asked > self._buffer.size:
                    raise RuntimeError(f"liquid-dsp's frame has {count} samples, too many for the buffer")
                if not library.ofdmflexframegen_write(generator, self._pointer(self._buffer), asked):
                    raise RuntimeError("liquid-dsp's frame is longer than it said")
                frames.append(self._buffer[:count].copy())
        finally:
            library.ofdmflexframegen_destroy(generator)
        return frames

    def receive(self) -> int:
        """Payload bytes of frames whose header and payload were valid, and were what had been sent."""
        library = self._library
        good_bytes = 0
        sent = {payload.tobytes() for payload in self._payload}

        def on_frame(
            _header: int, header_valid: int, payload: int, length: int, valid: int, *_rest: object
        ) -> int:
            nonlocal good_bytes
            if header_valid and valid and ctypes.string_at(payload, length) in sent:
                good_bytes += length
            return 0

        callback = _FRAME_CALLBACK(on_frame)
        synchroniser = ctypes.c_void_p(
            library.ofdmflexframesync_create(LAPTOP.fft_size, LAPTOP.prefix_samples, 0, None, callback, None)
        )
        try:
            for window in self._windows:
                library.ofdmflexframesync_execute(synchroniser, self._pointer(window), window.size)
            # The last symbol leaves its window only when more samples follow.
            library.ofdmflexframesync_execute(synchroniser, self._pointer(self._windows[0]), 4096)
        finally:
            library.ofdmflexframesync_destroy(synchroniser)
        return good_bytes

    def measure(self) -> Figures:
        rx_cpu_s, good_bytes = timed(self.receive)
        return {
            "num_samples": sum(window.size for window in self._windows),
            "payload_bytes": self._payload.size,
            "tx_cpu_s": timed(self.transmit)[0],
            "rx_cpu_s": rx_cpu_s,
            "decoded_share": good_bytes / self._payload.size,
            "what": "ofdmflexframegen / ofdmflexframesync; FFT 1024, prefix 72, 16QAM, no FEC, CRC-32",
        }


def find_gnuradio_python() -> str:
    """The interpreter to run flowgraphs with."""
    for python in (os.environ.get("TESTBED_GNURADIO_PYTHON"), sys.executable, "/usr/bin/python3"):
        if not python:
            continue
        try:
            tried = subprocess.run([python, "-c", "import gnuradio.gr"], capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if tried.returncode == 0:
            return python
    raise MissingPeerError(
        "GNU Radio is not installed, or no interpreter here can import it; Debian has it as gnuradio, "
        "and TESTBED_GNURADIO_PYTHON can name the interpreter"
    )


class GnuRadio:
    """GNU Radio's hierarchical OFDM blocks with their own defaults, in a process of their own."""

    def __init__(self, payload: np.ndarray) -> None:
        self._python = find_gnuradio_python()
        self._payload = payload

    def measure(self) -> Figures:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "payload.bin"
            self._payload.tofile(path)
            done = subprocess.run(
                [self._python, str(GNURADIO_SCRIPT), str(path), str(SNR_DB)],
                capture_output=True,
                text=True,
                timeout=GNURADIO_TIMEOUT_S,
                cwd=folder,
            )
        if done.returncode != 0:
            raise RuntimeError(f"GNU Radio's flowgraph ended with {done.returncode}: {done.stderr[-2000:]}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures


def summary(rounds: list[Figures]) -> Figures:
    """Rates over all rounds, from the figures of each."""
    out: Figures = {key: rounds[0][key] for key in ("what", "version", "payload_bytes") if key in rounds[0]}
    num_samples = sum(figures["num_samples"] for figures in rounds)
    out["samples_per_round"] = rounds[0]["num_samples"]
    for key in rounds[0]:
        if key.endswith("_cpu_s"):
            cpu_s = [figures[key] for figures in rounds]
            out[key.replace("_cpu_s", "")] = {
                "unit": "MS/s",
                "mean": round(1e-6 * num_samples / sum(cpu_s), 3),
                "best": round(1e-6 * max(f["num_samples"] / f[key] for f in rounds), 3),
                "payload_mbit_per_s": round(
                    8e-6 * sum(figures["payload_bytes"] for figures in rounds) / sum(cpu_s), 3
                ),
            }
    out["decoded_share"] = round(float(np.mean([figures["decoded_share"] for figures in rounds])), 4)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=4, help="frames of ours that the payload fills")
    parser.add_argument("--rounds", type=int, default=5, help="each modem is timed this often, in turn")
    options = parser.parse_args()
    warm_up()
    ours = Ours(options.frames)
    payload = ours.payload.reshape(options.frames, -1)
    modems: dict[str, Any] = {"ours": ours}
    result: Figures = {"snr_db": SNR_DB, "payload_bytes": payload.size, "rounds": options.rounds}
    for name, build in {"liquid": Liquid, "gnuradio": GnuRadio}.items():
        try:
            modems[name] = build(payload)
        except MissingPeerError as missing:
            result[name] = {"missing": str(missing)}
    figures: dict[str, list[Figures]] = {name: [] for name in modems}
    for _ in range(options.rounds):  # in turn, so that a machine that slows down slows all of them
        for name, modem in modems.items():
            figures[name].append(modem.measure())
    result |= {name: summary(rounds) for name, rounds in figures.items()}
    result["ratios"] = {
        name: {way: round(result["ours"][way]["mean"] / result[name][way]["mean"], 2) for way in ("tx", "rx")}
        | {
            f"{way}_with_code": round(
                result["ours"][f"{way}_with_code"]["mean"] / result[name][way]["mean"], 2
            )
            for way in ("tx", "rx")
        }
        for name in modems
        if name != "ours"
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
