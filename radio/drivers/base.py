"""The interface of every radio.

A management plane (``configure``, read back), a timestamped data plane (``transmit``,
``receive``) and events to an observer.  Samples are complex64 ``[num_channels, num_samples]``
with full scale 1.0.  Sample indices count from the start of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radio.block_words import SlotBurst, SlotReception, SlotRequest


class TimestampSource(str, Enum):
    HOST = "host"
    SAMPLES = "samples"
    DEVICE = "device"


@dataclass(frozen=True)
class Capabilities:
    """What a driver can do.

    Attributes
    ----------
    common_timing
        All radios of the lab share a sample clock to within the cyclic prefix, so OFDMA works.
    slots
        It can carry blocks in place of samples (:class:`SlotRadio`): an emulated air of ``blocks``
        fidelity.
    """

    driver: str
    timestamps: TimestampSource
    common_timing: bool
    min_sample_rate_hz: float
    max_sample_rate_hz: float
    rx_gain_range_db: tuple[float, float]
    num_channels: int = 1
    slots: bool = False


@dataclass(frozen=True)
class RadioConfig:
    """What a device is asked to be, and what it says it became."""

    sample_rate_hz: float
    rx_gain_db: float


@dataclass(frozen=True)
class Reception:
    """A window of received samples.

    Attributes
    ----------
    samples
        ``[num_channels, num_samples]``.
    first_sample
        Sample index of the first one.
    uncertainty_samples
        Standard deviation of ``first_sample``; 0 where the clock is the air's own.
    clipped_samples
        Samples of the window beyond full scale.
    """

    samples: NDArray[np.complex64]
    first_sample: int
    uncertainty_samples: float
    clipped_samples: int


class Radio(Protocol):
    """Any radio."""

    capabilities: Capabilities

    async def start(self) -> None:
        """Open the device; a second call does nothing."""

    async def stop(self) -> None:
        """Mute and close the device; a second call does nothing."""

    async def configure(self, config: RadioConfig) -> RadioConfig:
        """Apply a configuration and return what the device accepted.

        Raises
        ------
        RadioConfigurationError
            The device did not take a value; both values are named.
        """

    async def transmit(
        self,
        samples: NDArray[np.complex64],
        at_sample: int,
        end_of_burst: bool = True,
        silent_until: int | None = None,
    ) -> None:
        """Radiate ``[num_channels, num_samples]`` from a sample index on.

        Nothing will be radiated between its end and ``silent_until``, if that is given.

        Raises
        ------
        LateBurstError
            That index has passed.
        """

    async def silent_until(self, at_sample: int) -> None:
        """Nothing will be radiated before a sample index."""

    async def stand_down(self) -> None:
        """Nothing will be radiated until a control message asks for it."""

    async def receive(
        self,
        num_samples: int,
        at_sample: int,
        expected: frozenset[str] = frozenset(),
        timeout_s: float = 30.0,
    ) -> Reception:
        """Samples from an index on.

        Parameters
        ----------
        expected
            Transmitters that will speak for this window themselves.

        Raises
        ------
        RadioTimeoutError
            Nothing came within the wall-clock timeout.
        RadioLostError
            The device is gone.
        """


class SlotRadio(Radio, Protocol):
    """A radio that also carries blocks as such."""

    async def transmit_slots(self, burst: SlotBurst, at_sample: int, silent_until: int | None = None) -> None:
        """Radiate the blocks of slots, of which the first begins at a sample index.

        Raises
        ------
        LateBurstError
            That index has passed.
        """

    async def receive_slots(
        self,
        request: SlotRequest,
        at_sample: int,
        num_samples: int,
        expected: frozenset[str] = frozenset(),
        timeout_s: float = 30.0,
    ) -> SlotReception:
        """What slots held, of which the first begins at a sample index; as :meth:`receive`."""
