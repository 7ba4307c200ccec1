"""One picture of a run: what every node did in one round, and how training went.

Drawn from the run directory alone.  Colours are Okabe and Ito's, told apart by colour-blind eyes.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from testbed.record import Run

COLOURS = {
    "sounding": "#999999",
    "client-forward": "#E69F00",
    "uplink": "#0072B2",
    "server-forward": "#D55E00",
    "server-backward": "#CC79A7",
    "broadcast": "#009E73",
    "unicast": "#56B4E9",
    "client-backward": "#F0E442",
    "cut-move": "#000000",
}
RESOURCE_OFFSET = {"processor": 0.22, "transmitter": 0.0, "receiver": -0.22}


def draw_run(run: Run, path: Path) -> Path:
    """Draw a run into an SVG or PNG file and return its path."""
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "run", "axes.spines.top": False}):
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 3, height_ratios=[1.5, 1])
        _draw_round(figure.add_subplot(grid[0, :]), run)
        _draw_accuracy(figure.add_subplot(grid[1, 0]), run)
        _draw_latency(figure.add_subplot(grid[1, 1]), run)
        _draw_assignment(figure.add_subplot(grid[1, 2]), run)
        start = run.start
        fidelity = f", {start['fidelity']} fidelity" if start.get("fidelity") else ""
        figure.suptitle(
            f"{start['experiment']} on lab {start['lab']}: {start['radio']} radio{fidelity}, {start['clock']} time, "
            f"{start['compute']} compute time, seed {start['seed']}",
            fontsize=10,
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _typical_round(run: Run) -> int | None:
    """The round whose latency is the median, the later half preferred; ``None`` if none came about."""
    described = {span["round"] for span in run.of_kind("span")}
    rounds = [entry for entry in run.of_kind("round") if entry["round"] in described]
    later = rounds[len(rounds) // 2 :]
    if not later:
        return None
    latencies = np.array([entry["latency_ns"] for entry in later])
    return int(later[int(np.argsort(latencies, kind="stable")[len(later) // 2])]["round"])


def _draw_round(axes: Axes, run: Run) -> None:
    chosen = _typical_round(run)
    if chosen is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no round came about; stop.json says why", ha="center", va="center")
        return
    spans = [span for span in run.of_kind("span") if span["round"] == chosen]
    clients = sorted({span["node"] for span in spans if span["phase"].startswith("client")})
    server = sorted({span["node"] for span in spans} - set(clients))
    nodes = [*server, *clients]
    origin = min(span["start_ns"] for span in spans)
    used = set()
    for span in spans:
        phase = "sounding" if span["phase"].startswith("sounding") else span["phase"]
        used.add(phase)
        axes.barh(
            nodes.index(span["node"]) - RESOURCE_OFFSET[span["resource"]],
            (span["end_ns"] - span["start_ns"]) / 1e6,
            left=(span["start_ns"] - origin) / 1e6,
            height=0.2,
            color=COLOURS.get(phase, "#666666"),
            edgecolor="black",
            linewidth=0.3,
        )
    axes.set_yticks(range(len(nodes)), nodes)
    axes.invert_yaxis()
    axes.set_xlabel("experiment time since the round's first activity [ms]")
    axes.set_title(
        f"round {chosen}: each node's processor (upper), transmitter (middle) and receiver (lower lane)",
        fontsize=9,
        pad=20,
    )
    axes.legend(
        handles=[Patch(facecolor=colour, label=phase) for phase, colour in COLOURS.items() if phase in used],
        ncols=8,
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.99),
    )


def _draw_accuracy(axes: Axes, run: Run) -> None:
    rounds = run.of_kind("round")
    losses = [(entry["at_ns"] / 1e9, entry["loss"]) for entry in rounds if entry["loss"] is not None]
    if losses:
        axes.plot(*zip(*losses, strict=True), color="#999999", linewidth=1, label="training loss")
    checks = [entry for entry in run.of_kind("evaluation") if entry["split"] == "validation"]
    axes.plot(
        [entry["at_ns"] / 1e9 for entry in checks],
        [entry["accuracy"] for entry in checks],
        "o-",
        color="#0072B2",
        markersize=3,
        label="validation accuracy",
    )
    axes.set_xlabel("experiment time [s]")
    axes.set_ylabel("loss [nat], accuracy [1]")
    axes.set_ylim(bottom=0)
    axes.set_title("learning", fontsize=9)
    axes.legend(fontsize=8)


def _draw_latency(axes: Axes, run: Run) -> None:
    rounds = run.of_kind("round")
    axes.plot(
        [entry["round"] for entry in rounds],
        [entry["latency_ns"] / 1e6 for entry in rounds],
        color="#D55E00",
        linewidth=1,
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round")
    axes.set_ylabel("round latency [ms]")
    axes.set_title("round latency, retransmissions included", fontsize=9)


def _draw_assignment(axes: Axes, run: Run) -> None:
    plans = run.of_kind("plan")
    if not plans:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no plan was made", ha="center", va="center")
        return
    names = sorted({name for plan in plans for name in plan["assignment"] if name is not None})
    owners = np.array(
        [[names.index(name) if name is not None else -1 for name in plan["assignment"]] for plan in plans]
    )
    palette = [*list(COLOURS.values())[1:], "#444444"]
    colours = np.array(
        [mpl.colors.to_rgb("white")]
        + [mpl.colors.to_rgb(palette[index % len(palette)]) for index in range(len(names))]
    )
    axes.imshow(colours[owners.T + 1], aspect="auto", origin="lower", interpolation="nearest")
    axes.set_xlabel("round")
    axes.set_ylabel("subchannel")
    axes.set_title("uplink subchannel by client", fontsize=9)
    axes.legend(
        handles=[
            Patch(facecolor=palette[index % len(palette)], label=name) for index, name in enumerate(names)
        ],
        fontsize=7,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )
