"""A transmitter whose sample clock runs at another rate than its receiver's.

At the receiver's sample n one hears the transmitter's sample n (1 + d), d being the drift: a fast
transmitter's signal is compressed and comes earlier and earlier.  Two laboratories know this:

* *Common timing.*  All radios count the same samples, since somebody (a trigger, a pulse per second,
  timing advance) sets their counters right again and again, here at each multiple of
  ``realign_samples``.  Drift accumulates in between.  The link's delay then stays within a fixed bound,
  and is so chosen that nothing is heard before it has been sent.
* *Free running* (``realign_samples`` 0).  Drift accumulates from the run's sample 0 on, without bound:
  at 20 ppm and 20 Msample/s by 400 samples each second.  What a slow transmitter sends is heard later
  and later; what a fast one sends is heard earlier than its own count says, and the air waits until it
  has spoken for as many more samples.  Its words count its own samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from radio.air.fractional import HALF_WIDTH
from radio.air.interpolation import interpolate, source_range
from radio.errors import RadioConfigurationError

MAX_DRIFT_PPM = 1000.0
PPM = 1e-6


class SampleClock:
    """Which of a transmitter's samples a receiver hears at each of its own.

    Parameters
    ----------
    drift_ppm
        Rate of the transmitter's clock over the receiver's, less one [1e-6]; positive: it is fast.
    realign_samples
        Period [samples] of both counters being set right; 0: never.

    Raises
    ------
    RadioConfigurationError
        A drift beyond 1000 ppm, or a negative period.
    """

    def __init__(self, drift_ppm: float, realign_samples: int) -> None:
        if not abs(drift_ppm) <= MAX_DRIFT_PPM:
            raise RadioConfigurationError(
                f"a clock drift of {drift_ppm} ppm; from -{MAX_DRIFT_PPM:g} to {MAX_DRIFT_PPM:g} can be had"
            )
        if realign_samples < 0:
            raise RadioConfigurationError(f"clocks set right every {realign_samples} samples")
        self.drift = drift_ppm * PPM
        self.realign_samples = realign_samples
        # Half the kernel, and what a fast clock gains within a period, so that no sample is heard early.
        self.delay_samples = HALF_WIDTH + math.ceil(max(self.drift, 0.0) * realign_samples)

    @property
    def max_delay_samples(self) -> int:
        """Longest delay of a realigned link [samples]; a free-running one has none."""
        return HALF_WIDTH + math.ceil(abs(self.drift) * self.realign_samples)

    def _stretches(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(first, end, anchor) of the parts of a stretch in which drift has one origin."""
        period, delay = self.realign_samples, self.delay_samples
        if not period:
            yield first, end, delay
            return
        while first < end:
            turn = (first - delay) // period
            stop = min(end, (turn + 1) * period + delay)
            yield first, stop, turn * period + delay
            first = stop

    def source_span(self, first: int, end: int) -> tuple[int, int]:
        """First and end of the transmitter's samples on which receiver samples first..end depend."""
        ranges = [self._source_range(*stretch) for stretch in self._stretches(first, max(end, first + 1))]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def _source_range(self, first: int, end: int, anchor: int) -> tuple[int, int]:
        low, high = source_range(first, end, 1, anchor, self.drift)
        origin = anchor - self.delay_samples
        return low + origin, high + origin

    def heard(
        self, bursts: Iterable[tuple[int, NDArray[np.float32]]], first: int, end: int
    ) -> tuple[int, NDArray[np.float32]] | None:
        """Bursts as they are at the receiver's samples first..end.

        Parameters
        ----------
        bursts
            (first sample, samples float32 ``[2, num_samples]``), by the transmitter's count.

        Returns
        -------
        (first sample, float32 ``[2, num_samples]``) by the receiver's count, within first..end; outside of
        it is silence.  ``None`` where all of it is.
        """
        low, high = self.source_span(first, end)
        near = [
            (burst_first, samples)
            for burst_first, samples in bursts
            if burst_first < high and burst_first + samples.shape[1] > low
        ]
        if not near:
            return None
        starts, stops = zip(*(self._reach(at, at + samples.shape[1]) for at, samples in near), strict=True)
        first, end = max(first, min(starts)), min(end, max(stops))
        if first >= end:
            return None
        out = np.empty((2, end - first), np.float32)
        for start, stop, anchor in self._stretches(first, end):
            low, high = self._source_range(start, stop, anchor)
            source = np.zeros((2, high - low), np.float32)
            for burst_first, samples in near:
                begins, ends = max(burst_first, low), min(burst_first + samples.shape[1], high)
                if begins < ends:
                    source[:, begins - low : ends - low] = samples[
                        :, begins - burst_first : ends - burst_first
                    ]
            origin = anchor - self.delay_samples
            part = np.empty((2, stop - start), np.float32)
            interpolate(source, low - origin, start, 1, anchor, self.drift, part)
            out[:, start - first : stop - first] = part
        return first, out

    def _reach(self, first: int, end: int) -> tuple[int, int]:
        """Receiver samples that can hear something of the transmitter's samples first..end."""
        if self.realign_samples:
            slack = math.ceil(abs(self.drift) * self.realign_samples) + HALF_WIDTH + 1
            return first + self.delay_samples - slack, end + self.delay_samples + slack
        rate, slack = 1.0 + self.drift, HALF_WIDTH + 2
        return (
            math.floor((first - slack) / rate) + self.delay_samples,
            math.ceil((end + slack) / rate) + self.delay_samples,
        )
