"""Do the two fidelities agree?  Statistics that take longer than a test may.

``links``: one stream or several over the emulated air, with the modem, the selective repeat and the link
adaptation of a run, frame after frame and without training, once with samples and once with blocks over
the same channels.  ``runs``: whole runs.  Differences are paired by seed.  What lies in the folder already
is not repeated, so that an interrupted call goes on; the results go to ``fidelity.json`` beside this file,
with the commit they were measured on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from radio.adaptation import LinkAdaptation
from radio.air.blocks import make_air
from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirParameters, PortParameters
from radio.drivers.base import RadioConfig
from radio.drivers.emulated import EmulatedRadio, InMemoryAir
from radio.fidelity import Fidelity
from radio.link import SelectiveRepeatReceiver, SelectiveRepeatSender
from radio.modem import Modem, SoundingTurn, make_modem
from radio.numerology import SOUNDING_SYMBOLS, Numerology
from radio.phy import UNUSED, block_bytes
from radio.units import thermal_noise_w_per_hz
from radio.warmup import warm_up

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = HERE / "fidelity.json"
FORMAT = "fidelity-validation/1"
CONFIDENCE = 0.95

LAPTOP = Numerology(20e6, 1024, 72, 20, 40, 28, 3)
PLUTO_LAB = Numerology(2.5e6, 256, 32, 20, 10, 108, 2)
FULL_SCALE_DBM = 30.0
NOISE_FIGURE_DB = 7.0
PATH_LOSS_DB = 80.0
RECEIVED_DBFS = -15.0
SEEDS = 10
FRAMES = 720
SETTLING_FRAMES = 120  # the outer loop finds its place: not counted
ROUND_FRAMES = 20  # of which the first is a sounding


@dataclass(frozen=True)
class Scenario:
    """Clients of equal bandwidth on one uplink.  Every twentieth frame sounds it, as a round does.

    Attributes
    ----------
    snr_db
        Mean SNR per subcarrier of each client [dB].
    residual_cfo
        Carrier offset that sounding left over, in subcarrier spacings, of odd clients; even ones have
        its negative.
    """

    name: str
    numerology: Numerology
    snr_db: tuple[float, ...]
    fading: FadingProfile
    target_bler: float
    residual_cfo: float = 0.0


_STILL = FadingProfile(rician_k_db=80.0)
_RICE = FadingProfile(150e-9, 6, 5.0, 5.0)
_RAYLEIGH_SLOW_RATE = FadingProfile(1e-6, 4, None, 2.0)
SCENARIOS = (
    Scenario("flat, 12 dB, target 0.1", LAPTOP, (12.3,), _STILL, 0.1),
    Scenario("flat, 20 dB, target 0.01", LAPTOP, (20.6,), _STILL, 0.01),
    Scenario("Rice, 18 dB, target 0.1", LAPTOP, (18.0,), _RICE, 0.1),
    Scenario("Rice, 18 dB, target 0.01", LAPTOP, (18.0,), _RICE, 0.01),
    Scenario("Rice, near the lowest MCS, target 0.1", LAPTOP, (0.0,), _RICE, 0.1),
    Scenario(
        "five boards, 5 to 27 dB, target 0.01", LAPTOP, (21.0, 27.0, 10.0, 15.0, 5.0), _RICE, 0.01, 0.002
    ),
    Scenario("narrow band, Rayleigh, 14 dB, target 0.1", PLUTO_LAB, (14.0,), _RAYLEIGH_SLOW_RATE, 0.1),
)


@dataclass
class _Client:
    name: str
    turn: SoundingTurn
    subchannels: NDArray[np.int64]
    sender: SelectiveRepeatSender
    receiver: SelectiveRepeatReceiver
    adaptation: LinkAdaptation
    mcs: NDArray[np.int64]
    amplitude: NDArray[np.float64]
    sent: int = 0
    failed: int = 0
    delivered_bytes: int = 0


def stream_over_link(
    scenario: Scenario, fidelity: Fidelity, seed: int, frames: int, settling: int
) -> dict[str, Any]:
    """Goodput and repetitions of endless streams, settling frames left out.

    Returns
    -------
    ``goodput_bps`` by client, ``retransmissions`` per sent block by client, ``blocks`` sent.
    """
    return asyncio.run(_stream(scenario, fidelity, seed, frames, settling))


async def _stream(
    scenario: Scenario, fidelity: Fidelity, seed: int, frames: int, settling: int
) -> dict[str, Any]:
    numerology = scenario.numerology
    num, slots = numerology.num_subchannels, numerology.slots_per_frame
    rate = numerology.sample_rate_hz
    noise_w = thermal_noise_w_per_hz(NOISE_FIGURE_DB) * rate
    names = [f"board-{index}" for index in range(len(scenario.snr_db))]
    links = tuple(
        LinkParameters(
            name,
            "server",
            PATH_LOSS_DB,
            cfo_hz=(scenario.residual_cfo if index % 2 else -scenario.residual_cfo)
            * numerology.subcarrier_spacing_hz,
            timing_offset_samples=2 + 3 * index,
            fading=scenario.fading,
        )
        for index, name in enumerate(names)
    )
    ports = tuple(
        PortParameters(name, FULL_SCALE_DBM, noise_figure_db=NOISE_FIGURE_DB) for name in [*names, "server"]
    )
    parameters = AirParameters(
        seed, rate, numerology.slot_samples, ports, links, fidelity=fidelity, numerology=numerology
    )
    air = InMemoryAir(lambda observer: make_air(parameters, observer), contextlib.nullcontext)
    radios = {name: EmulatedRadio(air.connect(name), rate) for name in [*names, "server"]}
    for radio in radios.values():
        await radio.start()
    signal_w = [10 ** (snr_db / 10) * noise_w for snr_db in scenario.snr_db]
    received_w = noise_w + max(signal_w) * numerology.num_subcarriers / numerology.fft_size
    gain_db = RECEIVED_DBFS - 10 * np.log10(received_w) - 30
    await radios["server"].configure(RadioConfig(rate, gain_db))
    modems = {name: make_modem(fidelity, numerology, radio) for name, radio in radios.items()}
    owner = np.arange(num) * len(names) // num
    per_sample = 10 ** ((FULL_SCALE_DBM - 30 - PATH_LOSS_DB) / 10)
    payload = np.random.default_rng(seed).bytes(1 << 16) * (frames * slots // 2 + 1)
    clients = []
    for index, name in enumerate(names):
        amplitude = np.where(owner == index, np.sqrt(signal_w[index] / per_sample), 0.0)
        adaptation = LinkAdaptation(scenario.target_bler, 1.0)
        clients.append(
            _Client(
                name,
                SoundingTurn(index * SOUNDING_SYMBOLS * numerology.symbol_samples, float(amplitude.max())),
                np.flatnonzero(owner == index),
                SelectiveRepeatSender(payload, index, ["server"]),
                SelectiveRepeatReceiver(index, len(payload)),
                adaptation,
                np.full(num, UNUSED, np.int64),
                amplitude,
            )
        )
    for frame in range(frames):
        if frame % ROUND_FRAMES == 0:
            await _sound(numerology, modems, clients, frame)
            continue
        mcs = np.full(num, UNUSED, np.int64)
        first_slot = frame * slots
        until = (first_slot + slots) * numerology.slot_samples
        sent_places = {}
        for client in clients:
            mcs[client.subchannels] = client.mcs[client.subchannels]
            blocks: dict[tuple[int, int], bytes] = {}
            for slot in range(slots):
                for k in client.subchannels.tolist():
                    if client.mcs[k] != UNUSED:
                        block = client.sender.next_block(
                            (frame, slot, k), block_bytes(numerology, int(client.mcs[k]))
                        )
                        assert block is not None
                        blocks[slot, k] = block
            sent_places[client.name] = set(blocks)
            await modems[client.name].send_slots(
                first_slot, slots, blocks, client.mcs, client.amplitude, silent_until=until
            )
        received = await modems["server"].receive_slots(
            first_slot, slots, mcs, owner, expected=frozenset(names), timeout_s=60.0
        )
        for client in clients:
            mine = {
                place: block for place, block in received.blocks.items() if place[1] in client.subchannels
            }
            before = client.receiver.received_bytes
            for block in mine.values():
                client.receiver.accept(block)
            client.sender.acknowledge(frame, [set(mine)])
            if frame >= settling:
                client.sent += len(sent_places[client.name])
                client.failed += len(sent_places[client.name]) - len(mine)
                client.delivered_bytes += client.receiver.received_bytes - before
            # As nodes.streams does for an uplink.
            chosen = client.subchannels
            attempted = received.attempted[:, chosen]
            if attempted.any():
                client.adaptation.observe(len(mine), int(attempted.sum()) - len(mine))
                snr = np.where(attempted, received.snr[:, chosen], 0.0).sum(axis=0) / np.maximum(
                    attempted.sum(axis=0), 1
                )
                proposal = client.adaptation.choose(snr, numerology.block_resource_elements)
                client.mcs[chosen] = np.where(attempted.any(axis=0), proposal, client.mcs[chosen])
    for radio in radios.values():
        await radio.stop()
    counted = sum(frame % ROUND_FRAMES != 0 for frame in range(settling, frames))
    seconds = counted * numerology.frame_samples / rate
    return {
        "goodput_bps": [8 * client.delivered_bytes / seconds for client in clients],
        "retransmissions": [client.failed / max(client.sent, 1) for client in clients],
        "blocks": sum(client.sent for client in clients),
    }


async def _sound(
    numerology: Numerology, modems: dict[str, Modem], clients: list[_Client], frame: int
) -> None:
    """A frame with nothing but the clients' soundings, from which their MCS start anew."""
    first = frame * numerology.frame_samples
    for client in clients:
        await modems[client.name].send_sounding(
            first + client.turn.offset_samples,
            client.turn.amplitude,
            silent_until=first + numerology.frame_samples,
        )
    heard = await modems["server"].receive_sounding(
        first,
        numerology.frame_samples,
        [client.turn for client in clients],
        expected=frozenset(client.name for client in clients),
        timeout_s=60.0,
    )
    for client, estimate in zip(clients, heard.estimates, strict=True):
        client.adaptation.renew()
        chosen = client.subchannels
        client.mcs[chosen] = client.adaptation.choose(
            estimate.snr[chosen], numerology.block_resource_elements
        )


def paired(iq: Iterable[float], blocks: Iterable[float]) -> dict[str, Any]:
    """Mean of both, and their relative difference with its interval over the pairs."""
    left, right = np.array(list(iq)), np.array(list(blocks))
    difference = (right - left) / left.mean()
    interval: list[float] | None = None
    if len(difference) > 1:
        half = stats.t.isf((1 - CONFIDENCE) / 2, len(difference) - 1) * stats.sem(difference)
        interval = [float(difference.mean() - half), float(difference.mean() + half)]
    return {
        "iq": float(left.mean()),
        "blocks": float(right.mean()),
        "relative_difference": float(difference.mean()),
        "interval": interval,
    }


def _kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; measured, and written there, where it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(measure()))
        temporary.replace(path)
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def links(folder: Path, seeds: int, frames: int, settling: int) -> list[dict[str, Any]]:
    """All scenarios over all seeds in both fidelities."""
    warm_up()
    results = []
    for number, scenario in enumerate(SCENARIOS):
        found: dict[Fidelity, list[dict[str, Any]]] = {fidelity: [] for fidelity in Fidelity}
        for seed in range(1, seeds + 1):
            for fidelity in Fidelity:
                path = folder / f"link-{number}-{fidelity.value}-{seed}.json"
                found[fidelity].append(
                    _kept(
                        path,
                        lambda scenario=scenario, fidelity=fidelity, seed=seed: stream_over_link(  # type: ignore[misc]
                            scenario, fidelity, seed, frames, settling
                        ),
                    )
                )
        result: dict[str, Any] = {"scenario": scenario.name, "seeds": seeds, "frames": frames - settling}
        result["blocks_sent"] = sum(each["blocks"] for each in found[Fidelity.IQ])
        for key in ("goodput_bps", "retransmissions"):
            result[key] = paired(
                *([float(np.mean(each[key])) for each in found[fidelity]] for fidelity in Fidelity)
            )
        results.append(result)
        sys.stderr.write(json.dumps(result) + "\n")
    return results


def whole_run(options: list[str], fidelity: Fidelity, seed: int, place: Path) -> dict[str, Any]:
    """One run as the command line makes it; CPU time of modem and air, and of all its processes."""
    from testbed.record import read_run

    subprocess.run(
        [sys.executable, "-m", "testbed", "run", *options, "--compute", "modelled", "--seed", str(seed),
         "--fidelity", fidelity.value, "--out", str(place), "--json"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    run = read_run(place)
    sent = [event for event in run.of_kind("transmission") if event["goodput_bps"]]
    blocks = sum(event["blocks_sent"] for event in run.of_kind("transmission"))
    failed = sum(event["blocks_failed"] for event in run.of_kind("transmission"))
    assert run.stop is not None
    return {
        "goodput_bps": float(np.mean([event["goodput_bps"] for event in sent])),
        "blocks": blocks,
        "retransmissions": failed / blocks,
        "round_latency_s": run.stop["mean_round_latency_s"],
        "signal_cpu_s": sum(
            spent.get("air", 0.0) + spent.get("modem", 0.0) for spent in run.stop["cpu_s"].values()
        ),
        "cpu_s": sum(spent["total"] for spent in run.stop["cpu_s"].values()),
    }


RUNS = (
    ("laptop", ["--preset", "laptop", "--rounds", "20"], 5),
    ("edge, busy-day", ["--preset", "edge", "--scenario", "busy-day", "--rounds", "12"], 5),
)


def runs(folder: Path) -> list[dict[str, Any]]:
    """Whole runs in both fidelities."""
    results = []
    for number, (name, options, seeds) in enumerate(RUNS):
        found: dict[Fidelity, list[dict[str, Any]]] = {fidelity: [] for fidelity in Fidelity}
        for seed in range(1, seeds + 1):
            for fidelity in Fidelity:
                label = f"run-{number}-{fidelity.value}-{seed}"
                found[fidelity].append(
                    _kept(
                        folder / f"{label}.json",
                        lambda options=options, fidelity=fidelity, seed=seed, label=label: whole_run(  # type: ignore[misc]
                            options, fidelity, seed, folder / label
                        ),
                    )
                )
        result: dict[str, Any] = {"run": name, "seeds": seeds, "options": options}
        result["blocks_sent"] = sum(each["blocks"] for each in found[Fidelity.IQ])
        for key in ("goodput_bps", "retransmissions", "round_latency_s", "signal_cpu_s", "cpu_s"):
            result[key] = paired(*([each[key] for each in found[fidelity]] for fidelity in Fidelity))
        results.append(result)
        sys.stderr.write(json.dumps(result) + "\n")
    return results


def commit() -> str:
    """The commit in the working tree, marked when something was changed since."""
    name = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return name.stdout.strip() or "unknown"


def main() -> None:
    """Measure everything, or what is missing of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/validate/fidelity"))
    parser.add_argument("--only", choices=("links", "runs"), default=None)
    options = parser.parse_args()
    folder: Path = options.folder
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {
        "format": FORMAT,
        "commit": commit(),
        "host": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "confidence": CONFIDENCE,
    }
    if options.only != "runs":
        results["links"] = links(folder, SEEDS, FRAMES, SETTLING_FRAMES)
    if options.only != "links":
        results["runs"] = runs(folder)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(f"{RESULTS}\n")


if __name__ == "__main__":
    main()
