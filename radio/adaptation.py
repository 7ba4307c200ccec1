"""Link adaptation: the MCS of each subchannel from its SNR and from what was acknowledged.

The inner loop picks the fastest MCS whose threshold lies below the effective SNR; the outer loop
shifts that SNR by what acknowledgements say, so that estimation errors of any kind end in the
target block error rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio.mcs import highest_mcs
from radio.phy import UNUSED

STEP_DB = 0.2  # shift after a slot whose blocks all failed, at a target of 0
LIMIT_DB = 10.0
TRUSTED_DB = 1.0  # shift that outlives a new sounding; of what exceeds it, half is forgotten


@dataclass
class LinkAdaptation:
    """Outer loop of one link direction.

    Attributes
    ----------
    target_bler
        Block error rate that the shift settles at.
    backoff_db
        Fixed margin [dB] below the thresholds.
    offset_db
        Current shift [dB]; positive makes the choice more careful.
    """

    target_bler: float
    backoff_db: float
    offset_db: float = 0.0

    def observe(self, num_ok: int, num_failed: int) -> None:
        """Note the blocks of one slot; the shift moves by at most :data:`STEP_DB`."""
        total = num_ok + num_failed
        if total == 0:
            return
        # In equilibrium the mean of (error rate - target) is zero, so the target is met exactly.
        step = STEP_DB * (num_failed / total - self.target_bler)
        self.offset_db = float(np.clip(self.offset_db + step, -LIMIT_DB, LIMIT_DB))

    def observe_slots(self, num_ok: NDArray[np.integer], num_failed: NDArray[np.integer]) -> None:
        """Note the blocks of consecutive slots, each ``[num_slots]``."""
        for ok, failed in zip(num_ok.tolist(), num_failed.tolist(), strict=True):
            self.observe(ok, failed)

    def renew(self) -> None:
        """A new sounding is there: what went wrong before it says less about the channel now.

        At a small target the shift falls by ``STEP_DB * target`` per slot only; after a stream that
        was lost in a fade it would stay careful for hundreds of slots.
        """
        if self.offset_db > TRUSTED_DB:
            self.offset_db = TRUSTED_DB + (self.offset_db - TRUSTED_DB) / 2

    def choose(self, snr: NDArray[np.floating], num_resource_elements: int) -> NDArray[np.int64]:
        """MCS index of each subchannel.

        Parameters
        ----------
        snr
            ``[num_subchannels]`` linear SNR; 0 or NaN where there is none.

        Returns
        -------
        ``[num_subchannels]``; :data:`~radio.phy.UNUSED` where even the lowest MCS's threshold is
        missed, except that the best subchannel is always used: a stream ends by success or by
        being given up, not by silence.
        """
        given = np.asarray(snr, np.float64)
        usable = np.where(np.isfinite(given), given, 0.0)
        snr_db = 10.0 * np.log10(np.maximum(usable, 1e-12))
        margin = self.backoff_db + self.offset_db
        index = np.asarray(highest_mcs(snr_db, num_resource_elements, margin), np.int64)
        if len(index) and np.all(index == UNUSED):
            index[int(np.argmax(usable))] = 0
        return index


LEAST_WEIGHT = 0.3  # of the newest frame: a channel that moves is followed within three frames


@dataclass
class TrackedSnr:
    """SNR of each subchannel, averaged over the frames of a stream.

    One frame's estimate rests on few pilots where subchannels are narrow, and an MCS chosen from it jumps.

    Attributes
    ----------
    snr
        ``[num_subchannels]`` linear; 0 where there is none yet.
    num_frames
        ``[num_subchannels]`` estimates in it.
    """

    snr: NDArray[np.float64]
    num_frames: NDArray[np.int64]

    @classmethod
    def empty(cls, num_subchannels: int) -> TrackedSnr:
        return cls(np.zeros(num_subchannels), np.zeros(num_subchannels, np.int64))

    def restart(self, subchannels: NDArray[np.int64], snr: NDArray[np.floating]) -> None:
        """Take what a sounding measured, in place of all that was before."""
        self.snr[subchannels], self.num_frames[subchannels] = snr, 1

    def add(self, subchannels: NDArray[np.int64], snr: NDArray[np.floating]) -> None:
        """Average the estimates of one more frame in: plainly at first, then with :data:`LEAST_WEIGHT`."""
        self.num_frames[subchannels] += 1
        weight = np.maximum(1.0 / self.num_frames[subchannels], LEAST_WEIGHT)
        self.snr[subchannels] += weight * (snr - self.snr[subchannels])
