"""What the pictures have in common: colours told apart by colour-blind eyes, fonts, rounded numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
import plotly.graph_objects as go

INK = "#1f2430"
MUTED = "#5b6270"
GRID = "#e3e6ea"
EMPTY = "#f3f4f6"  # ground of a map: nothing there
MEASURED, PREDICTED, PERSISTENCE = "#0072B2", "#D55E00", "#6b6b6b"

# Okabe and Ito's colours.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
CLIENT_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, "#4d4d4d")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "cross")

# Phase: colour, and a pattern beside it, so that radio phases differ without colour too.
PHASE_LOOKS = {
    "control": ("#d9d9d9", ""),
    "sounding": ("#999999", "x"),
    "client-forward": (ORANGE, ""),
    "uplink": (BLUE, "/"),
    "server-forward": (VERMILION, ""),
    "server-backward": (PURPLE, ""),
    "broadcast": (GREEN, "\\"),
    "unicast": (SKY, "."),
    "client-backward": (YELLOW, ""),
    "cut-move": ("#333333", "+"),
    "join": ("#8c6d31", "|"),
}
OTHER_LOOK = ("#b0b0b0", "-")
CROWD = 40  # points of a line
SEQUENTIAL = "Cividis"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"


def client_colour(index: int) -> str:
    """A colour per client; after eight they repeat, and the name under the pointer tells."""
    return CLIENT_COLOURS[index % len(CLIENT_COLOURS)]


def figure(height: int, **layout: Any) -> go.Figure:
    """An empty figure in the report's style."""
    return styled(go.Figure(), height, **layout)


def styled(chart: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Give a figure the report's style; axes and subplot titles included."""
    chart.update_layout(
        template=None,
        height=height,
        margin={"l": 78, "r": 24, "t": 46, "b": 52},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"font": {"size": 13}},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 13},
            "title": {"font": {"size": 13}},
        },
    )
    chart.update_layout(**layout)
    common = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": "#9aa0aa",
        "ticks": "outside",
        "tickcolor": "#9aa0aa",
        "automargin": True,
        "title": {"font": {"size": 13}, "standoff": 6},
    }
    chart.update_xaxes(**common, showline=True)
    chart.update_yaxes(**common, showline=True)
    chart.update_annotations(font={"size": 13})
    return chart


def lines(num_points: int) -> str:
    """Lines alone where points would crowd; a single point must show too."""
    return "lines" if num_points >= CROWD else "lines+markers"


def whole_rounds(chart: go.Figure, num_rounds: int) -> None:
    """Of few rounds, mark each on the horizontal axes: there is none in between."""
    if num_rounds <= 12:
        chart.update_xaxes(tick0=0, dtick=1)


def significant(values: Iterable[Any], digits: int = 4) -> list[float | None]:
    """Values with so many significant digits; missing ones become ``None``.

    The file holds what a reader can see, and is a fraction of the size.
    """
    return [None if (number := finite(value)) is None else rounded(number, digits) for value in values]


def decimals(values: Iterable[Any], places: int = 1) -> list[float | None]:
    """Values with so many places behind the point; missing ones become ``None``."""
    return [None if (number := finite(value)) is None else round(number, places) for value in values]


def finite(value: Any) -> float | None:
    """A number, or ``None`` for what is missing, not a number or infinite."""
    if value is None or value is pd.NA:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def rounded(number: float, digits: int) -> float:
    """A finite number with so many significant digits."""
    return 0.0 if number == 0 else round(number, digits - 1 - math.floor(math.log10(abs(number))))
