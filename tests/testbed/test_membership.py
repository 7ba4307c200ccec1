"""Boards that come and go while a run goes on, and rounds that the air is told of.

Every fact is tried with nodes as tasks of one event loop and as processes of their own, spoken to
by the controller alone: no engine, no plans, grants written by hand.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from nodes.agent import HELLO_INTERVAL_S
from nodes.messages import (
    ClientGrant,
    Configure,
    Hello,
    Ready,
    RoundGrant,
    RoundReport,
    RoundStart,
    SoundingReport,
    SoundingStart,
    Stop,
    Stopped,
    WeightsDone,
    WeightsInstall,
    WeightsWanted,
)
from radio.units import dbm_to_watt, seconds_to_ns
from testbed.config.loader import ResolvedConfig
from testbed.controller import Controller
from testbed.errors import ExitCode, NodeError, RadioError, exit_code
from testbed.launch import InMemoryLab, ProcessLab
from testbed.specs import air_setup, node_setup, numerology_of
from tests.testbed.experiments import BATCH_SIZE, small

JOIN_TIMEOUT_S = 60.0
LATENCY_NS = 1_000_000
CUT = 1
BOTH = pytest.mark.parametrize("kind", ["memory", "processes"])


class Crew:
    """A lab and its controller, and what an engine would say to them."""

    def __init__(self, config: ResolvedConfig, kind: str) -> None:
        self.config = config
        self.numerology = numerology_of(config.experiment)
        self.boards = tuple(board.name for board in config.lab.boards)
        self.server = config.lab.server.name
        self.names = (*self.boards, self.server)
        self.refused: list[tuple[str, str]] = []
        self.lost: list[tuple[str, str]] = []
        air = air_setup(config.experiment, config.lab)
        self.lab: ProcessLab | InMemoryLab
        if kind == "memory":
            self.lab = InMemoryLab(air, self.names)
        else:
            self.lab = ProcessLab(
                air, config.lab.control.bind, self.names, lambda *why: self.refused.append(why)
            )
        self.controller: Controller
        self.now_ns = 0
        self._psd = {
            board.name: float(dbm_to_watt(board.max_power_dbm))
            / (self.numerology.num_subchannels * self.numerology.subchannel_bandwidth_hz)
            for board in config.lab.boards
        }
        self._downlink = float(dbm_to_watt(config.lab.server.downlink_psd_dbm_per_hz))

    def setup_of(self, name: str) -> object:
        config = self.config
        return node_setup(config.experiment, config.lab, name, "run-1", self.lab.air_endpoint, 0)

    async def start(self, *boards: str) -> tuple[dict[str, Hello], dict[str, Ready]]:
        await self.lab.open()
        control = self.config.lab.control
        self.controller = Controller(
            self.lab,
            "run-1",
            self.names,
            self.server,
            control.timeout_s,
            control.heartbeat_s,
            lambda *why: self.lost.append(why),
            lambda *why: self.refused.append(why),
        )
        names = (*boards, self.server)
        await self.lab.start_nodes(names)
        return await self.controller.welcome_all(self.setup_of, JOIN_TIMEOUT_S, names)  # type: ignore[arg-type]

    async def join(self, name: str) -> Ready:
        await self.lab.start_nodes((name,))
        return (await self.welcome(name))[1][name]

    async def welcome(
        self, *names: str, timeout_s: float = JOIN_TIMEOUT_S
    ) -> tuple[dict[str, Hello], dict[str, Ready]]:
        return await self.controller.welcome(names, self.setup_of, timeout_s)  # type: ignore[arg-type]

    async def begin(self, round_index: int) -> None:
        slot = self.numerology.next_slot(self.now_ns + LATENCY_NS)
        await self.lab.begin_round(round_index, slot * self.numerology.slot_samples)

    async def sound(self, *boards: str) -> dict[str, SoundingReport]:
        """One sounding of these boards."""
        start_ns = self.now_ns + LATENCY_NS
        powers = tuple(self._psd[name] for name in boards)
        command = SoundingStart(start_ns, self._downlink, boards, powers)
        commands = dict.fromkeys((*boards, self.server), command)
        reports = await self.controller.ask_all(commands, SoundingReport, at_ns=start_ns)
        found = {}
        for name, report in reports.items():
            assert isinstance(report, SoundingReport), report
            found[name] = report
            self.now_ns = max(self.now_ns, report.end_ns + LATENCY_NS)
        return found

    async def settle(self, *boards: str) -> None:
        """Soundings until all receivers have their gain; then these boards have a submodel."""
        for _ in range(8):
            reports = await self.sound(*boards)
            if all(report.gain_settled for report in reports.values()):
                return
        raise AssertionError("gains do not settle")

    async def give_submodel(self, *boards: str) -> None:
        for name in boards:
            purpose = f"start/{self.now_ns}/{name}"
            await self.controller.ask(name, Configure(CUT), WeightsDone)
            await self.controller.ask(self.server, WeightsWanted(name, purpose), WeightsDone)
            await self.controller.ask(name, WeightsInstall(purpose), WeightsDone)

    async def round(self, round_index: int, *boards: str) -> dict[str, RoundReport]:
        """A round of these boards; every one of them must have come through."""
        await self.begin(round_index)
        start_ns = self.now_ns + LATENCY_NS
        share = self.numerology.num_subchannels // len(boards)
        clients = tuple(
            ClientGrant(
                name,
                BATCH_SIZE,
                tuple(range(share * i, share * (i + 1))),
                (self._psd[name],) * share,
                self._psd[name],
            )
            for i, name in enumerate(boards)
        )
        deadline_ns = start_ns + seconds_to_ns(10.0)
        grant = RoundGrant(start_ns, deadline_ns, CUT, CUT, self._downlink, clients)
        reports = await self.controller.ask_all(
            dict.fromkeys((*boards, self.server), RoundStart(grant)),
            RoundReport,
            round_index=round_index,
            at_ns=start_ns,
        )
        found = {}
        for name, report in reports.items():
            assert isinstance(report, RoundReport), report
            assert report.complete, report.words
            found[name] = report
            self.now_ns = max(self.now_ns, report.end_ns + LATENCY_NS)
        assert {entry.client for entry in found[self.server].losses} == set(boards)
        return found

    async def begin_training(self, *boards: str) -> None:
        """Start with these boards, up to their first round."""
        await self.start(*boards)
        await self.settle(*boards)
        await self.controller.ask(self.server, Configure(CUT), WeightsDone)
        await self.give_submodel(*boards)

    async def close(self) -> None:
        if hasattr(self, "controller"):
            await self.controller.stop_watching()  # or who stops first would be lost to the others
            for name in sorted(self.controller.present):
                await self.controller.tell(name, Stop("the end"))
                await self.controller.endpoint.take(Stopped, name, timeout_s=10.0)
            await self.controller.close()
        await self.lab.close()


def play(kind: str, scene: Callable[[Crew], Awaitable[None]], config: ResolvedConfig) -> Crew:
    """Play a scene with a lab that is closed behind it, whatever happens."""

    @asynccontextmanager
    async def crew() -> AsyncIterator[Crew]:
        one = Crew(config, kind)
        try:
            yield one
        finally:
            await one.close()

    async def run() -> Crew:
        async with crew() as one:
            await scene(one)
            return one

    return asyncio.run(run())


def lab_of(num_boards: int = 2, *overrides: str, rounds: int = 20) -> ResolvedConfig:
    return small("lab.control.heartbeat_s=0.2", *overrides, num_boards=num_boards, rounds=rounds)


# ------------------------------------------------------------------------------------ come and go
@BOTH
def test_a_board_joins_late_and_another_leaves(kind: str) -> None:
    async def scene(crew: Crew) -> None:
        await crew.begin_training("board-1")
        controller = crew.controller
        assert controller.present == {"board-1", "server"}
        await crew.round(0, "board-1")

        ready = await crew.join("board-2")
        assert ready.num_samples > BATCH_SIZE
        assert controller.present == {"board-1", "board-2", "server"}
        await crew.settle("board-1", "board-2")
        heard = {link.transmitter for link in (await crew.sound("board-1", "board-2"))["server"].links}
        assert heard == {"board-1", "board-2"}
        await crew.give_submodel("board-2")
        await crew.round(1, "board-1", "board-2")

        stopped = await controller.dismiss("board-1", "board-1 goes home")
        assert isinstance(stopped, Stopped)
        assert stopped.process_cpu_s > 0
        assert controller.present == {"board-2", "server"}
        assert controller.dismissed == {"board-1": "board-1 goes home"}
        assert await controller.dismiss("board-1", "again") is None
        # The air has its port no more: nobody waits for it, in two rounds of the others.
        await crew.round(2, "board-2")
        await crew.sound("board-2")
        await crew.round(3, "board-2")
        assert crew.lab.gone() == {}
        assert controller.lost == {}

    crew = play(kind, scene, lab_of())
    assert crew.lost == []
    assert crew.refused == []


@BOTH
def test_a_hello_that_waited_is_heard_when_its_time_comes(kind: str) -> None:
    async def scene(crew: Crew) -> None:
        await crew.begin_training("board-1")
        await crew.lab.start_nodes(("board-3", "board-2"))
        await crew.controller.endpoint.take(Hello, "board-2", timeout_s=JOIN_TIMEOUT_S)
        await crew.round(0, "board-1")
        deadline = time.monotonic() + 1.5 * HELLO_INTERVAL_S
        while time.monotonic() < deadline:  # until board-2 has said it again, and nobody looked
            await crew.sound("board-1")
        hellos, ready = await crew.welcome("board-2", "board-3")
        assert list(hellos) == list(ready) == ["board-2", "board-3"]
        assert crew.controller.endpoint.drain(Hello, "board-2") in ([], [hellos["board-2"]])
        if isinstance(crew.lab, ProcessLab):
            assert {name: hello.pid for name, hello in hellos.items()} == {
                name: crew.lab.pids[name] for name in hellos
            }
        await crew.settle("board-1", "board-2", "board-3")
        await crew.give_submodel("board-2", "board-3")
        await crew.round(1, "board-1", "board-2", "board-3")

    assert play(kind, scene, lab_of(3)).lost == []


@BOTH
def test_who_does_not_come_is_named_and_the_others_go_on(kind: str) -> None:
    async def scene(crew: Crew) -> None:
        await crew.begin_training("board-1")
        await crew.lab.start_nodes(("board-2",))
        with pytest.raises(
            NodeError, match=r"waited 3 s for (board-2, )?board-3 to join; on the board run: "
        ):
            await crew.welcome("board-2", "board-3", timeout_s=3.0)
        assert crew.controller.present == {"board-1", "server"}
        assert set(crew.controller.dismissed) == {"board-2", "board-3"}
        await crew.round(0, "board-1")
        assert crew.lab.gone() == {}

    assert play(kind, scene, lab_of(3)).lost == []


@BOTH
def test_what_cannot_be_is_refused_in_words(kind: str) -> None:
    async def scene(crew: Crew) -> None:
        await crew.start("board-1", "board-2")
        with pytest.raises(NodeError, match="board-1 was started before; a node runs once"):
            await crew.lab.start_nodes(("board-1",))
        with pytest.raises(NodeError, match="board-1 takes part already"):
            await crew.welcome("board-1")
        with pytest.raises(NodeError, match="'nobody' is no node of this lab; nodes are: board-1, board-2"):
            await crew.welcome("nobody")
        with pytest.raises(NodeError, match="server is the server: the run ends with it"):
            await crew.controller.dismiss("server", "tired")
        await crew.controller.dismiss("board-2", "enough")
        with pytest.raises(NodeError, match=r"board-2 has left this run \(enough\) and cannot come back"):
            await crew.welcome("board-2")
        # To ask who has left ends at once, and not after an hour.
        with pytest.raises(Exception, match="board-2 is lost: enough"):
            await crew.controller.ask("board-2", Configure(CUT), WeightsDone)

    play(kind, scene, lab_of())


@pytest.mark.parametrize(("kind", "hangs"), [("memory", False), ("processes", False), ("processes", True)])
def test_neither_air_nor_server_waits_for_a_board_that_leaves(kind: str, hangs: bool) -> None:
    """A sounding in which it was expected ends without it, also if it cannot take its radio along."""

    async def scene(crew: Crew) -> None:
        await crew.begin_training("board-1", "board-2")
        if hangs:
            assert isinstance(crew.lab, ProcessLab)
            os.kill(crew.lab.pids["board-2"], signal.SIGSTOP)
        start_ns = crew.now_ns + LATENCY_NS
        powers = tuple(crew._psd[name] for name in ("board-1", "board-2"))
        command = SoundingStart(start_ns, crew._downlink, ("board-1", "board-2"), powers)
        # The server and board-1 sound; board-2 is never told to, and leaves instead.
        sounding = asyncio.create_task(
            crew.controller.ask_all(dict.fromkeys(("board-1", "server"), command), SoundingReport)
        )
        stopped = await crew.controller.dismiss("board-2", "goes home", 0.5 if hangs else 5.0)
        assert (stopped is None) == hangs
        reports = await asyncio.wait_for(sounding, 30.0)
        server = reports["server"]
        assert isinstance(server, SoundingReport)
        assert {link.transmitter: link.detected for link in server.links} == {
            "board-1": True,
            "board-2": False,
        }

    play(kind, scene, lab_of())


def test_a_late_joiner_is_watched_and_kept_alive() -> None:
    """Heartbeats reach it for longer than it would live without, and its death is noticed."""

    async def scene(crew: Crew) -> None:
        await crew.begin_training("board-1")
        await crew.join("board-2")
        assert isinstance(crew.lab, ProcessLab)
        # A node ends itself after three times the timeout without its controller.
        deadline = time.monotonic() + 4 * crew.config.lab.control.timeout_s
        while time.monotonic() < deadline:
            await crew.sound("board-1")
            assert crew.lab.gone() == {}
        assert crew.controller.present == {"board-1", "board-2", "server"}
        os.kill(crew.lab.pids["board-2"], signal.SIGKILL)
        deadline = time.monotonic() + 10.0
        while not crew.lost and time.monotonic() < deadline:
            await crew.sound("board-1")
        assert crew.lost == [("board-2", "its process ended with exit code -9")]
        assert crew.controller.present == {"board-1", "server"}

    play("processes", scene, lab_of(2, "lab.control.timeout_s=0.5"))


def test_a_board_that_hangs_leaves_without_last_words_and_is_not_lost() -> None:
    async def scene(crew: Crew) -> None:
        await crew.begin_training("board-1", "board-2")
        await crew.round(0, "board-1", "board-2")
        assert isinstance(crew.lab, ProcessLab)
        os.kill(crew.lab.pids["board-2"], signal.SIGSTOP)
        assert await crew.controller.dismiss("board-2", "goes home", timeout_s=0.3) is None
        await crew.round(1, "board-1")
        assert crew.lab.gone() == {}
        assert crew.controller.lost == {}

    assert play("processes", scene, lab_of()).lost == []


def test_who_has_left_is_gone_for_good() -> None:
    """Its process ends by itself while the run goes on, and is reported by nobody."""

    async def scene(crew: Crew) -> None:
        await crew.start("board-1", "board-2")
        assert isinstance(crew.lab, ProcessLab)
        process = crew.lab._processes["board-2"]
        await crew.controller.dismiss("board-2", "goes home")
        await asyncio.to_thread(process.join, 20.0)
        assert process.exitcode == 0
        assert crew.lab.gone() == {}
        await crew.sound("board-1")

    assert play("processes", scene, lab_of()).lost == []


# --------------------------------------------------------------------------------- rounds, and truth
@BOTH
def test_a_round_that_cannot_begin_is_an_error_in_words(kind: str) -> None:
    async def scene(crew: Crew) -> None:
        await crew.begin_training("board-1")
        await crew.lab.begin_round(0, 0)
        await crew.lab.begin_round(0, 0)
        with pytest.raises(
            RadioError, match=r"round 1 cannot begin: .*receivers have been given everything"
        ) as one:
            await crew.lab.begin_round(1, 1)
        assert exit_code(one.value) == ExitCode.RADIO
        await crew.begin(4)
        with pytest.raises(RadioError, match=r"round 3 cannot begin: .* does not follow round 4"):
            await crew.begin(3)
        await crew.round(5, "board-1")

    play(kind, scene, lab_of(1))


def test_rounds_need_an_air_that_lives() -> None:
    async def scene(crew: Crew) -> None:
        with pytest.raises(RadioError, match="round 0 cannot begin: the emulated air has not been started"):
            await crew.lab.begin_round(0, 0)
        await crew.start("board-1")
        assert isinstance(crew.lab, ProcessLab)
        os.kill(crew.lab.pids["air"], signal.SIGKILL)
        with pytest.raises(
            RadioError, match="round 0 cannot begin: the emulated air ended with exit code -9"
        ):
            await crew.lab.begin_round(0, 0)
        crew.controller.present.clear()  # without an air, nobody can say farewell

    play("processes", scene, lab_of(1))


@BOTH
def test_measured_gains_and_spans_follow_the_hidden_truth(kind: str) -> None:
    """A fade of 12 dB is measured as one on both links of its board, a throttle as longer spans."""
    scenario = (
        "{fading: {kind: doppler, doppler_hz: 0},"
        " walks: [{board: board-2, begins: 0.1, ends: 0.4, depth_db: 12}],"
        " throttles: [{board: board-1, begins: 0.4, ends: 0.7, slowdown: 2.5}]}"
    )

    async def scene(crew: Crew) -> None:
        boards = ("board-1", "board-2")
        await crew.begin_training(*boards)
        gains: dict[int, dict[tuple[str, str], float]] = {}
        spans: dict[int, dict[tuple[str, str], int]] = {}
        for index in (0, 2, 5, 9):  # of 10: before, in the fade, in the throttle, behind both
            reports = await crew.round(index, *boards)
            gains[index] = {
                (link.transmitter, link.receiver): 10 * np.log10(np.mean(link.channel_gain))
                for report in reports.values()
                for link in report.links
            }
            spans[index] = {
                (name, span.phase): span.end_ns - span.start_ns
                for name, report in reports.items()
                for span in report.spans
                if span.resource == "processor"
            }
        for ends in gains[0]:
            lost_db = [gains[0][ends] - gains[index][ends] for index in (2, 5, 9)]
            depth_db = 12.0 if "board-2" in ends else 0.0
            assert lost_db == pytest.approx([depth_db, 0.0, 0.0], abs=0.5), ends
        for key, length_ns in spans[0].items():
            factor = 2.5 if key[0] == "board-1" else 1.0
            assert spans[2][key] == spans[9][key] == length_ns
            assert spans[5][key] == pytest.approx(factor * length_ns, abs=2)

    play(kind, scene, lab_of(2, f"lab.scenario={scenario}", rounds=10))


def test_the_same_round_is_the_same_channel_however_long_the_rounds_before() -> None:
    """What makes comparisons of fast and slow policies paired."""
    fading = "lab.scenario={fading: {kind: per_round, correlation: 0.5}}"

    def gains(soundings_per_round: int) -> list[np.ndarray]:
        found = []

        async def scene(crew: Crew) -> None:
            await crew.begin_training("board-1")
            for index in range(4):
                await crew.begin(index)
                for _ in range(soundings_per_round):
                    report = (await crew.sound("board-1"))["server"]
                found.append(np.array(report.links[0].channel_gain))

        rayleigh = "lab.boards.*.channel.fading.rician_k_db=null"
        play("memory", scene, lab_of(1, rayleigh, fading))
        return found

    fast, slow = gains(1), gains(5)
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_allclose(10 * np.log10(one / other), 0.0, atol=0.7)
    moved_db = np.abs(10 * np.log10(np.array(fast[1:]) / np.array(fast[:-1])))
    assert moved_db.max() > 3.0
