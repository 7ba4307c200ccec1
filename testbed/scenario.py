"""What a scenario means for a lab and a number of rounds: the truth of each board, round by round.

A scenario speaks of shares of the run; here they become rounds.  What comes out is hidden truth:
:mod:`testbed.specs` hands it to air and nodes, the engine learns who takes part in which round, and
nothing that estimates, predicts or allocates may look at it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from testbed.config.schema import Change, Lab, Scenario

AnyChange = TypeVar("AnyChange", bound=Change)
MAX_DEPTH_DB = 15.0  # of all walks of a board together
ATTENUATION_DIGITS = 4  # of decibels: what is told to the air stays short


@dataclass(frozen=True)
class BoardTruth:
    """What happens to one board.

    Attributes
    ----------
    attenuation_db
        Extra path loss [dB] by round; beyond its end the last value, empty: none.
    slowdown_by_round
        Factor on its compute times by round, likewise; empty: 1.
    redraw_rounds
        From each of these rounds on its channels are independent realisations.
    first_round, end_round
        It takes part in [first_round, end_round); ``None``: to the end.
    """

    attenuation_db: tuple[float, ...] = ()
    slowdown_by_round: tuple[float, ...] = ()
    redraw_rounds: tuple[int, ...] = ()
    first_round: int = 0
    end_round: int | None = None


@dataclass(frozen=True)
class ResolvedScenario:
    """The truth of each board by name, in the lab's order."""

    boards: Mapping[str, BoardTruth]

    def present(self, round_index: int) -> tuple[str, ...]:
        """Boards that take part in a round, in the lab's order."""
        return tuple(
            name
            for name, truth in self.boards.items()
            if truth.first_round <= round_index and (truth.end_round is None or round_index < truth.end_round)
        )


def round_at(share: float, rounds: int) -> int:
    """The first round of what begins at a share of a run: the nearest boundary between rounds."""
    return math.floor(share * rounds + 0.5)


def position_of(change: Change, lab: Lab) -> int | None:
    """Position in the lab of the board that a change is about; ``None`` if there is none."""
    if change.index is not None:
        return change.index if change.index < len(lab.boards) else None
    names = [board.name for board in lab.boards]
    return names.index(change.board) if change.board in names else None


def resolve_scenario(scenario: Scenario | None, lab: Lab, rounds: int) -> ResolvedScenario:
    """The truth of each board in a run of so many rounds.

    Parameters
    ----------
    scenario
        As checked by :mod:`testbed.config.checks`; ``None``: nothing ever changes.
    """
    truths = {}
    for position, board in enumerate(lab.boards):
        if scenario is None:
            truths[board.name] = BoardTruth()
            continue
        joins = [round_at(change.at, rounds) for change in _of(scenario.joins, position, lab)]
        leaves = [round_at(change.at, rounds) for change in _of(scenario.leaves, position, lab)]
        redraws = {round_at(change.at, rounds) for change in _of(scenario.redraws, position, lab)}
        truths[board.name] = BoardTruth(
            attenuation_db=attenuation_by_round(scenario, lab, position, rounds),
            slowdown_by_round=_slowdown_by_round(scenario, lab, position, rounds),
            redraw_rounds=tuple(sorted(redraws)),
            first_round=max(joins, default=0),
            end_round=min(leaves, default=None),
        )
    return ResolvedScenario(MappingProxyType(truths))


def attenuation_by_round(scenario: Scenario, lab: Lab, position: int, rounds: int) -> tuple[float, ...]:
    """Extra path loss [dB] of a board's channels: the sum of its walks, each at the middle of a round.

    A walk from b to e, in rounds, adds ``depth (1 - cos(2 pi (r + 1/2 - b) / (e - b))) / 2``.
    """
    walks = _of(scenario.walks, position, lab)
    if not walks:
        return ()
    total_db = [0.0] * rounds
    for walk in walks:
        begin, end = walk.begins * rounds, walk.ends * rounds
        for index in range(rounds):
            if begin < index + 0.5 < end:
                along = (index + 0.5 - begin) / (end - begin)
                total_db[index] += walk.depth_db * (1 - math.cos(2 * math.pi * along)) / 2
    return _shortened([round(value, ATTENUATION_DIGITS) for value in total_db], 0.0)


def _slowdown_by_round(scenario: Scenario, lab: Lab, position: int, rounds: int) -> tuple[float, ...]:
    """Factor on a board's compute times; throttles that overlap do not add up, the worse one holds."""
    throttles = _of(scenario.throttles, position, lab)
    if not throttles:
        return ()
    factors = [1.0] * rounds
    for throttle in throttles:
        first = min(round_at(throttle.begins, rounds), rounds - 1)
        for index in range(first, max(round_at(throttle.ends, rounds), first + 1)):
            factors[index] = max(factors[index], throttle.slowdown)
    return _shortened(factors, 1.0)


def _of(changes: tuple[AnyChange, ...], position: int, lab: Lab) -> list[AnyChange]:
    return [change for change in changes if position_of(change, lab) == position]


def _shortened(values: list[float], usual: float) -> tuple[float, ...]:
    """Without the tail in which nothing changes any more; empty if nothing ever does."""
    end = len(values)
    while end > 1 and values[end - 1] == values[end - 2]:
        end -= 1
    return () if values[:end] == [usual] else tuple(values[:end])
