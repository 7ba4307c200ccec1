"""Small training set-ups shared by the tests: random data, identical starts, whole rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nodes.learning.aggregation import Reading
from nodes.learning.client import ClientTrainer, assemble_gradient
from nodes.learning.models import build_model
from nodes.learning.server import ServerStep, ServerTrainer
from nodes.learning.stages import OptimizerSettings

SHAPE = (1, 4, 4)
CLASSES = 5


def make_model(seed: int = 1, name: str = "mlp", dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    """A model of the package, or ``small-norm``: batch norm on both sides and stages without state."""
    if name == "small-norm":
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            stages = [
                nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()),
                nn.MaxPool2d(2),
                nn.Sequential(nn.Conv2d(4, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU()),
                nn.AdaptiveAvgPool2d(1),
                nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES)),
            ]
        return nn.ModuleList(stages).to(dtype)
    return build_model(name, SHAPE, CLASSES, seed, dtype)


def make_batch(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((size, *SHAPE)), rng.integers(0, CLASSES, size)


@dataclass
class Group:
    """Clients and a server that start from one model."""

    clients: list[ClientTrainer]
    server: ServerTrainer

    @classmethod
    def make(
        cls,
        num_clients: int,
        cut: int = 2,
        settings: OptimizerSettings | None = None,
        name: str = "mlp",
        dtype: torch.dtype = torch.float64,
    ) -> Group:
        settings = settings or OptimizerSettings(0.1, 0.9)
        return cls(
            [ClientTrainer(make_model(1, name, dtype), cut, settings) for _ in range(num_clients)],
            ServerTrainer(make_model(1, name, dtype), cut, settings),
        )

    def round(
        self,
        batches: Sequence[tuple[np.ndarray, np.ndarray]],
        weights: Sequence[float],
        phi: float = 0.0,
        reading: Reading = Reading.LAYERWISE,
        weighted: bool = False,
    ) -> ServerStep:
        smashed = {i: self.clients[i].forward(x) for i, (x, _) in enumerate(batches)}
        labels = {i: y for i, (_, y) in enumerate(batches)}
        step = self.server.step(smashed, labels, dict(enumerate(weights)), phi, reading, weighted)
        for i, (_, y) in enumerate(batches):
            scale = step.plan.weights[i] if weighted else 1.0
            self.clients[i].backward(assemble_gradient(step.broadcast, step.own[i], len(y), scale))
        return step

    def parameters(self) -> list[np.ndarray]:
        """All trained parameters of all roles, flattened, clients first."""
        roles = [*self.clients, self.server]
        return [
            torch.cat([p.detach().reshape(-1) for p in role.stages.parameters()]).numpy().copy()
            for role in roles
        ]


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Largest absolute difference between two lists of parameters."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
