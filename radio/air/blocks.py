"""The emulated air without samples: pilots are drawn, and so is whether a block is decoded.

Ports, words, rounds and settling are those of :mod:`radio.air.core`; only the computation of a window
is another.  Per slot and subcarrier of a receiver's window:

1.  Every transmitter's gain is taken from the taps that its samples would have gone through, with the
    phases that carrier offsets leave at each symbol.  Converters reduce the signal and add noise as
    :mod:`radio.air.converter` says, and a residual carrier offset spills power into neighbours.
2.  Pilots are that signal plus noise, and go through the modem's own estimator: SNR, noise and what was
    found have its statistics because it made them.
3.  The estimate against the truth gives the SNR of each equalised subcarrier, their mutual information
    the SNR of the block (:mod:`radio.effective_snr`), and the measured curve of its MCS the probability
    with which the decoder fails.

Draws are keyed by (seed, receiver or link, slot, subchannel), so that neither the order of words nor the
cutting of windows changes them.  Soundings are a few symbols per round, and stay samples: a window
of samples hears bursts of blocks too, which are then modulated as an ``iq`` modem would have.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray
from scipy import special

from radio.air.block_kernels import Superposition, add_transmitter, nothing_heard, transfer_power
from radio.air.block_limits import unsupported_by_blocks
from radio.air.channel import LinkChannel
from radio.air.converter import converter_effect
from radio.air.core import (
    AirCore,
    AirParameters,
    Window,
    WindowRequest,
    _amplitude_sqrt_w,
    _Port,
)
from radio.air.kept_blocks import Heard, KeptBlocks
from radio.air.noise import gaussian_noise, noise_key
from radio.block_errors import failure_rate
from radio.block_words import (
    SlotBurst,
    SlotReception,
    SlotRequest,
    block_digest,
    check_burst,
    check_request,
)
from radio.effective_snr import block_quality
from radio.errors import PlaneError, RadioConfigurationError
from radio.estimation import estimate_channel, find_transmitters
from radio.events import Observer, RadioEvent, RadioEventKind, ignore
from radio.fidelity import Fidelity
from radio.phy import UNUSED, ReceivedSlots
from radio.tracking import slot_motion
from radio.turns import possible_turns
from radio.units import db_to_linear, thermal_noise_w_per_hz

SPILL_SUBCARRIERS = 16  # to both sides, over which a carrier offset is taken to spill
NEGLIGIBLE = 1e-3  # of the noise: spilt power below it is left out


def spilt_power(received: NDArray[np.floating], spill: float) -> NDArray[np.float64]:
    """What a residual carrier offset spills from subcarriers into others, ``[num_subcarriers]``.

    A subcarrier that is off by e spacings is heard m places away with power sinc(m + e)^2, which for one
    symbol of the data is as random as noise.

    Parameters
    ----------
    received
        ``[num_subcarriers]`` powers.
    spill
        e, in subcarrier spacings.
    """
    reach = np.arange(-SPILL_SUBCARRIERS, SPILL_SUBCARRIERS + 1)
    weight = np.where(reach == 0, 0.0, np.sinc(reach - spill) ** 2)
    return np.asarray(np.convolve(received, weight, mode="same"))


def make_air(parameters: AirParameters, observer: Observer = ignore) -> AirCore:
    """The air of the fidelity that the parameters name."""
    if parameters.fidelity is Fidelity.BLOCKS:
        return BlockAir(parameters, observer)
    return AirCore(parameters, observer)


class BlockAir(AirCore):
    """An air of ``blocks`` fidelity.

    Raises
    ------
    RadioConfigurationError
        The parameters name something that blocks cannot represent.
    """

    def __init__(self, parameters: AirParameters, observer: Observer = ignore) -> None:
        refused = unsupported_by_blocks(parameters)
        if refused or parameters.numerology is None:
            raise RadioConfigurationError(
                f"an air of blocks fidelity cannot represent {'; '.join(refused)}; take radio.fidelity: iq"
            )
        super().__init__(parameters, observer)
        numerology = self._numerology = parameters.numerology
        seed = parameters.seed
        self._pilot_keys = {port.name: noise_key(seed, "pilots", port.name) for port in parameters.ports}
        self._clip_keys = {port.name: noise_key(seed, "clipping", port.name) for port in parameters.ports}
        self._block_keys = {
            (link.transmitter, link.receiver): noise_key(seed, "blocks", link.transmitter, link.receiver)
            for link in parameters.links
        }
        # Phase ramp of each tap over the subcarriers, [num_taps, num_subcarriers].
        self._ramps = {
            id(link): np.exp(
                -2j * np.pi * np.outer(link.delays, numerology.subcarrier_offsets) / numerology.fft_size
            ).astype(np.complex64)
            for links in self._heard_by.values()
            for link in links
        }
        pilot_a, pilot_b = numerology.pilot_symbols
        self._positions = (numerology.data_symbols - (pilot_a + pilot_b) / 2) / (pilot_b - pilot_a)

    # -------------------------------------------------------------------------------------- words
    def burst_of_slots(
        self, name: str, first_sample: int, burst: SlotBurst, silent_until: int = 0
    ) -> list[Window]:
        """Radiate blocks from an absolute index on, which is that of a slot's first sample.

        Raises
        ------
        LateBurstError
            As for :meth:`~radio.air.core.AirCore.burst`.
        PlaneError
            No modulator would take such a burst.
        """
        check_burst(burst, self._numerology)
        self._check_aligned(first_sample, name)
        port = self._accept(name, first_sample)
        kept = KeptBlocks(first_sample, burst, self._numerology, port.parameters.converter_bits)
        if not port.parameters.muted and burst.blocks:
            self._keep(port, kept)
            clipped = self._clipped(name, first_sample, kept.effects[:, 2])
            if clipped:
                self._observe(RadioEvent(RadioEventKind.CLIPPED, name, first_sample, clipped, "transmitter"))
        return self._spoken(port, max(kept.end, silent_until))

    def _check_slots(self, request: WindowRequest) -> None:
        assert request.slots is not None
        check_request(request.slots, self._numerology)
        self._check_aligned(request.first_sample, request.receiver)
        if request.num_samples != request.slots.num_slots * self._numerology.slot_samples:
            raise PlaneError(
                f"{request.receiver} asks for {request.slots.num_slots} slots in {request.num_samples} samples"
            )

    def _check_aligned(self, first_sample: int, name: str) -> None:
        if first_sample % self._numerology.slot_samples:
            raise PlaneError(
                f"{name} speaks of slots from sample {first_sample} on, where no slot of "
                f"{self._numerology.slot_samples} samples begins"
            )

    # ------------------------------------------------------------------------------------- windows
    def _compute(self, port: _Port, request: WindowRequest) -> Window:
        if request.slots is None:
            return super()._compute(port, request)
        window = self._receive(port, request, request.slots)
        port.heard_until = max(port.heard_until, request.first_sample + request.num_samples)
        clipped = window.clipped_samples
        if clipped:
            self._observe(
                RadioEvent(
                    RadioEventKind.CLIPPED, port.parameters.name, request.first_sample, clipped, "receiver"
                )
            )
        none = np.empty(0, np.complex64)
        return Window(request.receiver, request.request_id, request.first_sample, none, clipped, window)

    def _receive(self, port: _Port, request: WindowRequest, wanted: SlotRequest) -> SlotReception:
        numerology = self._numerology
        num_slots, width = wanted.num_slots, numerology.subcarriers_per_subchannel
        place_shape = (num_slots, numerology.num_subchannels)
        gain = float(np.sqrt(db_to_linear(port.rx_gain_db))) / _amplitude_sqrt_w(
            port.parameters.rx_full_scale_dbm
        )
        thermal = thermal_noise_w_per_hz(port.parameters.noise_figure_db) * numerology.sample_rate_hz
        floor = thermal * gain**2
        heard = [
            found
            for link in self._heard_by[port.parameters.name]
            if (found := self._hear(link, request.first_sample, wanted, gain)) is not None
        ]
        together = nothing_heard(*place_shape, width)
        for number, found in enumerate(heard):
            add_transmitter(
                found.taps,
                self._ramps[id(found.link)],
                found.amplitude,
                found.turn,
                found.advance,
                found.mcs_index,
                number,
                together,
            )
        noise = self._noise(port, request, heard, gain, floor)
        # What the converter gets, per sample: noise fills the whole band, signals their subcarriers.
        per_sample = noise.mean(axis=(1, 2)) + together.power / numerology.fft_size
        bits = port.parameters.converter_bits
        effects = np.array([converter_effect(float(value), bits) for value in per_sample])
        left = effects[:, 0, None, None].astype(np.float32)
        noise = noise * left**2 + effects[:, 1, None, None].astype(np.float32)
        together.signals[:] *= left[:, None]
        together.truth[:] *= left
        together.total[:] *= left**2
        clipped = self._clipped(port.parameters.name, request.first_sample, effects[:, 2])
        received_slots, failed = self._decode(port, request.first_sample, wanted, heard, together, noise)
        return SlotReception(received_slots, failed, clipped)

    def _noise(
        self, port: _Port, request: WindowRequest, heard: list[Heard], gain: float, floor: float
    ) -> NDArray[np.float32]:
        """``[num_slots, num_subchannels, width]``, or 1 where all are alike: what is no signal at the converter."""
        numerology = self._numerology
        width = numerology.subcarriers_per_subchannel
        noise = (floor + self._stray_power(port, request, gain))[:, None, None]
        for found in heard:
            ramps = self._ramps[id(found.link)]
            # No subcarrier is received better than with all taps in phase.
            best = np.abs(found.taps).sum(axis=1) ** 2
            if (found.converter_noise * best > NEGLIGIBLE * floor).any():
                added = transfer_power(found.taps, ramps) * found.converter_noise[:, None]
                noise = noise + added.reshape(*found.amplitude.shape, width)
            sent = np.where(found.mcs_index == UNUSED, 0.0, found.amplitude**2)
            share = (np.pi * found.spill) ** 2 / 3
            spilling = np.flatnonzero(share * best * sent.max(axis=1) > NEGLIGIBLE * floor)
            if len(spilling):
                spread = np.zeros((*sent.shape, width))
                received = transfer_power(found.taps, ramps) * np.repeat(sent, width, axis=1)
                for slot in spilling.tolist():
                    spilt = spilt_power(received[slot], float(found.spill[slot]))
                    spread[slot] = spilt.reshape(-1, width)
                noise = noise + spread
        return np.asarray(noise, np.float32)

    def _hear(self, link: LinkChannel, first_sample: int, wanted: SlotRequest, gain: float) -> Heard | None:
        """What one transmitter's blocks are in a window; ``None`` where it sends none."""
        numerology = self._numerology
        source = self._ports[link.parameters.transmitter]
        slot_samples, num_slots = numerology.slot_samples, wanted.num_slots
        end = first_sample + num_slots * slot_samples
        bursts = [
            ((kept.first_sample - first_sample) // slot_samples, kept)
            for kept in source.bursts
            if isinstance(kept, KeptBlocks) and kept.first_sample < end and kept.end > first_sample
        ]
        shape = (num_slots, numerology.num_subchannels)
        amplitude, mcs_index = np.zeros(shape), np.full(shape, UNUSED, np.int64)
        sent_cycles, tx_gain, tx_noise = np.zeros(num_slots), np.ones(num_slots), np.zeros(num_slots)
        for shift, kept in bursts:
            low, high = max(shift, 0), min(shift + kept.burst.num_slots, num_slots)
            own = slice(low - shift, high - shift)
            amplitude[low:high], mcs_index[low:high] = kept.amplitude[own], kept.mcs_index[own]
            sent_cycles[low:high] = kept.burst.cycles_per_sample
            tx_gain[low:high], tx_noise[low:high] = kept.effects[own, 0], kept.effects[own, 1]
        if not bursts or (mcs_index == UNUSED).all():
            return None
        taps = self._taps(link, first_sample, num_slots, sent_cycles)
        taps *= gain * _amplitude_sqrt_w(source.parameters.tx_full_scale_dbm)
        cycles = sent_cycles + link.cycles_per_sample - wanted.cycles_per_sample
        spill = cycles * numerology.fft_size
        pilot_a, pilot_b = numerology.pilot_symbols
        middle = (
            first_sample
            + np.arange(num_slots) * slot_samples
            + (pilot_a + pilot_b) / 2 * numerology.symbol_samples
            + numerology.prefix_samples
            + (numerology.fft_size - 1) / 2
        )
        turn = np.exp(2j * np.pi * np.mod(cycles * middle, 1.0)) * (tx_gain * np.sinc(spill))
        advance = 2 * np.pi * cycles * (pilot_b - pilot_a) * numerology.symbol_samples
        return Heard(
            link,
            taps,
            amplitude,
            mcs_index,
            np.asarray(turn, np.complex128),
            advance,
            spill,
            tx_noise,
            bursts,
        )

    def _taps(
        self, link: LinkChannel, first_sample: int, num_slots: int, sent_cycles: NDArray[np.float64]
    ) -> NDArray[np.complex128]:
        """``[num_slots, num_taps]`` amplitude gains, those of each slot's start and round."""
        slot_samples, update = self._numerology.slot_samples, self.parameters.tap_update_samples
        starts = first_sample + np.arange(num_slots) * slot_samples
        time_s = (starts // update) * (update / self.parameters.sample_rate_hz)
        rounds = [self._round_at(start + slot_samples // 2) for start in starts.tolist()]
        taps = np.empty((num_slots, len(link.delays)), np.complex128)
        for round_index in sorted(set(rounds)):
            chosen = np.array(rounds) == round_index
            taps[chosen] = link.taps_at(time_s[chosen], round_index)
        # The transmitter's own offset was put in before the delay.
        return np.asarray(taps * np.exp(-2j * np.pi * sent_cycles[:, None] * link.delays))

    def _round_at(self, sample: int) -> int:
        return self._round_indices[bisect_right(self._round_begins, sample) - 1]

    def _stray_power(self, port: _Port, request: WindowRequest, gain: float) -> NDArray[np.float64]:
        """``[num_slots]`` of samples that are no blocks, taken as white over the occupied band.

        Soundings and blocks never meet in the protocol; where they do, a slot is disturbed as a whole.
        """
        numerology = self._numerology
        num_slots = request.num_samples // numerology.slot_samples
        stray = np.zeros(num_slots)
        end = request.first_sample + request.num_samples
        for link in self._heard_by[port.parameters.name]:
            source = self._ports[link.parameters.transmitter]
            for burst in source.bursts:
                if isinstance(burst, KeptBlocks) or burst.first_sample >= end:
                    continue
                if burst.end <= request.first_sample:
                    continue
                for slot in range(num_slots):
                    start = request.first_sample + slot * numerology.slot_samples
                    piece = burst.samples[
                        :,
                        max(start - burst.first_sample, 0) : max(
                            start + numerology.slot_samples - burst.first_sample, 0
                        ),
                    ]
                    if piece.size:
                        taps = self._taps(link, start, 1, np.zeros(1))
                        amplitude = gain * _amplitude_sqrt_w(source.parameters.tx_full_scale_dbm)
                        mean_gain = float(np.sum(np.abs(taps) ** 2)) * amplitude**2
                        energy = float(np.sum(piece.astype(np.float64) ** 2))
                        stray[slot] += (
                            mean_gain
                            * (energy / numerology.slot_samples)
                            * (numerology.fft_size / numerology.num_subcarriers)
                        )
        return stray

    # ------------------------------------------------------------------------------------ receiver
    def _decode(
        self,
        port: _Port,
        first_sample: int,
        wanted: SlotRequest,
        heard: list[Heard],
        together: Superposition,
        noise: NDArray[np.float32],
    ) -> tuple[ReceivedSlots, dict[bytes, float]]:
        """What the modem's estimator makes of drawn pilots, and which blocks its decoder would return."""
        numerology = self._numerology
        num_slots, place_shape = wanted.num_slots, (wanted.num_slots, numerology.num_subchannels)
        result = ReceivedSlots(
            {},
            np.zeros(place_shape, bool),
            np.zeros(place_shape, np.float32),
            np.zeros(place_shape, np.float32),
            float("nan"),
            0,
        )
        used = np.flatnonzero((wanted.mcs_index != UNUSED) & (wanted.owner != UNUSED))
        if len(used) == 0:
            return result, {}
        pilots = self._pilots(port, first_sample, together.signals, noise)[:, :, used]
        estimate = estimate_channel(numerology, pilots)
        # From here to the equaliser as in radio.phy.
        estimated_noise = estimate.noise_power.mean(axis=0)
        result.snr[:, used], result.noise_power[:, used] = estimate.snr, estimated_noise
        owners, owner_of_used = np.unique(wanted.owner[used], return_inverse=True)
        members = (owner_of_used[None, :] == np.arange(len(owners))[:, None]).astype(np.float32)
        tried, certain = find_transmitters(numerology, estimate, members)
        result.attempted[:, used] = certain
        slots, local = np.nonzero(tried & (together.sent[:, used] == wanted.mcs_index[used]))
        if len(slots) == 0:
            return result, {}
        width = numerology.subcarriers_per_subchannel
        centres = numerology.subcarrier_offsets.reshape(-1, width)[used].mean(axis=1)
        motion = slot_motion(numerology, estimate, estimated_noise, centres, owner_of_used, tried)
        # Data tell whole turns between the pilots where there can be any: taken as always right.
        most = possible_turns(numerology)
        turns = np.clip(np.round((together.advance[:, used] - motion.angle) / (2 * np.pi)), -most, most)
        angle = motion.angle + 2 * np.pi * turns
        middle = motion.middle * np.where(turns % 2, np.float32(-1.0), np.float32(1.0))[:, :, None]
        subchannels = used[local]
        places = slots, subchannels
        mcs, transmitter = together.sent[places], together.loudest[places]
        truth = together.truth[places]
        others = np.maximum(together.total[places] - np.abs(truth) ** 2, 0)
        quality = block_quality(
            truth,
            middle[slots, local],
            np.broadcast_to(noise, together.total.shape)[places] + others,
            together.advance[places] - angle[slots, local],
            self._positions,
            mcs,
        )
        snr_db = quality.effective_snr_db
        digests = []
        if wanted.remembered is not None:
            digests = [
                block_digest(mcs_index, heard[which].content(slot, k))
                for mcs_index, which, slot, k in zip(
                    mcs.tolist(), transmitter.tolist(), slots.tolist(), subchannels.tolist(), strict=True
                )
            ]
            earlier = np.array([wanted.remembered.get(digest, 0.0) for digest in digests])
            snr_db = 10 * np.log10(10 ** (snr_db / 10) + earlier)
        uniform, normal = self._draws(port, first_sample, num_slots, heard)
        decoded = uniform[transmitter, slots, subchannels] >= self._failure_rate(mcs, snr_db)
        good = np.flatnonzero(decoded)
        for which, slot, k in zip(
            transmitter[good].tolist(), slots[good].tolist(), subchannels[good].tolist(), strict=True
        ):
            result.blocks[slot, k] = heard[which].content(slot, k)
        result.attempted[slots[good], subchannels[good]] = True
        failed = {
            digests[index]: float(10 ** (snr_db[index] / 10)) for index in np.flatnonzero(~decoded) if digests
        }
        if len(good):
            # One block of each MCS, as the modem does; its error energy is a sum over all its symbols.
            first = good[np.unique(mcs[good], return_index=True)[1]]
            elements = numerology.block_resource_elements
            scatter = normal[transmitter[first], slots[first], subchannels[first]] / np.sqrt(elements)
            error = quality.error_power[first] * np.maximum(1 + scatter, 0.0)
            result.evm = float(np.sqrt(error.mean()))
        return result, failed

    def _failure_rate(self, mcs_index: NDArray[np.int64], snr_db: NDArray[np.float64]) -> NDArray[np.float64]:
        return failure_rate(mcs_index, snr_db, self._numerology.block_resource_elements)

    def _pilots(
        self,
        port: _Port,
        first_sample: int,
        signals: NDArray[np.complex64],
        noise: NDArray[np.float32],
    ) -> NDArray[np.complex64]:
        """``[num_slots, 2, num_subchannels, width]`` received pilots over sent ones."""
        numerology = self._numerology
        count = 2 * numerology.num_subcarriers
        drawn = gaussian_noise(
            self._pilot_keys[port.parameters.name],
            first_sample // numerology.slot_samples * count,
            len(signals) * count,
            np.sqrt(0.5),
        )
        deviation = np.sqrt(noise)[:, None]
        pilots = np.empty(signals.shape, np.complex64)
        pilots.real = signals.real + drawn[0].reshape(signals.shape) * deviation
        pilots.imag = signals.imag + drawn[1].reshape(signals.shape) * deviation
        return pilots

    def _draws(
        self, port: _Port, first_sample: int, num_slots: int, heard: list[Heard]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """A uniform and a normal number for each transmitter, slot and subchannel."""
        numerology = self._numerology
        num = numerology.num_subchannels
        first = first_sample // numerology.slot_samples * num
        drawn = np.array(
            [
                gaussian_noise(
                    self._block_keys[found.link.parameters.transmitter, port.parameters.name],
                    first,
                    num_slots * num,
                )
                for found in heard
            ]
        ).reshape(len(heard), 2, num_slots, num)
        return special.ndtr(drawn[:, 0].astype(np.float64)), drawn[:, 1]

    def _clipped(self, name: str, first_sample: int, share: NDArray[np.float64]) -> int:
        """How many samples of consecutive slots a converter clips: drawn, as it is rare or countless."""
        slot_samples = self._numerology.slot_samples
        if not (share * slot_samples > 1e-9).any():
            return 0
        first_slot = first_sample // slot_samples
        uniform = special.ndtr(
            gaussian_noise(self._clip_keys[name], first_slot, len(share))[0].astype(np.float64)
        )
        # The smallest count whose cumulative binomial probability reaches the draw.
        counts = np.ceil(special.bdtrik(uniform, slot_samples, share))
        counts = np.where(np.isfinite(counts), counts, 0.0)
        return int(np.clip(counts, 0, slot_samples).sum())
