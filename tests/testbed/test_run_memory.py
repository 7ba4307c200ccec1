"""Whole runs over the emulated air, all nodes in one event loop: what arrives, what is said, what repeats."""

from __future__ import annotations

import dataclasses
import resource
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nodes.client_role
import nodes.server_role
import testbed.memory_nodes
from radio.air.core import AirCore, Window
from radio.drivers.base import Reception
from radio.drivers.emulated import EmulatedRadio
from testbed.errors import ExitCode, StorageError
from testbed.policies import Decision
from testbed.record import Run, read_run
from testbed.results import RunResult, StopReason
from testbed.rounds import Rounds
from testbed.upkeep import evaluate
from tests.testbed.experiments import (
    BATCH_SIZE,
    NUMEROLOGY,
    checkpoint_bytes,
    run_in_memory,
    small,
    words_of,
)

SLOT_SAMPLES = NUMEROLOGY["symbols_per_slot"] * (NUMEROLOGY["fft_size"] + NUMEROLOGY["prefix_samples"])
RADIO_CODES = range(30, 40)
Bundle = tuple[tuple[str, str, tuple[int, ...], bytes], ...]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Run]:
    """The small experiment as it is, to compare others with."""
    return run_in_memory(small(), tmp_path_factory.mktemp("plain") / "run")


def events_of(run: Run) -> bytes:
    return (run.directory / "events.jsonl").read_bytes()


def airtime_ns(run: Run) -> int:
    return sum(sent["airtime_ns"] for sent in run.of_kind("transmission"))


def total(run: Run, key: str) -> int:
    return sum(sent[key] for sent in run.of_kind("transmission"))


# --------------------------------------------------------------------------------- what arrives
class Watched:
    """Everything that went into the codec at one end and came out at the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: dict[str, Counter[Bundle]] = {"client": Counter(), "server": Counter()}
        self.received: dict[str, Counter[Bundle]] = {"client": Counter(), "server": Counter()}
        for side, module in (("client", nodes.client_role), ("server", nodes.server_role)):
            self._wrap(monkeypatch, side, module)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, side: str, module: Any) -> None:
        encode, decode = module.encode_tensors, module.decode_tensors

        def watched_encode(tensors: Mapping[str, np.ndarray]) -> bytes:
            self.sent[side][_bundle(tensors)] += 1
            return encode(tensors)

        def watched_decode(data: bytes, max_bytes: int) -> dict[str, np.ndarray]:
            tensors = decode(data, max_bytes)
            self.received[side][_bundle(tensors)] += 1
            return tensors

        monkeypatch.setattr(module, "encode_tensors", watched_encode)
        monkeypatch.setattr(module, "decode_tensors", watched_decode)


def _bundle(tensors: Mapping[str, np.ndarray]) -> Bundle:
    return tuple(
        (name, array.dtype.str, array.shape, array.tobytes()) for name, array in sorted(tensors.items())
    )


class NoisyRadio(EmulatedRadio):
    """Damages every other received window of data, soundings spared: zeroed, or turned around."""

    def __init__(self, connection: Any, sample_rate_hz: float) -> None:
        super().__init__(connection, sample_rate_hz)
        self._rng = np.random.default_rng(7)
        self._windows = 0

    async def receive(self, num_samples: int, at_sample: int, *rest: Any, **named: Any) -> Reception:
        reception = await super().receive(num_samples, at_sample, *rest, **named)
        if num_samples > SLOT_SAMPLES:
            self._windows += 1
            if self._windows % 2:
                turned = -1j * reception.samples.conj()
                reception.samples[:] = 0 if self._rng.random() < 0.5 else turned
        return reception


def test_tensors_are_received_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: tuple[RunResult, Run]
) -> None:
    """What a client encodes the server decodes, and what the server encodes the clients decode."""
    watched = Watched(monkeypatch)
    result, run = run_in_memory(small(), tmp_path / "run")
    assert result.exit_code == 0
    smashed, gradients = watched.sent["client"], watched.sent["server"]
    assert smashed.total() == 2 * 2  # clients x rounds
    assert watched.received["server"] == smashed
    assert all(bundle[1][2][0] == BATCH_SIZE for bundle in smashed)
    # Per round a broadcast that both clients decode, and a unicast for each of them.
    assert gradients.total() == 2 * 3
    assert set(watched.received["client"]) == set(gradients)
    assert sorted(watched.received["client"].values()) == [1, 1, 1, 1, 2, 2]
    assert events_of(run) == events_of(plain[1])  # looking on changes nothing


def test_a_corrupted_sample_stream_costs_retransmissions_and_airtime_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: tuple[RunResult, Run]
) -> None:
    watched = Watched(monkeypatch)
    monkeypatch.setattr(testbed.memory_nodes, "EmulatedRadio", NoisyRadio)
    result, run = run_in_memory(small(), tmp_path / "run")
    clean = plain[1]
    assert result.exit_code == 0
    assert watched.received["server"] == watched.sent["client"]
    assert set(watched.received["client"]) == set(watched.sent["server"])
    assert checkpoint_bytes(run.directory) == checkpoint_bytes(clean.directory)
    assert total(run, "payload_bytes") == total(clean, "payload_bytes")
    for key in ("blocks_failed", "blocks_retransmitted"):
        assert total(run, key) > 3 * total(clean, key) + 10
    assert airtime_ns(run) > 1.1 * airtime_ns(clean)
    assert result.mean_round_latency_s > 1.1 * plain[0].mean_round_latency_s


# --------------------------------------------------------------------------- when nothing arrives
def assert_nothing_came(result: RunResult, run: Run, words: str) -> None:
    assert result.reason is StopReason.FAILED
    assert result.exit_code in RADIO_CODES
    assert words in result.words
    assert run.stop is not None
    assert run.stop["words"] == result.words
    assert (run.stop["reason"], run.stop["exit_code"]) == ("failed", result.exit_code)
    assert run.of_kind("loss") == []
    assert not any(got["complete_ns"] for got in run.of_kind("reception"))


def test_with_every_board_muted_nothing_arrives_and_the_run_says_so(tmp_path: Path) -> None:
    result, run = run_in_memory(small("lab.radio.muted=[board-1,board-2]"), tmp_path / "run")
    assert_nothing_came(result, run, "nothing arrived over the air: the server heard no client's sounding")
    assert {event["node"] for event in run.of_kind("left-out")} == {"board-1", "board-2"}
    assert not [link for link in run.of_kind("link") if link["receiver"] == "server"][-1]["detected"]


def test_with_the_server_muted_no_plan_exists_and_the_run_says_why(tmp_path: Path) -> None:
    result, run = run_in_memory(small("lab.radio.muted=[server]"), tmp_path / "run")
    assert_nothing_came(result, run, "nothing can be sent in round 0: there is no plan for board-2")
    assert "muted" in result.words


@pytest.mark.parametrize("path_loss_db", [140, 160, 220])
def test_far_below_threshold_nothing_arrives_and_the_run_says_so(tmp_path: Path, path_loss_db: int) -> None:
    """No seed may make a signal out of noise: a sounding is believed once in a million."""
    for seed in (1, 2, 3):
        config = small(f"lab.boards.*.channel.path_loss_db={path_loss_db}", seed=seed)
        result, run = run_in_memory(config, tmp_path / f"run-{seed}")
        assert_nothing_came(result, run, "nothing arrived over the air")
        assert "path loss" in result.words


class DeafRadio(EmulatedRadio):
    """Hears soundings and no frame: what lies between a plan and its failure."""

    async def receive(self, num_samples: int, at_sample: int, *rest: Any, **named: Any) -> Reception:
        reception = await super().receive(num_samples, at_sample, *rest, **named)
        if num_samples > SLOT_SAMPLES:
            reception.samples[:] = 0
        return reception


def test_air_that_dies_after_the_sounding_ends_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testbed.memory_nodes, "EmulatedRadio", DeafRadio)
    result, run = run_in_memory(small("link.stall_frames=4"), tmp_path / "run")
    assert_nothing_came(result, run, "nothing of board-1 decoded in 4 frames")
    assert "nothing arrived over the air: no uplink of 2 clients was received" in result.words
    assert [event["words"] for event in run.of_kind("round")]
    assert [sent["complete"] for sent in run.of_kind("transmission")] == [False, False]
    assert total(run, "airtime_ns") > 0


@pytest.mark.parametrize("fault", ["muted", "too far away"])
def test_a_board_that_is_not_heard_is_left_out_by_name_and_the_others_go_on(
    tmp_path: Path, fault: str
) -> None:
    change = {
        "muted": "lab.radio.muted=[board-2]",
        "too far away": "lab.boards.board-2.channel.path_loss_db=170",
    }[fault]
    result, run = run_in_memory(small(change, num_boards=3), tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 2)
    (left_out,) = run.of_kind("left-out")
    assert left_out["node"] == "board-2"
    assert left_out["words"] == "board-2 is left out: the server did not hear its sounding"
    assert [event["clients"] for event in run.of_kind("round")] == [["board-1", "board-3"]] * 2
    assert {event["client"] for event in run.of_kind("loss")} == {"board-1", "board-3"}
    assert "board-2" not in {owner for plan in run.of_kind("plan") for owner in plan["assignment"]}


@pytest.mark.parametrize("schedule", [{}, {1: 2}], ids=["cut stays", "cut moved meanwhile"])
def test_a_board_that_becomes_audible_is_taken_in_with_a_submodel_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: dict[int, int]
) -> None:
    """Every present board is sounded each round, so the loop learns what it does not use."""
    config = small(rounds=6)
    model = config.experiment.model.model_copy(update={"cut_schedule": schedule, "cut_layer": 1})
    experiment = config.experiment.model_copy(update={"model": model})
    config = dataclasses.replace(config, experiment=experiment)
    burst = AirCore.burst
    soundings = {"board-2": 0}

    def shadowed(
        core: AirCore, name: str, first_sample: int, samples: np.ndarray, silent_until: int = 0
    ) -> list[Window]:
        if name == "board-2":
            soundings[name] += 1
            if soundings[name] <= 6:  # those that set gains, and those of two rounds at least
                samples = np.zeros_like(samples)
        return burst(core, name, first_sample, samples, silent_until)

    monkeypatch.setattr(AirCore, "burst", shadowed)
    result, run = run_in_memory(config, tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 6), result.words
    members = [set(event["clients"]) for event in run.of_kind("round")]
    assert members[0] == {"board-1"}
    assert members[-1] == {"board-1", "board-2"}
    sent = {event["round"] for event in run.of_kind("transmission") if event["node"] == "board-2"}
    assert sent == {index for index, names in enumerate(members) if "board-2" in names}
    assert len(run.of_kind("joined-late")) == (1 if schedule else 0)


def test_an_uplink_that_fails_midway_costs_that_client_the_round_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fading(EmulatedRadio):
        """board-2's amplifier fails after its sounding of round 0 and is back in round 1."""

        bursts = 0

        async def transmit(self, samples: np.ndarray, *rest: Any, **named: Any) -> None:
            if self._connection._port == "board-2" and samples.shape[1] > SLOT_SAMPLES // 2:
                Fading.bursts += 1
                if Fading.bursts <= 5:
                    samples = 0 * samples
            await super().transmit(samples, *rest, **named)

    monkeypatch.setattr(testbed.memory_nodes, "EmulatedRadio", Fading)
    result, run = run_in_memory(small("link.stall_frames=4"), tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 2)
    first, second = run.of_kind("round")
    assert any("nothing of board-2 decoded in 4 frames" in words for words in first["words"])
    assert second["words"] == []
    losses = Counter((event["round"], event["client"]) for event in run.of_kind("loss"))
    assert losses == {(0, "board-1"): 1, (1, "board-1"): 1, (1, "board-2"): 1}


# ---------------------------------------------------------------------------------- what repeats
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, plain: tuple[RunResult, Run]
) -> None:
    _, again = run_in_memory(small(), tmp_path / "again")
    _, other = run_in_memory(small(seed=2), tmp_path / "other")
    assert events_of(again) == events_of(plain[1])
    assert checkpoint_bytes(again.directory) == checkpoint_bytes(plain[1].directory)
    assert set(checkpoint_bytes(again.directory)) == {
        f"{n}.safetensors" for n in ("board-1", "board-2", "server")
    }
    assert events_of(other) != events_of(again)
    assert checkpoint_bytes(other.directory) != checkpoint_bytes(again.directory)


def test_psl_is_epsl_with_phi_zero(tmp_path: Path, plain: tuple[RunResult, Run]) -> None:
    _, psl = run_in_memory(small("learning.scheme=psl", "learning.phi=1"), tmp_path / "psl")
    _, epsl = run_in_memory(small("learning.phi=0"), tmp_path / "epsl")
    assert events_of(psl) == events_of(epsl)
    assert checkpoint_bytes(psl.directory) == checkpoint_bytes(epsl.directory)
    assert events_of(psl) != events_of(plain[1])


@pytest.mark.parametrize(
    ("phi", "streams"),
    [(0.0, {"unicast": 4}), (0.5, {"broadcast": 2, "unicast": 4}), (1.0, {"broadcast": 2})],
)
def test_phi_decides_what_is_broadcast_and_what_is_sent_to_each(
    tmp_path: Path, phi: float, streams: dict[str, int]
) -> None:
    """Without merging nothing is common; with everything merged nothing is anyone's own."""
    result, run = run_in_memory(small(f"learning.phi={phi}"), tmp_path / "run")
    assert result.exit_code == 0
    assert Counter(sent["stream"] for sent in run.of_kind("transmission")) == {"uplink": 4, **streams}
    broadcast = [sent for sent in run.of_kind("transmission") if sent["stream"] == "broadcast"]
    assert all(sent["receivers"] == ["board-1", "board-2"] for sent in broadcast)


# ------------------------------------------------------------------------------------- cut moves
def test_the_cut_moves_over_the_air_deeper_without_a_trace_and_shallower_on_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[tuple[int, int, float, float]] = []
    move = Rounds._move_cut

    async def watched(self: Rounds, round_index: int, decision: Decision) -> int:
        async def loss() -> float:
            _, outcome = await evaluate(self._state, "validation", decision.clients)
            assert outcome is not None
            return float(np.mean(outcome.loss))

        previous, before = self._state.cut, await loss()
        taken_ns = await move(self, round_index, decision)
        losses.append((previous, self._state.cut, before, await loss()))
        return taken_ns

    monkeypatch.setattr(Rounds, "_move_cut", watched)
    config = small("model.cut_layer=1", "model.cut_schedule={1: 3, 2: 1}", "data.partition=labels", rounds=3)
    result, run = run_in_memory(config, tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 3)
    assert [event["cut_layer"] for event in run.of_kind("round")] == [1, 3, 1]
    (_, _, before, after), (_, _, diverged, merged) = losses
    assert [entry[:2] for entry in losses] == [(1, 3), (3, 1)]
    assert before == after
    assert diverged != merged
    deeper, shallower = run.of_kind("cut-move")
    assert (deeper["from"], deeper["to"], shallower["from"], shallower["to"]) == (1, 3, 3, 1)
    assert (shallower["validation_loss_before"], shallower["validation_loss_after"]) == (diverged, merged)
    # Both crossed the air, at a cost that the clock shows.
    moved = [sent for sent in run.of_kind("transmission") if sent["stream"] == "cut-move"]
    assert moved[0]["node"] == "server"
    assert sorted(sent["node"] for sent in moved[1:]) == ["board-1", "board-2"]
    assert all(sent["airtime_ns"] > 0 and sent["complete"] for sent in moved)
    assert deeper["latency_ns"] > moved[0]["airtime_ns"]
    assert shallower["latency_ns"] > max(sent["airtime_ns"] for sent in moved[1:])


# ---------------------------------------------------------------------------------- other set-ups
@pytest.mark.parametrize("partition", ["labels", "dirichlet"])
def test_unequal_clients_train_together(tmp_path: Path, partition: str) -> None:
    config = small(
        f"data.partition={partition}",
        "data.dirichlet_alpha=0.2",
        "data.labels_per_client=3",
        "learning.weighted=true",
        num_boards=3,
    )
    result, run = run_in_memory(config, tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 2)
    sizes = {event["node"]: event["num_samples"] for event in run.of_kind("joined")}
    assert len({sizes[f"board-{number}"] for number in (1, 2, 3)}) > 1
    assert all(event["words"] == [] for event in run.of_kind("round"))


def test_on_wall_time_in_slow_motion_the_same_facts_hold(tmp_path: Path) -> None:
    """Experiment time passes on the wall, a declared number of times slower."""
    slow_motion = 30.0
    config = small("lab.clock.kind=wall", f"lab.clock.slow_motion={slow_motion}", rounds=1)
    result, run = run_in_memory(config, tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 1), result.words
    assert run.of_kind("round")[0]["words"] == []
    assert (run.start["clock"], run.start["slow_motion"]) == ("wall", slow_motion)
    assert len(run.of_kind("loss")) == 2
    assert result.wall_s > result.mean_round_latency_s * slow_motion
    for span in run.of_kind("span"):
        assert span["start_ns"] <= span["end_ns"] <= result.experiment_s * 1e9


def test_the_record_of_a_run_is_in_order_and_complete(plain: tuple[RunResult, Run]) -> None:
    result, run = plain
    assert run.torn_lines == 0
    for index in range(2):
        phases = {span["phase"] for span in run.of_kind("span") if span["round"] == index}
        assert phases >= {"client-forward", "uplink", "server-forward", "server-backward", "client-backward"}
        assert {link["receiver"] for link in run.of_kind("link") if link["round"] == index} == {
            "server",
            "board-1",
            "board-2",
        }
    ends = [event["at_ns"] for event in run.of_kind("round")]
    assert ends == sorted(ends)
    assert sum(event["latency_ns"] for event in run.of_kind("round")) / 2e9 == pytest.approx(
        result.mean_round_latency_s
    )
    assert run.stop is not None
    assert run.stop["reason"] == "finished"
    assert run.stop["test_accuracy"] == result.test_accuracy
    assert {entry["kind"] for entry in run.operations} >= {"joined", "bulk", "round", "checkpoint", "stopped"}


# ------------------------------------------------------------------------------------- bad days
def test_a_node_that_fails_in_a_way_nobody_foresaw_ends_the_run_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Any, *unused: Any) -> None:
        raise RuntimeError("the board's disk is on fire")

    monkeypatch.setattr(nodes.server_role.ServerRole, "round", broken)
    result, run = run_in_memory(small(), tmp_path / "run")
    assert result.exit_code == ExitCode.NODE
    assert "the board's disk is on fire" in result.words
    assert run.stop is not None
    assert {event["node"] for event in run.of_kind("node-failure")} >= {"server"}


def test_a_disk_that_fills_up_ends_the_run_as_a_storage_failure(tmp_path: Path) -> None:
    """Whatever still fits is whole; nothing hangs and no node is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(StorageError, match=r"events\.jsonl cannot be written"):
            run_in_memory(small(rounds=5), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = read_run(tmp_path / "run")
    assert run.torn_lines == 0
    assert run.of_kind("round")
    assert run.stop is not None
    assert run.stop["exit_code"] == ExitCode.STORAGE
    assert "events.jsonl cannot be written" in run.stop["words"]


def test_a_cut_layer_that_the_model_lacks_ends_the_run_before_anything_is_sent(tmp_path: Path) -> None:
    result, run = run_in_memory(small("model.cut_layer=40"), tmp_path / "run")
    assert result.exit_code == ExitCode.NODE
    assert "cut layer 40" in result.words
    assert run.of_kind("link") == []


def test_words_of_a_good_run_are_few(plain: tuple[RunResult, Run]) -> None:
    assert words_of(*plain) == "all 2 rounds were run"
