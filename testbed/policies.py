"""How each round's plan comes about: the closed loop, and what it is compared with.

A policy sees estimates only, through a :class:`View`: allocation problems, and what the twin of
:mod:`testbed.latency` expects a plan to take.  The measured lab is the same for all of them, and
so is the modem's adaptation of the MCS from frame to frame.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from testbed import latency
from testbed.allocator.api import allocate
from testbed.allocator.power import optimal_power
from testbed.allocator.problem import AllocationError, InfeasibleError, Plan, Problem, RateModel

KEPT = "kept"


@dataclass(frozen=True)
class Candidate:
    """A plan that was weighed, and the mean latency the twin expects of it [s]."""

    name: str
    plan: Plan
    predicted_s: float


@dataclass(frozen=True)
class Decision:
    """A plan and how it came about.

    Attributes
    ----------
    predicted_s
        Mean latency that the twin expects [s].
    why
        One sentence for people.
    """

    plan: Plan
    clients: tuple[str, ...]
    predicted_s: float
    why: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Tuning:
    """How reluctant the closed loop is.

    Attributes
    ----------
    power_hysteresis, assignment_hysteresis, cut_hysteresis
        Share of the predicted latency that other power, a new assignment, or a new cut must save.
    cut_horizon_rounds
        Rounds over which the cost of moving a cut is spread.
    iterations
        Limit of the optimiser's outer loop; a count and no time, so that runs repeat.
    """

    power_hysteresis: float
    assignment_hysteresis: float
    cut_hysteresis: float
    cut_horizon_rounds: int
    iterations: int | None


class View(Protocol):
    """What a policy may know in a round."""

    clients: tuple[str, ...]
    cuts: tuple[int, ...]
    current_cut: int | None
    rounds_left: int
    rate_model: RateModel
    tuning: Tuning

    def problem(self, cut: int, guard_db: float = 0.0) -> Problem:
        """The allocation problem at a cut; ``guard_db`` is held back of every uplink SNR."""

    def expect(self, plan: Plan) -> float:
        """Mean latency of a round under a plan [s]; equal random numbers for every plan of a round."""

    def move_cost_s(self, plan: Plan) -> float:
        """Expected time to move the cut from the present one to the plan's [s]."""

    def at_first_sight(self) -> View:
        """The same, with each link's gain as it was first heard; all else as it is known now."""


class Policy(Protocol):
    def decide(self, view: View) -> Decision:
        """The plan of a round.

        Raises
        ------
        InfeasibleError
            No plan carries every client's bits.
        """


def _solve(view: View, cut: int, method: str, guard_db: float = 0.0) -> Plan:
    plan = allocate(view.problem(cut, guard_db), method, view.rate_model, iterations=view.tuning.iterations)
    if guard_db == 0.0:
        return plan
    # What a guarded plan costs is asked of the problem as it is.
    reached, phases = latency.evaluate(
        view.problem(cut), cut, plan.assignment, plan.psd_w_per_hz, view.rate_model
    )
    return dataclasses.replace(plan, latency_s=reached, phases=phases, lower_bound_s=None)


def _feasible(view: View, make: Callable[[int], Plan]) -> dict[int, Plan]:
    """Plans by cut; cuts without one are left out, unless all are."""
    plans: dict[int, Plan] = {}
    failure: InfeasibleError | None = None
    for cut in view.cuts:
        try:
            plans[cut] = make(cut)
        except InfeasibleError as exc:
            failure = exc
    if not plans:
        raise failure or AllocationError("cuts", "there is none to choose from")
    return plans


def _with_runner_up(plan: Plan, plans: dict[int, Plan]) -> Plan:
    """A plan whose binding names the next-best cut by the formula."""
    others = [other for cut, other in plans.items() if cut != plan.cut_layer]
    if not others:
        return plan
    second = min(others, key=lambda other: other.latency_s)
    binding = dataclasses.replace(
        plan.binding,
        runner_up_cut=second.cut_layer,
        runner_up_latency_s=second.latency_s,
        runner_up_is_bound=False,
    )
    return dataclasses.replace(plan, binding=binding)


def _leaves_cut(view: View, best: Candidate, stay: Candidate) -> bool:
    """Whether a better cut is worth its move."""
    horizon = max(1, min(view.rounds_left, view.tuning.cut_horizon_rounds))
    spread_s = view.move_cost_s(best.plan) / horizon
    return best.predicted_s + spread_s < (1 - view.tuning.cut_hysteresis) * stay.predicted_s


class ClosedLoop:
    """Plans anew each round, weighs by the twin, and changes only what is worth changing.

    Every cut is screened with balanced turns.  At the present cut, and at another one that looks
    better, the certified optimiser plans, once as it is and once with a guard against fading; beside
    them stands the assignment of the round before, with its power set anew.
    """

    GUARD_DB = 0.7

    def __init__(self) -> None:
        self._before: Decision | None = None

    def decide(self, view: View) -> Decision:
        candidates: list[Candidate] = []

        def weigh(name: str, plan: Plan) -> Candidate:
            candidate = Candidate(name, plan, view.expect(plan))
            candidates.append(candidate)
            return candidate

        screened = {
            cut: weigh("balanced", plan)
            for cut, plan in _feasible(view, lambda cut: _solve(view, cut, "balanced")).items()
        }
        present = view.current_cut if view.current_cut in screened else None
        likely = min(screened, key=lambda cut: screened[cut].predicted_s)
        best: dict[int, Candidate] = {}
        solved: dict[int, Plan] = {cut: candidate.plan for cut, candidate in screened.items()}
        for cut in dict.fromkeys((likely, present or likely)):
            solved[cut] = _solve(view, cut, "fast")
            options = [screened[cut], weigh("fast", solved[cut])]
            # Who works only without a guard is no reason to leave anybody out.
            with contextlib.suppress(InfeasibleError):
                guarded = _solve(view, cut, "fast", self.GUARD_DB)
                options.append(weigh(f"fast, {self.GUARD_DB:g} dB held back", guarded))
            best[cut] = min(options, key=lambda option: option.predicted_s)
        why = "first plan for these clients at this cut"
        kept = self._kept(view)
        if kept and present is not None:
            stay = weigh(kept[0].method, kept[0])
            for plan in kept[1:]:
                powered = weigh(plan.method, plan)
                if powered.predicted_s < (1 - view.tuning.power_hysteresis) * stay.predicted_s:
                    stay = powered
            fresh = best[present]
            saving = 1 - fresh.predicted_s / stay.predicted_s
            if saving <= view.tuning.assignment_hysteresis:
                best[present] = stay
                why = f"assignment {stay.name}: a new one would save {100 * max(saving, 0.0):.1f} %"
            else:
                why = f"new assignment ({fresh.name}) saves {100 * saving:.1f} %"
        chosen = best[likely]
        if present is not None and likely != present:
            stay = best[present]
            saving = 1 - chosen.predicted_s / stay.predicted_s
            if _leaves_cut(view, chosen, stay):
                why = f"cut moves to {likely}: {100 * saving:.1f} % less, and the move is paid back"
            else:
                why += f"; cut {likely} would save {100 * max(saving, 0.0):.1f} %, not worth the move"
                chosen = stay
        plan = _with_runner_up(chosen.plan, solved)
        self._before = Decision(plan, view.clients, chosen.predicted_s, why, tuple(candidates))
        return self._before

    def _kept(self, view: View) -> list[Plan]:
        """The plan of the round before, and the same with optimal power now; fewer where they do not fit."""
        before = self._before
        if before is None or set(before.clients) != set(view.clients):
            return []
        cut = view.current_cut
        if cut is None or cut not in view.cuts or cut != before.plan.cut_layer:
            return []
        problem = view.problem(cut)
        row = np.array([view.clients.index(name) for name in before.clients])
        owners = before.plan.assignment
        assignment = np.where(owners >= 0, row[owners], -1)
        same = _valued(problem, cut, assignment, before.plan.psd_w_per_hz, view.rate_model, KEPT)
        powered = _powered(problem, cut, assignment, view.rate_model, "kept, power set anew")
        return [plan for plan in (same, powered) if plan]


def _powered(
    problem: Problem, cut: int, assignment: np.ndarray, rate_model: RateModel, method: str
) -> Plan | None:
    """An assignment with optimal power; ``None`` where no power carries everybody's bits."""
    down_bps = latency.downlink_rates(problem, rate_model)
    terms = latency.cut_terms(problem, cut, latency.broadcast_rate(problem, down_bps))
    psd = optimal_power(problem, assignment, terms.forward_s, terms.uplink_bits, rate_model)[1]
    return _valued(problem, cut, assignment, psd, rate_model, method)


def _valued(
    problem: Problem,
    cut: int,
    assignment: np.ndarray,
    psd: np.ndarray,
    rate_model: RateModel,
    method: str,
) -> Plan | None:
    """A plan of these parts; ``None`` where bits do not flow or a limit is broken."""
    reached, phases = latency.evaluate(problem, cut, assignment, psd, rate_model)
    if not np.isfinite(reached) or latency.violations(problem, assignment, psd):
        return None
    binding = latency.explain(problem, cut, assignment, psd, rate_model)
    return Plan(cut, assignment, psd, reached, None, phases, method, binding)


class SolveOnce:
    """The closed loop's optimiser on first sight, then frozen.

    When boards come or leave, or a schedule moves the cut, it is solved anew, with the gains of each
    link as they were first heard: a plan for other boards would be no plan.
    """

    def __init__(self) -> None:
        self._frozen: Decision | None = None

    def decide(self, view: View) -> Decision:
        frozen = self._frozen
        if frozen is None or frozen.clients != view.clients or frozen.plan.cut_layer not in view.cuts:
            first = view.at_first_sight()
            decision = ClosedLoop().decide(first)
            self._frozen = dataclasses.replace(decision, why="solved once for these clients")
            return self._frozen
        return dataclasses.replace(
            frozen,
            predicted_s=view.expect(frozen.plan),
            why="frozen since it was first solved for these clients",
            candidates=(),
        )


class EachRound:
    """One of the allocator's methods, solved each round, with the best cut of each round.

    The cut moves under the same rule as in the closed loop, or each change of mind would cost it.
    """

    def __init__(self, method: str) -> None:
        self._method = method

    def decide(self, view: View) -> Decision:
        plans = _feasible(view, lambda cut: _solve(view, cut, self._method))
        candidates = {cut: Candidate(self._method, plan, view.expect(plan)) for cut, plan in plans.items()}
        chosen = min(candidates.values(), key=lambda option: option.predicted_s)
        why = "solved anew"
        stay = candidates.get(view.current_cut) if view.current_cut is not None else None
        if stay is not None and chosen is not stay and not _leaves_cut(view, chosen, stay):
            chosen = stay
            why = "solved anew; another cut is not worth the move"
        return Decision(
            _with_runner_up(chosen.plan, plans),
            view.clients,
            chosen.predicted_s,
            why,
            tuple(candidates.values()),
        )


class FixedCut:
    """One of the allocator's methods each round, with the cut that was best at first."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._cut: int | None = None

    def decide(self, view: View) -> Decision:
        cuts = view.cuts if self._cut not in view.cuts else (self._cut,)
        chosen: Candidate | None = None
        candidates = []
        failure: InfeasibleError | None = None
        for cut in cuts:
            try:
                plan = _solve(view, cut, self._method)
            except InfeasibleError as exc:
                failure = exc
                continue
            candidate = Candidate(self._method, plan, view.expect(plan))
            candidates.append(candidate)
            if chosen is None or candidate.predicted_s < chosen.predicted_s:
                chosen = candidate
        if chosen is None:
            raise failure or AllocationError("cuts", "there is none to choose from")
        why = "solved anew at the cut that was best at first"
        if self._cut is None:
            why = "the best cut of the first round stays"
            self._cut = chosen.plan.cut_layer
        return Decision(chosen.plan, view.clients, chosen.predicted_s, why, tuple(candidates))


POLICIES: dict[str, str] = {
    "closed-loop": "plans each round from filtered measurements, weighs by prediction, with hysteresis",
    "solve-once": "the closed loop's optimiser on the first estimates, then frozen",
    "balanced": "subchannels in balanced turns, optimal power, best cut each round",
    "round-robin": "subchannels dealt out in turn, uniform PSD, the best fixed cut",
    "rss": "subchannel to the best receiver, uniform PSD, the best fixed cut",
    "bcd": "the paper's block coordinate descent each round (reconstructed), best cut",
}


def make_policy(name: str) -> Policy:
    """A policy by its name in :data:`POLICIES`.

    Raises
    ------
    AllocationError
        There is none of that name.
    """
    if name == "closed-loop":
        return ClosedLoop()
    if name == "solve-once":
        return SolveOnce()
    if name in ("balanced", "bcd"):
        return EachRound(name)
    if name in ("round-robin", "rss"):
        return FixedCut(name)
    raise AllocationError("allocator.name", f"{name!r} is not one of {', '.join(POLICIES)}")


def methods_of(name: str) -> tuple[str, ...]:
    """Allocator methods that a policy uses, for warming their kernels."""
    return {
        "closed-loop": ("fast", "balanced"),
        "solve-once": ("fast", "balanced"),
    }.get(name, (name,))
