"""What happens beside the clock and the air: evaluation and checkpoints, over the bulk plane."""

from __future__ import annotations

import asyncio
import contextlib

from nodes.checkpoints import save_checkpoint
from nodes.errors import PeerLostError
from nodes.messages import Evaluate, Evaluated, WeightsDone, WeightsWanted
from testbed.config.loader import config_hash
from testbed.state import RunState

BULK_TIMEOUT_S = 120.0


async def evaluate(
    state: RunState, split: str, clients: tuple[str, ...]
) -> tuple[tuple[str, ...], Evaluated | None]:
    """Accuracy and loss of every composite: weights go to the server, off the clock and off the air.

    Returns
    -------
    evaluated, outcome
        Clients whose composites were evaluated, without those that were lost meanwhile; ``None``
        when nobody is left.
    """
    purposes: dict[str, str] = {}
    for name in clients:
        purpose = f"evaluate/{state.rounds_done}/{split}/{state.cut}/{name}"
        with contextlib.suppress(PeerLostError):
            await state.control.ask(name, WeightsWanted(state.server, purpose), WeightsDone)
            purposes[name] = purpose
    if not purposes:
        return (), None
    outcome = await state.control.ask(state.server, Evaluate(split, tuple(purposes.values())), Evaluated)
    return tuple(purposes), outcome


async def checkpoint(state: RunState) -> None:
    """Weights and optimiser state of every node, manifest last."""
    parts: dict[str, bytes] = {}
    for name in state.names:
        if name not in state.control.present:
            continue
        purpose = f"checkpoint/{state.rounds_done}/{name}"
        with contextlib.suppress(PeerLostError):  # who is lost has nothing left to be kept
            await state.control.ask(name, WeightsWanted("controller", purpose), WeightsDone)
            parts[name] = await state.control.endpoint.take_bulk(purpose, BULK_TIMEOUT_S)
    meta = {"cut_layer": state.cut, "config": config_hash(state.config), "now_ns": state.now_ns}
    await asyncio.to_thread(
        save_checkpoint, state.writer.directory / "checkpoints", state.rounds_done, parts, meta
    )
    state.writer.operation("checkpoint", round=state.rounds_done, bytes=sum(map(len, parts.values())))
