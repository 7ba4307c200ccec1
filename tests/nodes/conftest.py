"""torch on one thread and deterministic, in these tests and as on an emulated board."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
