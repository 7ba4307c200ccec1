"""The report's pictures but the round's own: learning, spectrum, prediction, links.

Each takes a run as tables and returns a plotly figure, or ``None`` where the record has nothing to
show.  Values are rounded to what a screen can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from testbed.frames import BESIDE_ROUND, LoadedRun
from testbed.report import style

MAX_MAP_CELLS = 500_000  # of all maps of one figure together; beyond it, rounds are left out
MULTIPLE_COLUMNS = 3


@dataclass(frozen=True)
class Selector:
    """A choice above a figure: by label, the traces that it shows; others of ``all_traces`` hide."""

    words: str
    options: dict[str, list[int]]

    @property
    def all_traces(self) -> list[int]:
        return sorted({index for traces in self.options.values() for index in traces})


# --------------------------------------------------------------------------------------- learning
def learning_chart(loaded: LoadedRun) -> go.Figure | None:
    """Accuracy above loss, over experiment time."""
    checks, rounds = loaded.evaluations, loaded.rounds
    losses = rounds[rounds["loss"].notna()]
    if checks.empty and losses.empty:
        return None
    chart = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.55, 0.45])
    validation, test = (checks[checks["split"] == split] for split in ("validation", "test"))
    looks = (
        ("accuracy", "validation, mean over clients", style.BLUE, "solid", "circle"),
        ("worst_client_accuracy", "validation, worst client", style.ORANGE, "dot", "square"),
    )
    for column, name, colour, dash, symbol in looks:
        chart.add_scatter(
            x=style.decimals(validation["at_s"], 3),
            y=style.decimals(100 * validation[column], 2),
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 7},
            hovertemplate="%{x:.2f} s: %{y:.2f} %",
            row=1,
            col=1,
        )
    if len(test):
        chart.add_scatter(
            x=style.decimals(test["at_s"], 3),
            y=style.decimals(100 * test["accuracy"], 2),
            name="test, once at the end",
            mode="markers",
            marker={
                "symbol": "star",
                "size": 15,
                "color": style.VERMILION,
                "line": {"width": 1, "color": "black"},
            },
            hovertemplate="%{x:.2f} s: %{y:.2f} %",
            row=1,
            col=1,
        )
    chart.add_scatter(
        x=style.decimals(losses["at_s"], 3),
        y=style.significant(losses["loss"]),
        name="training loss, mean over clients",
        mode=style.lines(len(losses)),
        line={"color": style.MUTED, "width": 1.5},
        marker={"size": 4},
        hovertemplate="%{x:.2f} s: %{y:.3g}",
        row=2,
        col=1,
    )
    if len(validation):
        chart.add_scatter(
            x=style.decimals(validation["at_s"], 3),
            y=style.significant(validation["loss"]),
            name="validation loss",
            mode="markers",
            marker={"symbol": "circle-open", "size": 8, "color": style.BLUE, "line": {"width": 2}},
            hovertemplate="%{x:.2f} s: %{y:.3g}",
            row=2,
            col=1,
        )
    if checks.empty:
        chart.add_annotation(
            text="no evaluation was made", x=0.5, y=50, xref="x domain", yref="y", showarrow=False
        )
    style.styled(chart, 520, showlegend=True)
    for time_s in loaded.cut_moves["at_s"]:
        chart.add_vline(x=round(time_s, 3), line={"color": style.MUTED, "width": 1, "dash": "dash"})
    chart.update_yaxes(title_text="accuracy [%]", range=[0, 102], row=1, col=1)
    # Training spans decades; a few rounds do not.
    spread = losses["loss"].max() / max(losses["loss"].min(), 1e-12) if len(losses) else 1.0
    chart.update_yaxes(title_text="loss [nat]", type="log" if spread > 20 else "linear", row=2, col=1)
    if spread > 20:
        chart.update_yaxes(dtick=1, exponentformat="none", row=2, col=1)
    chart.update_xaxes(title_text="experiment time [s]", row=2, col=1)
    return chart


# ---------------------------------------------------------------------------------------- spectrum
def spectrum_chart(loaded: LoadedRun) -> tuple[go.Figure, Selector | None] | None:
    """Who had which subchannel, above what each subchannel was worth; cut layer and power below."""
    plans = loaded.plans
    if plans.empty:
        return None
    rounds = _thinned_rounds(plans, len(loaded.clients) + 1)
    shown = plans[plans["round"].isin(rounds)]
    # What is shown of a map is the columns of rounds in order, whether or not each was measured.
    owners = shown.pivot_table(index="subchannel", columns="round", values="client", aggfunc="last")
    owners = owners.reindex(index=range(int(plans["subchannel"].max()) + 1), columns=rounds)
    chart = make_subplots(
        rows=4,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.045,
        row_heights=[0.36, 0.36, 0.12, 0.16],
        subplot_titles=("who transmits where (uplink)", "measured uplink gain", "", ""),
    )
    _add_owners(chart, loaded.clients, owners)
    selector = _add_gains(chart, loaded, rounds, owners)
    _add_steps(chart, loaded)
    style.styled(chart, 1000, bargap=0, margin={"l": 78, "r": 110, "t": 84, "b": 52})
    chart.update_layout(legend={"y": 1.035, "title": {"text": "client: "}})
    num_subchannels = len(owners.index)
    for row in (1, 2):
        chart.update_yaxes(
            title_text="subchannel",
            range=[-0.5, num_subchannels - 0.5],
            dtick=max(1, math.ceil(num_subchannels / 10)),
            showgrid=False,
            row=row,
            col=1,
        )
        chart.update_xaxes(showgrid=False, row=row, col=1)
    chart.update_yaxes(title_text="cut layer", row=3, col=1)
    chart.update_yaxes(title_text="power [dBm]", row=4, col=1)
    first, last = rounds[0], rounds[-1]
    chart.update_xaxes(range=[first - 0.5, last + 0.5])
    chart.update_xaxes(title_text="round", row=4, col=1)
    style.whole_rounds(chart, last - first + 1)
    for mark in loaded.cut_moves["round"]:
        chart.add_vline(x=int(mark) - 0.5, line={"color": "black", "width": 1, "dash": "dash"})
    return chart, selector


def _thinned_rounds(table: pd.DataFrame, num_maps: int) -> list[int]:
    rounds = sorted(int(index) for index in table["round"].unique())
    cells = num_maps * len(rounds) * (int(table["subchannel"].max()) + 1)
    return rounds[:: max(1, math.ceil(cells / MAX_MAP_CELLS))]


def _add_owners(chart: go.Figure, clients: Sequence[str], owners: pd.DataFrame) -> None:
    present = {name for name in owners.to_numpy(object).ravel() if isinstance(name, str)}
    names = [*clients, *sorted(present - set(clients))]
    numbers = {name: index for index, name in enumerate(names)}
    indices = [[numbers.get(name) for name in row] for row in owners.to_numpy(object)]
    scale: list[list[Any]] = []
    for index in range(len(names)):
        colour = style.client_colour(index)
        scale += [[index / len(names), colour], [(index + 1) / len(names), colour]]
    chart.add_heatmap(
        x=list(owners.columns),
        y=list(owners.index),
        z=indices,
        text=[
            [_escaped(name) if isinstance(name, str) else "unused" for name in row]
            for row in owners.to_numpy(object)
        ],
        zmin=-0.5,
        zmax=len(names) - 0.5,
        colorscale=scale,
        showscale=False,
        hovertemplate="round %{x}, subchannel %{y}: %{text}<extra></extra>",
        row=1,
        col=1,
    )
    for index, name in enumerate(names):
        chart.add_scatter(
            x=[None],
            y=[None],
            name=_escaped(name),
            mode="markers",
            marker={"symbol": "square", "size": 13, "color": style.client_colour(index)},
            row=1,
            col=1,
        )
    chart.add_shape(
        type="rect",
        xref="x domain",
        yref="y domain",
        x0=0,
        x1=1,
        y0=0,
        y1=1,
        fillcolor=style.EMPTY,
        layer="below",
        line_width=0,
    )


def _add_gains(
    chart: go.Figure, loaded: LoadedRun, rounds: Sequence[int], owners: pd.DataFrame
) -> Selector | None:
    """A map per client, of which one is seen, with a dot where that client was given the subchannel."""
    links = loaded.links
    links = links[links["detected"] & (links["receiver"] == loaded.server) & links["round"].isin(rounds)]
    gains = links["channel_gain_db"].replace(-np.inf, np.nan)
    if not gains.notna().any():
        return None
    low_db, high_db = (float(value) for value in np.nanpercentile(gains, [1, 99]))
    options: dict[str, list[int]] = {}
    for name in loaded.clients:
        own = links[links["transmitter"] == name]
        if own.empty:
            continue
        table = own.pivot_table(index="subchannel", columns="round", values="channel_gain_db", aggfunc="last")
        table = table.reindex(index=owners.index, columns=rounds)
        first = len(chart.data)
        chart.add_heatmap(
            x=list(rounds),
            y=list(owners.index),
            z=[style.decimals(row, 1) for row in table.to_numpy(float)],
            zmin=round(low_db, 1),
            zmax=round(high_db, 1),
            colorscale=style.SEQUENTIAL,
            colorbar={
                "title": {"text": "gain<br>[dB]", "font": {"size": 13}},
                "len": 0.34,
                "y": 0.48,
                "yanchor": "middle",
                "thickness": 16,
                "x": 1.01,
            },
            visible=not options,
            hovertemplate=f"{_escaped(name)}, round %{{x}}, subchannel %{{y}}: %{{z:.1f}} dB<extra></extra>",
            row=2,
            col=1,
        )
        given = np.argwhere(owners.to_numpy(object) == name)
        chart.add_scatter(
            x=[int(rounds[column]) for _, column in given],
            y=[int(row) for row, _ in given],
            name="given to it",
            mode="markers",
            marker={
                "symbol": "circle",
                "size": 5,
                "color": "white",
                "line": {"color": "black", "width": 1},
            },
            showlegend=False,
            hoverinfo="skip",
            visible=not options,
            row=2,
            col=1,
        )
        options[name] = [first, first + 1]
    return Selector("gain map and dots of", options)


def _add_steps(chart: go.Figure, loaded: LoadedRun) -> None:
    plans, rounds = loaded.plans.drop_duplicates("round"), loaded.rounds
    chart.add_scatter(
        x=[int(value) for value in plans["round"]],
        y=[int(value) for value in plans["cut_layer"]],
        mode="lines+markers",
        line={"shape": "hvh", "color": style.INK},
        marker={"size": 4},
        showlegend=False,
        hovertemplate="round %{x}: cut layer %{y}<extra></extra>",
        row=3,
        col=1,
    )
    cuts = sorted(int(value) for value in plans["cut_layer"].unique())
    chart.update_yaxes(dtick=1, range=[cuts[0] - 0.6, cuts[-1] + 0.6], row=3, col=1)
    chart.add_scatter(
        x=[int(value) for value in rounds["round"]],
        y=style.decimals(rounds["total_power_dbm"], 2),
        mode="lines+markers",
        line={"color": style.INK},
        marker={"size": 4},
        showlegend=False,
        hovertemplate="round %{x}: %{y:.2f} dBm<extra></extra>",
        row=4,
        col=1,
    )
    limit_dbm = loaded.config.get("lab", {}).get("total_power_dbm")
    if isinstance(limit_dbm, float | int):
        chart.add_hline(
            y=limit_dbm,
            line={"color": style.VERMILION, "dash": "dot", "width": 1.5},
            annotation={
                "text": f"limit {limit_dbm:g} dBm",
                "xanchor": "right",
                "font": {"size": 12, "color": style.VERMILION},
            },
            annotation_position="top right",
            row=4,
            col=1,
        )
        # Shapes do not stretch an axis: without this the limit may lie outside the picture.
        known = rounds["total_power_dbm"].dropna()
        lowest = min(float(known.min()) if len(known) else limit_dbm, limit_dbm)
        highest = max(float(known.max()) if len(known) else limit_dbm, limit_dbm)
        spread = max(highest - lowest, 1.0)
        chart.update_yaxes(range=[lowest - 0.2 * spread, highest + 0.45 * spread], row=4, col=1)


def truth_chart(loaded: LoadedRun) -> go.Figure | None:
    """What a scenario did to each board: extra path loss, slower computing, absence."""
    truth = loaded.truth
    if truth.empty:
        return None
    chart = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    for index, name in enumerate(loaded.clients):
        own = truth[truth["board"] == name]
        look = {
            "name": _escaped(name),
            "legendgroup": name,
            "x": [int(value) for value in own["round"]],
            "marker": {"symbol": style.SYMBOLS[index % len(style.SYMBOLS)], "size": 5},
            "line": {"color": style.client_colour(index), "width": 1.8},
            "mode": "lines+markers",
            "connectgaps": False,
            "cliponaxis": False,
        }
        for row, column, unit in ((1, "attenuation_db", "dB"), (2, "slowdown", "times")):
            chart.add_scatter(
                **look,
                y=style.significant(own[column].where(own["present"])),
                showlegend=row == 1,
                hovertemplate=f"round %{{x}}: %{{y:.3g}} {unit}",
                row=row,
                col=1,
            )
        redrawn = own[own["redrawn"]]
        if len(redrawn):
            chart.add_scatter(
                x=[int(value) for value in redrawn["round"]],
                y=style.significant(redrawn["attenuation_db"]),
                name=f"{_escaped(name)}: another channel",
                mode="markers",
                marker={
                    "symbol": "circle-open",
                    "size": 15,
                    "color": style.client_colour(index),
                    "line": {"width": 2.5},
                },
                showlegend=False,
                cliponaxis=False,
                hovertemplate="from round %{x} on another channel",
                row=1,
                col=1,
            )
    style.styled(chart, 440)
    chart.update_layout(legend={"title": {"text": "client: "}})
    highest = max(5.0, float(truth["attenuation_db"].max()))
    chart.update_yaxes(title_text="path loss [dB]", range=[-0.1 * highest, 1.1 * highest], row=1, col=1)
    chart.update_yaxes(title_text="slowdown [1]", rangemode="tozero", row=2, col=1)
    chart.update_xaxes(title_text="round", row=2, col=1)
    return chart


# --------------------------------------------------------------------------------------- prediction
def latency_chart(loaded: LoadedRun) -> go.Figure | None:
    """Round latency as measured and as predicted, and how far either guess was off."""
    rounds = loaded.rounds
    if rounds.empty:
        return None
    predicted = bool(rounds["predicted_s"].notna().any())
    chart = make_subplots(
        rows=2 if predicted else 1,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        row_heights=[0.62, 0.38] if predicted else [1.0],
    )
    _add_compared(chart, rounds.rename(columns={"latency_s": "measured_s"}), 1, 1, legend=True)
    if predicted:
        for column, name, colour, dash, symbol in (
            ("predicted_s", "error of the prediction", style.PREDICTED, "solid", "diamond"),
            ("persistence_s", "error of persistence", style.PERSISTENCE, "dot", "circle-open"),
        ):
            errors = 100 * (rounds[column] / rounds["latency_s"] - 1)
            chart.add_scatter(
                x=[int(value) for value in rounds["round"]],
                y=style.decimals(errors, 2),
                name=name,
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 1.3},
                marker={"size": 4, "symbol": symbol},
                hovertemplate="round %{x}: %{y:+.1f} %",
                row=2,
                col=1,
            )
    style.styled(chart, 560 if predicted else 360, showlegend=True)
    chart.update_yaxes(title_text="round latency [ms]", rangemode="tozero", row=1, col=1)
    if predicted:
        chart.update_yaxes(title_text="error [%]", zeroline=True, zerolinecolor=style.INK, row=2, col=1)
    chart.update_xaxes(title_text="round", row=2 if predicted else 1, col=1)
    style.whole_rounds(chart, len(rounds))
    for mark in loaded.cut_moves["round"]:
        chart.add_vline(x=int(mark) - 0.5, line={"color": "black", "width": 1, "dash": "dash"})
    return chart


def multiples_chart(compared: pd.DataFrame, key: str) -> go.Figure | None:
    """One small picture per phase or stream, all with the same rounds."""
    # What stands beside a round comes about in few rounds, and has its own table.
    compared = compared[~compared[key].isin(BESIDE_ROUND)]
    known = compared[compared["measured_s"].notna() & compared["predicted_s"].notna()]
    names = [
        str(name)
        for name, group in known.groupby(key, sort=False)
        if (group[["measured_s", "predicted_s"]] > 0).any(axis=None)
    ]
    if not names:
        return None
    columns = min(MULTIPLE_COLUMNS, len(names)) if len(names) != 4 else 2
    lines = math.ceil(len(names) / columns)
    chart = make_subplots(
        rows=lines,
        cols=columns,
        subplot_titles=[_escaped(name) for name in names],
        horizontal_spacing=0.075,
        vertical_spacing=66 / (195 * lines),
    )
    for number, name in enumerate(names):
        row, column = number // columns + 1, number % columns + 1
        _add_compared(chart, compared[compared[key] == name], row, column, legend=number == 0)
    style.styled(chart, 110 + 195 * lines, margin={"l": 64, "r": 20, "t": 84, "b": 52})
    chart.update_layout(legend={"y": 1 + 40 / (195 * lines)})
    chart.update_yaxes(rangemode="tozero", nticks=5)
    first, last = int(compared["round"].min()), int(compared["round"].max())
    margin = max(0.5, 0.02 * (last - first))
    chart.update_xaxes(range=[first - margin, last + margin])
    style.whole_rounds(chart, last - first + 1)
    for row in range(1, lines + 1):
        chart.update_yaxes(title_text="[ms]", row=row, col=1)
    for column in range(1, columns + 1):
        lowest = lines if column <= len(names) - columns * (lines - 1) else lines - 1
        chart.update_xaxes(title_text="round", row=lowest, col=column)
    return chart


def _add_compared(chart: go.Figure, table: pd.DataFrame, row: int, column: int, legend: bool) -> None:
    """Measured, predicted with its interval, and persistence over rounds [ms]."""
    place = {"row": row, "col": column}
    rounds = [int(value) for value in table["round"]]
    bounded = table[table["low_s"].notna() & table["high_s"].notna()]
    if len(bounded):
        edge = [int(value) for value in bounded["round"]]
        chart.add_scatter(
            x=edge + edge[::-1],
            y=style.significant(1e3 * bounded["high_s"]) + style.significant(1e3 * bounded["low_s"])[::-1],
            name="predicted 5 % to 95 %",
            legendgroup="interval",
            showlegend=legend,
            fill="toself",
            fillcolor="rgba(230, 159, 0, 0.28)",
            mode="lines",
            line={"width": 0},
            hoverinfo="skip",
            **place,
        )
    for name, key, look, symbol in (
        (
            "persistence: last round's value",
            "persistence_s",
            {"color": style.PERSISTENCE, "dash": "dot", "width": 1.2},
            "circle-open",
        ),
        ("predicted", "predicted_s", {"color": style.PREDICTED, "dash": "dash", "width": 1.6}, "diamond"),
        ("measured", "measured_s", {"color": style.MEASURED, "width": 1.8}, "circle"),
    ):
        if not table[key].notna().any():
            continue
        chart.add_scatter(
            x=rounds,
            y=style.significant(1e3 * table[key]),
            name=name,
            legendgroup=key,
            showlegend=legend,
            mode=style.lines(len(rounds)),
            line=look,
            marker={"size": 5, "symbol": symbol},
            hovertemplate="round %{x}: %{y:.4g} ms",
            **place,
        )


# -------------------------------------------------------------------------------------------- links
def links_chart(loaded: LoadedRun) -> go.Figure | None:
    """SNR of each client up and down, and where blocks were lost."""
    received = loaded.receptions
    if received.empty:
        return None
    up = received[received["stream"] == "uplink"]
    down = received[received["stream"].isin(("broadcast", "unicast"))]
    chart = make_subplots(
        rows=3,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        row_heights=[0.3, 0.3, 0.4],
        subplot_titles=("SNR of the uplink", "SNR of broadcast and unicast", "share of blocks lost"),
    )
    for row, (table, key) in enumerate(((up, "transmitter"), (down, "receiver")), 1):
        for index, name in enumerate(loaded.clients):
            own = table[table[key] == name].groupby("round")["mean_snr_db"].mean()
            if own.empty:
                continue
            chart.add_scatter(
                x=[int(value) for value in own.index],
                y=style.decimals(own, 1),
                name=_escaped(name),
                legendgroup=name,
                showlegend=row == 1,
                mode="lines+markers",
                line={"color": style.client_colour(index), "width": 1.1},
                marker={"size": 5.5, "symbol": style.SYMBOLS[index % len(style.SYMBOLS)]},
                hovertemplate="round %{x}: %{y:.1f} dB",
                row=row,
                col=1,
            )
    lost = _lost_blocks(received)
    chart.add_heatmap(
        x=[int(value) for value in lost.columns],
        y=[_escaped(str(value)) for value in lost.index],
        z=[style.decimals(row, 1) for row in 100 * lost.to_numpy(float)],
        zmin=0,
        zmax=max(10.0, math.ceil(100 * float(np.nanmax(lost.to_numpy(float))))) if lost.size else 10,
        colorscale=style.SEQUENTIAL,
        colorbar={
            "title": {"text": "lost<br>[%]", "font": {"size": 13}},
            "len": 0.38,
            "y": 0.17,
            "thickness": 16,
            "x": 1.01,
        },
        hovertemplate="%{y}, round %{x}: %{z:.1f} % lost<extra></extra>",
        row=3,
        col=1,
    )
    style.styled(chart, 560 + 20 * len(lost.index), margin={"l": 78, "r": 110, "t": 84, "b": 52})
    chart.update_layout(legend={"y": 1.04, "title": {"text": "client: "}})
    chart.update_yaxes(title_text="SNR [dB]", row=1, col=1)
    chart.update_yaxes(title_text="SNR [dB]", row=2, col=1)
    chart.update_yaxes(autorange="reversed", showgrid=False, dtick=1, tickfont={"size": 11}, row=3, col=1)
    chart.update_xaxes(title_text="round", showgrid=False, row=3, col=1)
    style.whole_rounds(chart, received["round"].nunique())
    return chart


def _lost_blocks(received: pd.DataFrame) -> pd.DataFrame:
    """Share of received blocks that failed: a row per stream and link, a column per round [1]."""
    order = {"uplink": 0, "broadcast": 1, "unicast": 2}
    table = received.assign(
        total=received["blocks_ok"] + received["blocks_failed"],
        link=received["stream"] + ", " + received["transmitter"] + " → " + received["receiver"],
        rank=received["stream"].map(order).fillna(9),
    )
    sums = table.groupby(["rank", "link", "round"])[["blocks_failed", "total"]].sum()
    share = (sums["blocks_failed"] / sums["total"].where(sums["total"] > 0)).unstack("round")
    return share.droplevel("rank")


def _escaped(name: str) -> str:
    """A name as plotly's own small markup shows it unchanged."""
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
