"""What the forkserver loads once, so that node processes start within milliseconds.

Imports and kernels only: no torch computation, whose threads would not survive the fork.
"""

from __future__ import annotations

import gc

import torch._dynamo
import torch.utils.flop_counter  # noqa: F401

import nodes.process  # noqa: F401
from radio.warmup import warm_up

warm_up()

# What was imported stays: without this every full garbage collection of every node would walk
# torch's half a million objects, and copy the pages they lie on.
gc.collect()
gc.freeze()
