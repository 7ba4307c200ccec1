"""What the controller says to its nodes and waits for: join, ask, notice who is gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

from nodes.errors import NodeError as NodesRoomError
from nodes.errors import PeerLostError
from nodes.messages import (
    Abort,
    Body,
    Envelope,
    Failure,
    Heartbeat,
    Hello,
    NodeSetup,
    PeerLost,
    Ready,
    Stop,
    Stopped,
    Welcome,
)
from nodes.transport.endpoint import Endpoint
from testbed.errors import NodeError
from testbed.launch import RunningLab, require_node

Answer = TypeVar("Answer")
WATCH_INTERVAL_S = 0.25
LAST_WORDS_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 3600.0  # heartbeats end a wait long before; this one has none left to explain it


class NodeFailedError(NodeError):
    """A node reported that it could not do what it was asked."""


class Controller:
    """The controller's end of the control plane.

    Parameters
    ----------
    names
        Every node of the lab, those that join later among them.
    on_lost
        Called with (node, reason) once for each node that is detached.

    Attributes
    ----------
    present
        Nodes that take part now.
    lost
        Reason by node that was detached because it failed; "air" may be among them.
    dismissed
        Words by node that was told to stop while the run goes on, or that did not join in time.
    """

    def __init__(
        self,
        lab: RunningLab,
        run: str,
        names: tuple[str, ...],
        server: str,
        timeout_s: float,
        heartbeat_s: float,
        on_lost: Callable[[str, str], None],
        on_refused: Callable[[str, str], None],
    ) -> None:
        self.endpoint = Endpoint(lab.wire, run, on_refused)
        self.names = names
        self.present: set[str] = set()
        self.lost: dict[str, str] = {}
        self.dismissed: dict[str, str] = {}
        self._lab = lab
        self._server = server
        self._timeout_s = timeout_s
        self._heartbeat_s = heartbeat_s
        self._on_lost = on_lost
        self._greeted: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def welcome_all(
        self,
        setup_of: Callable[[str], NodeSetup],
        timeout_s: float,
        names: tuple[str, ...] | None = None,
    ) -> tuple[dict[str, Hello], dict[str, Ready]]:
        """Wait until every node has said hello and is ready; from then on they are watched.

        Parameters
        ----------
        names
            Those with whom the run begins; ``None``: all of the lab.

        Raises
        ------
        NodeError
            Some did not come; they are named.
        """
        # From now on: who joined first may have to wait long for the last.
        self._tasks.append(asyncio.create_task(self._beat(), name="heartbeats"))
        hellos, ready = await self._admit(self.names if names is None else names, setup_of, timeout_s)
        self._tasks.append(asyncio.create_task(self._watch(), name="liveness"))
        return hellos, ready

    async def welcome(
        self, names: tuple[str, ...], setup_of: Callable[[str], NodeSetup], timeout_s: float
    ) -> tuple[dict[str, Hello], dict[str, Ready]]:
        """Let nodes in while the run goes on, whether they have said hello before or will.

        Raises
        ------
        NodeError
            Some did not come, are no nodes of the lab or had their turn; they are named.  Then none
            of them takes part: those that came are told to stop.
        """
        for name in names:
            require_node(self.names, name)
            if name in self.present:
                raise NodeError(f"{name} takes part already")
            if name in self.lost or name in self.dismissed:
                words = self.lost.get(name) or self.dismissed[name]
                raise NodeError(f"{name} has left this run ({words}) and cannot come back to it")
        try:
            return await self._admit(names, setup_of, timeout_s)
        except NodeError:
            for name in names:
                await self._give_up(name)
            raise

    async def _admit(
        self, names: tuple[str, ...], setup_of: Callable[[str], NodeSetup], timeout_s: float
    ) -> tuple[dict[str, Hello], dict[str, Ready]]:
        """Hello, welcome and ready of each, in any order among them."""
        hellos: dict[str, Hello] = {}
        ready: dict[str, Ready] = {}

        async def admit(name: str) -> None:
            hello, _ = await self.endpoint.take(Hello, name, timeout_s=ANSWER_TIMEOUT_S, what="hello")
            # A node says it again until it is welcomed, and may have been started anew meanwhile.
            hellos[name] = [hello, *self.endpoint.drain(Hello, name)][-1]
            self._greeted.add(name)
            await self.endpoint.send(name, Welcome(setup_of(name)))
            ready[name], _ = await self._answer(name, Ready)

        deadline = time.monotonic() + timeout_s
        tasks = {name: asyncio.create_task(admit(name), name=f"welcome to {name}") for name in names}
        try:
            # Until a node is ready, silence means that it loads; its process ending means that it is gone.
            while missing := [name for name in names if not tasks[name].done()]:
                self._refuse_the_dead(missing)
                waiting = [tasks[name] for name in missing]
                await asyncio.wait(waiting, timeout=WATCH_INTERVAL_S * 4, return_when=asyncio.FIRST_COMPLETED)
                for task in waiting:
                    if task.done():
                        task.result()
                if time.monotonic() > deadline:
                    self._refuse_the_late([name for name in names if name not in ready], hellos, timeout_s)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        self.present.update(names)
        return {name: hellos[name] for name in names}, {name: ready[name] for name in names}

    def _refuse_the_late(self, late: list[str], hellos: dict[str, Hello], timeout_s: float) -> None:
        absent = [name for name in late if name not in hellos]
        if absent:
            raise NodeError(
                f"waited {timeout_s:.0f} s for {', '.join(sorted(absent))} to join; on the board run: "
                f"testbed node --name NAME --controller {getattr(self._lab.wire, 'endpoint', '')}"
            )
        if late:
            raise NodeError(f"waited {timeout_s:.0f} s for {', '.join(late)} to load data and model")

    async def _give_up(self, name: str) -> None:
        """Whoever comes too late to join is told so, and is not waited for any more."""
        words = "it did not join in time"
        if name in self._greeted:
            await self.tell(name, Stop(words))
        await self._part_with(name, words)
        await self._lab.detach(name)

    async def dismiss(self, name: str, words: str, timeout_s: float = LAST_WORDS_TIMEOUT_S) -> Stopped | None:
        """Let a board leave while the run goes on; its last words, if they came in time.

        It is told to stop, and is not lost: nobody waits for it any more.

        Raises
        ------
        NodeError
            It is the server, without which nothing goes on.
        """
        if name == self._server:
            raise NodeError(f"{name} is the server: the run ends with it, it cannot leave")
        if name not in self.present:
            return None
        self.present.discard(name)  # before it is told, or its end would look like a failure
        stopped: Stopped | None = None
        # It may hang or have ended: that it leaves was settled before.
        if name not in self._lab.gone():
            with contextlib.suppress(NodesRoomError, NodeFailedError):
                await self.tell(name, Stop(words))
                stopped, _ = await self._answer(name, Stopped, timeout_s)
        await self._part_with(name, words)
        if stopped is None:
            await self._lab.detach(name)
        return stopped

    async def _part_with(self, name: str, words: str) -> None:
        """From now on nobody waits for a node that is not lost."""
        self._greeted.discard(name)
        self.dismissed[name] = words
        self.endpoint.lose(name, words)
        await self._lab.dismiss(name)
        for other in sorted(self.present):
            await self.endpoint.send(other, PeerLost(name, words))

    def _refuse_the_dead(self, missing: list[str]) -> None:
        for name, reason in self._lab.gone().items():
            if name in missing or name == "air":
                raise NodeError(f"{name} did not join: {reason}")

    async def tell(self, name: str, body: Body, *, round_index: int = -1, at_ns: int = 0) -> None:
        """Send one message."""
        await self.endpoint.send(name, body, round_index=round_index, at_ns=at_ns)

    async def ask(
        self, name: str, body: Body, answer: type[Answer], *, round_index: int = -1, at_ns: int = 0
    ) -> Answer:
        """Send a command and wait for its answer.

        Raises
        ------
        NodeFailedError, PeerLostError
        """
        await self.tell(name, body, round_index=round_index, at_ns=at_ns)
        result, _ = await self._answer(name, answer)
        return result

    async def ask_all(
        self,
        bodies: dict[str, Body],
        answer: type[Answer],
        *,
        round_index: int = -1,
        at_ns: int = 0,
    ) -> dict[str, Answer | NodesRoomError | NodeFailedError]:
        """Send commands to several nodes; by node its answer, or why there is none."""
        for name, body in bodies.items():
            await self.tell(name, body, round_index=round_index, at_ns=at_ns)
        tasks = {name: asyncio.create_task(self._answer(name, answer)) for name in bodies}
        open_tasks = set(tasks.values())
        try:
            while open_tasks:
                done, open_tasks = await asyncio.wait(open_tasks, return_when=asyncio.FIRST_COMPLETED)
                failed = [task.exception() for task in done if isinstance(task.exception(), NodeFailedError)]
                if failed:
                    await self._abort(tasks, bodies, round_index, str(failed[0]))
        finally:
            for task in open_tasks:
                task.cancel()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        answers: dict[str, Answer | NodesRoomError | NodeFailedError] = {}
        for name, result in zip(bodies, results, strict=True):
            if isinstance(result, NodesRoomError | NodeFailedError):
                answers[name] = result
            elif isinstance(result, BaseException):
                raise result
            else:
                answers[name] = result[0]
        return answers

    async def _abort(
        self,
        tasks: dict[str, asyncio.Task[tuple[Answer, Envelope]]],
        bodies: dict[str, Body],
        round_index: int,
        words: str,
    ) -> None:
        """A node failed in a way that it did not foresee: the others must not wait for it."""
        for name, task in tasks.items():
            if not task.done() and name in self.present:
                command = type(bodies[name]).__name__
                await self.tell(name, Abort(command, words), round_index=round_index)

    async def _answer(
        self, name: str, kind: type[Answer], timeout_s: float = ANSWER_TIMEOUT_S
    ) -> tuple[Answer, Envelope]:
        kinds: tuple[type, ...] = (kind, Failure)
        body: object
        body, envelope = await self.endpoint.take(kinds, name, timeout_s=timeout_s, what=kind.__name__)
        if isinstance(body, Failure):
            raise NodeFailedError(f"{name}: {body.words} ({body.kind})")
        assert isinstance(body, kind)
        return body, envelope

    async def _beat(self) -> None:
        """Say to everyone who was welcomed that the controller lives."""
        while True:
            for name in sorted(self._greeted):
                await self.endpoint.send(name, Heartbeat())
            await asyncio.sleep(self._heartbeat_s)

    async def _watch(self) -> None:
        """Detach who is silent or gone."""
        while True:
            gone = self._lab.gone()
            for name in sorted(self.present):
                if name not in self.present:
                    continue  # it left while another was detached
                silence_s = self._lab.silence_s(name)
                if name in gone:
                    await self._detach(name, gone[name])
                elif silence_s is not None and silence_s > self._timeout_s:
                    await self._detach(name, f"silent for {silence_s:.1f} s")
            if "air" in gone and "air" not in self.lost:
                self.lost["air"] = gone["air"]
                self._on_lost("air", gone["air"])
                for name in sorted(self.present):
                    self.endpoint.lose(name, f"the air is gone: {gone['air']}")
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _detach(self, name: str, reason: str) -> None:
        self.present.discard(name)
        self._greeted.discard(name)
        self.lost[name] = reason
        self._on_lost(name, reason)
        self.endpoint.lose(name, reason)
        await self._lab.detach(name)
        for other in sorted(self.present):
            await self.endpoint.send(other, PeerLost(name, reason))
        if name == self._server:
            for other in sorted(self.present):
                self.endpoint.lose(other, f"the server is lost ({reason}), so its round cannot end")

    async def stop_watching(self) -> None:
        """From now on nodes may fall silent: they were told to stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def close(self) -> None:
        """Stop watching and give the endpoint back."""
        await self.stop_watching()
        await self.endpoint.close()


__all__ = ["Controller", "NodeFailedError", "PeerLostError"]
