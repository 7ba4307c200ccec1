"""What the parts of the engine share while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from radio.units import seconds_to_ns
from testbed.config.loader import ResolvedConfig
from testbed.controller import Controller
from testbed.errors import NodeError, RadioError
from testbed.launch import ProcessUsage, RunningLab
from testbed.notes import Notes
from testbed.planner import Planner
from testbed.record import RunWriter
from testbed.scenario import ResolvedScenario


class NothingArrivedError(RadioError):
    """A whole round in which no client's smashed data came through the air."""


class LinkBudgetError(RadioError):
    """What was measured of the links leaves no way to get the clients' data through."""


@dataclass
class RunState:
    """One run as it stands now.

    Attributes
    ----------
    now_ns
        Experiment time up to which everything has happened.
    in_step
        Clients whose submodel has the present cut.
    trained_once
        Clients that took part in a round.
    total_s
        Latency of each round so far, cut moves and joining boards before it included [s].
    departed
        What boards that left by their own will had cost.
    """

    run: str
    config: ResolvedConfig
    lab: RunningLab
    writer: RunWriter
    notes: Notes
    scenario: ResolvedScenario
    status: Callable[[str], None]
    controller_or_none: Controller | None = None
    planner_or_none: Planner | None = None
    now_ns: int = 0
    epoch_ns: int = 0
    cut: int = 0
    in_step: set[str] = field(default_factory=set)
    rounds_done: int = 0
    trained_once: set[str] = field(default_factory=set)
    total_s: list[float] = field(default_factory=list)
    departed: list[ProcessUsage] = field(default_factory=list)

    def __post_init__(self) -> None:
        lab = self.config.lab
        self.clients = tuple(board.name for board in lab.boards)
        self.server = lab.server.name
        self.names = (*self.clients, self.server)
        self.control_latency_ns = seconds_to_ns(lab.control.latency_s)

    @property
    def planner(self) -> Planner:
        assert self.planner_or_none is not None, "boards have joined before anything is planned"
        return self.planner_or_none

    @property
    def control(self) -> Controller:
        assert self.controller_or_none is not None, "the lab is open before anybody is asked"
        return self.controller_or_none

    def catch_up(self) -> int:
        """Experiment time [ns]; on wall time it has gone on while the controller was at work."""
        clock = self.config.lab.clock
        if clock.kind == "wall":
            passed_ns = int((time.monotonic_ns() - self.epoch_ns) / clock.slow_motion)
            self.now_ns = max(self.now_ns, passed_ns)
        return self.now_ns

    def trained(self) -> tuple[str, ...]:
        """Clients whose submodels take part in training, for evaluation."""
        members = self.control.present & self.in_step & self.trained_once
        return tuple(name for name in self.clients if name in members)

    def present_clients(self) -> tuple[str, ...]:
        """Boards that are there, heard or not, in the lab's order."""
        return tuple(name for name in self.clients if name in self.control.present)

    def heard(self) -> tuple[str, ...]:
        """Clients that take part: present, and heard in a sounding.

        Raises
        ------
        NothingArrivedError
            There is none.
        """
        heard = self.planner.estimates.heard
        present = tuple(name for name in self.present_clients() if name in heard)
        if not present:
            raise NothingArrivedError(
                "nothing arrived over the air: the server heard no client's sounding; are ports muted "
                "(lab.radio.muted), or is every path loss beyond the link budget?"
            )
        return present


def require(answers: dict[str, Any]) -> None:
    """Raise ``NodeError`` for the first answer that is none."""
    for name, answer in answers.items():
        if isinstance(answer, Exception):
            raise NodeError(f"{name} could not do its part: {answer}") from answer
