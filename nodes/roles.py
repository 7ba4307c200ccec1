"""What both roles share: names of streams, bounds on what may arrive, learning settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nodes.learning.aggregation import Reading
from nodes.learning.models import ModelProfile
from nodes.learning.stages import OptimizerSettings, StageState, flatten_states, unflatten_states
from nodes.messages import (
    AdaptationState,
    LearningSpec,
    LinkMeasurement,
    LossReport,
    NodeSetup,
    ReceptionReport,
    TransmissionReport,
)
from nodes.weights import Manifest, manifest_of, pack_weights, unpack_weights
from radio.link import stream_tag

CODEC_OVERHEAD_BYTES = 4096
WEIGHTS_OVERHEAD_BYTES = 1 << 20
LABEL_BYTES = 8


def client_settings(learning: LearningSpec) -> OptimizerSettings:
    return OptimizerSettings(learning.learning_rate_client, learning.momentum)


def server_settings(learning: LearningSpec) -> OptimizerSettings:
    return OptimizerSettings(learning.learning_rate_server, learning.momentum)


def reading_of(learning: LearningSpec) -> Reading:
    return Reading(learning.reading)


def aggregation_ratio(learning: LearningSpec) -> float:
    """phi; 0 for PSL."""
    return 0.0 if learning.scheme == "psl" else learning.phi


def tag_of(setup: NodeSetup, round_index: int, attempt: int, stream: str, client: str) -> int:
    """Tag of a stream's blocks.

    From the seed and not from the run's id, so that the same experiment puts the same bits on the air.
    """
    return stream_tag(setup.seed, round_index, attempt, stream, client)


def max_smashed_bytes(profile: ModelProfile, cut_layer: int, num_samples: int) -> int:
    """Bound on an encoded bundle of smashed data (or gradients) and labels."""
    per_sample = profile.smashed_bits[cut_layer] // 8 + LABEL_BYTES
    return num_samples * per_sample + CODEC_OVERHEAD_BYTES


def max_state_bytes(profile: ModelProfile, first: int, last: int) -> int:
    """Bound on encoded parameters, buffers and optimiser state of stages [first, last)."""
    parts = (profile.parameter_bytes, profile.buffer_bytes, profile.optimiser_bytes)
    return sum(sum(part[first:last]) for part in parts) + WEIGHTS_OVERHEAD_BYTES


def pack_states(states: Mapping[int, StageState]) -> bytes:
    """Stage states as safetensors bytes."""
    return pack_weights(flatten_states(states))


def states_manifest(states: Mapping[int, StageState]) -> Manifest:
    """What :func:`unpack_states` accepts: exactly such states."""
    return manifest_of(flatten_states(states))


def unpack_states(data: bytes, manifest: Manifest) -> dict[int, StageState]:
    """Stage states from safetensors bytes; ``WeightsError`` if they are not the declared ones."""
    return unflatten_states(unpack_weights(data, manifest))


def label_array(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels in the smallest type the codec knows."""
    return labels.astype(np.uint8 if num_classes <= 256 else np.int64)


@dataclass(frozen=True)
class RehearsalStep:
    """A computation of a round, to be tried off the clock."""

    phase: str
    flops: float
    work: Callable[[], object]


@dataclass
class RoundNotes:
    """What a role collects during a round, for its report."""

    end_ns: int = 0
    complete: bool = True
    words: list[str] = field(default_factory=list)
    transmissions: list[TransmissionReport] = field(default_factory=list)
    receptions: list[ReceptionReport] = field(default_factory=list)
    links: list[LinkMeasurement] = field(default_factory=list)
    losses: list[LossReport] = field(default_factory=list)
    adaptation: list[AdaptationState] = field(default_factory=list)

    def fail(self, words: str) -> None:
        """Note in words why the round is not complete."""
        self.complete = False
        self.words.append(words)

    def reach(self, instant_ns: int) -> None:
        """The round lasts at least until then."""
        self.end_ns = max(self.end_ns, instant_ns)
