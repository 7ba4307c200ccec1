"""The two base graphs of 5G NR, lifted to the size a block needs (TS 38.212, 5.2.2 and 5.3.2).

A base graph is a small matrix of cyclic shifts; each entry stands for a Z x Z identity matrix whose
row i has its one in column (i + shift) mod Z.  The first two columns are never sent.  Columns after
the first four parity columns have a single entry each: a code word can stop after any of them, and
the check rows beyond are then not needed.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources

import numpy as np
from numpy.typing import NDArray

NUM_CORE_LAYERS = 4
NUM_PUNCTURED_COLUMNS = 2

_SET_FACTORS = (2, 3, 5, 7, 9, 11, 13, 15)
_MAX_LIFTING_SIZE = 384
# TS 38.212 table 5.3.2-1: every factor times a power of two, up to 384.
LIFTING_SIZES: tuple[int, ...] = tuple(
    sorted(
        factor << power
        for factor in _SET_FACTORS
        for power in range(8)
        if factor << power <= _MAX_LIFTING_SIZE
    )
)


class BaseGraph(IntEnum):
    """Which of the two base graphs: 1 for long blocks and high rates, 2 for short or low."""

    BG1 = 1
    BG2 = 2

    @property
    def num_systematic_columns(self) -> int:
        """Columns that carry information bits (fillers included)."""
        return 22 if self is BaseGraph.BG1 else 10

    @property
    def num_layers(self) -> int:
        """Check rows, which is also the number of parity columns."""
        return 46 if self is BaseGraph.BG1 else 42

    @property
    def max_code_block_bits(self) -> int:
        """Longest code block, its check included [bit]."""
        return 8448 if self is BaseGraph.BG1 else 3840


@functools.cache
def base_graph_entries(base_graph: BaseGraph) -> NDArray[np.int32]:
    """Return the entries of a base graph in row order.

    Returns
    -------
    int32 [num_entries, 10]
        Row, column, and the shift of each of the eight lifting-size sets.  Read only.
    """
    source = resources.files("radio").joinpath("data", "nr_ldpc_base_graphs.csv")
    lines = list(csv.reader(source.read_text(encoding="utf-8").splitlines()))
    chosen = [[int(field) for field in line[1:]] for line in lines[1:] if int(line[0]) == base_graph]
    entries = np.array(sorted(chosen), dtype=np.int32)
    entries.flags.writeable = False
    return entries


def select_base_graph(num_payload_bits: int, code_rate: float) -> BaseGraph:
    """Return the base graph for a transport block (TS 38.212, 6.2.2 and 7.2.2).

    Parameters
    ----------
    num_payload_bits
        Transport block without its check [bit].
    code_rate
        Nominal code rate.
    """
    if num_payload_bits <= 292 or (num_payload_bits <= 3824 and code_rate <= 0.67) or code_rate <= 0.25:
        return BaseGraph.BG2
    return BaseGraph.BG1


def select_lifting_size(base_graph: BaseGraph, num_block_bits: int, num_code_block_bits: int) -> int:
    """Return the smallest lifting size that holds a code block (TS 38.212, 5.2.2).

    Parameters
    ----------
    base_graph
        The base graph.
    num_block_bits
        B: the transport block with its check [bit]; it alone decides K_b of the second graph.
    num_code_block_bits
        K': one code block with its own check, if any [bit].
    """
    if base_graph is BaseGraph.BG1:
        num_columns = 22
    elif num_block_bits > 640:
        num_columns = 10
    elif num_block_bits > 560:
        num_columns = 9
    elif num_block_bits > 192:
        num_columns = 8
    else:
        num_columns = 6
    for size in LIFTING_SIZES:
        if num_columns * size >= num_code_block_bits:
            return size
    raise ValueError(
        f"choosing a lifting size for {base_graph.name}: a code block of {num_code_block_bits} bits is "
        f"above the largest one, {num_columns * _MAX_LIFTING_SIZE}; split the transport block"
    )


@dataclass(frozen=True, eq=False)
class LiftedCode:
    """A base graph with its shifts reduced to one lifting size, cut to the rows in use.

    Attributes
    ----------
    base_graph, lifting_size, num_layers
        Which graph, Z, and how many check rows are used.
    layer_start
        int32 [num_layers + 1]: entries of row r are `layer_start[r]:layer_start[r + 1]`.
    entry_column, entry_shift
        int32 [num_entries]: column, and shift in 0..Z-1.  Columns that hold only filler bits are
        left out: zeros that both ends know.
    """

    base_graph: BaseGraph
    lifting_size: int
    num_layers: int
    layer_start: NDArray[np.int32]
    entry_column: NDArray[np.int32]
    entry_shift: NDArray[np.int32]


@functools.lru_cache(maxsize=512)
def lifted_code(
    base_graph: BaseGraph, lifting_size: int, num_layers: int, num_used_systematic_columns: int
) -> LiftedCode:
    """Return a base graph lifted to Z (TS 38.212, 5.3.2), without unused rows and filler columns."""
    if lifting_size not in LIFTING_SIZES:
        raise ValueError(
            f"lifting {base_graph.name}: {lifting_size} is not one of the standard's lifting sizes; "
            "take one from LIFTING_SIZES"
        )
    odd_part = lifting_size
    while odd_part % 2 == 0:
        odd_part //= 2
    set_index = _SET_FACTORS.index(2 if odd_part == 1 else odd_part)
    entries = base_graph_entries(base_graph)
    column = entries[:, 1]
    filler = (column >= num_used_systematic_columns) & (column < base_graph.num_systematic_columns)
    entries = entries[(entries[:, 0] < num_layers) & ~filler]
    layer_start = np.searchsorted(entries[:, 0], np.arange(num_layers + 1)).astype(np.int32)
    return LiftedCode(
        base_graph,
        lifting_size,
        num_layers,
        layer_start,
        np.ascontiguousarray(entries[:, 1]),
        np.ascontiguousarray(entries[:, 2 + set_index] % lifting_size),
    )
