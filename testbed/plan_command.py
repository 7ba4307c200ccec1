"""What ``testbed plan`` says: a dry run in words and tables."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from testbed.dry_run import DryRun
from testbed.forecast import Summary

WIDTH = 110


def _ms(interval: Summary) -> tuple[str, str]:
    return f"{1e3 * interval.mean:.2f}", f"{1e3 * interval.low:.2f} .. {1e3 * interval.high:.2f}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def render(dry: DryRun) -> str:
    """A page of text: plan, predicted phases, bytes, airtime, disk."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, highlight=False, markup=False, color_system=None)
    plan, forecast = dry.decision.plan, dry.forecast
    console.print(
        f"{dry.experiment} on lab {dry.lab}, policy {dry.policy}, scenario {dry.scenario or 'none'}"
    )
    console.print(f"links from: {dry.source}")
    console.print(f"cut layer {plan.cut_layer}; {dry.decision.why}")
    owners = Table(title="Who sends where", title_justify="left")
    for column in ("client", "subchannels", "uplink power [mW]", "uplink [B]", "unicast [B]"):
        owners.add_column(column, justify="left" if column in ("client", "subchannels") else "right")
    for row, name in enumerate(dry.decision.clients):
        chosen = [k for k, owner in enumerate(plan.assignment) if owner == row]
        power_w = sum(float(plan.psd_w_per_hz[k]) for k in chosen) * dry.subchannel_bandwidth_hz
        owners.add_row(
            name,
            ", ".join(map(str, chosen)),
            f"{1e3 * power_w:.2f}",
            str(dry.budget.uplink_bytes[name]),
            str(dry.budget.unicast_bytes[name]),
        )
    console.print(owners)
    console.print(f"broadcast to all: {dry.budget.broadcast_bytes} B")
    phases = Table(title=f"One round, predicted ({forecast.model})", title_justify="left")
    for column in ("phase", "mean [ms]", "5 % .. 95 % [ms]"):
        phases.add_column(column, justify="left" if column == "phase" else "right")
    for name, interval in forecast.phases.items():
        phases.add_row(name, *_ms(interval))
    phases.add_row("round", *_ms(forecast.round_s), style="bold")
    console.print(phases)
    airtime = Table(title="Airtime of one round, all transmitters together", title_justify="left")
    for column in ("stream", "mean [ms]", "5 % .. 95 % [ms]"):
        airtime.add_column(column, justify="left" if column == "stream" else "right")
    for name, interval in forecast.airtime_s.items():
        airtime.add_row(name, *_ms(interval))
    console.print(airtime)
    for cut, count in dry.budget.cut_move_bytes.items():
        console.print(f"moving the cut to {cut}: {_size(count)} over the air")
    console.print(
        f"{dry.rounds} rounds: about {dry.run_s.mean:.1f} s of experiment time "
        f"({dry.run_s.low:.1f} .. {dry.run_s.high:.1f} s, if all are like the first)"
    )
    console.print(
        f"disk: about {_size(dry.budget.record_bytes)} of record, {_size(dry.budget.report_bytes)} of report, "
        f"{_size(dry.budget.checkpoint_bytes)} of checkpoints"
    )
    return buffer.getvalue()
