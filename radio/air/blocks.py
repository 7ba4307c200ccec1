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
from radio.effective_snr import BlockQuality
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
            )
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
            if (found := self._hear(link, request.first_sample, wanted, gain, floor)) is not None
        ]
        noise = np.full((*place_shape, width), floor)
        noise += self._stray_power(port, request, gain)[:, None, None]
        power = np.zeros(num_slots)
        for found in heard:
            received = np.abs(found.channel) ** 2
            power += received.sum(axis=(1, 2))
            if found.noise is not None:
                noise += found.noise
            self._spill(found, received, floor, noise)
        # What the converter gets, per sample: noise fills the whole band, signals their subcarriers.
        per_sample = noise.mean(axis=(1, 2)) + power / numerology.fft_size
        bits = port.parameters.converter_bits
        effects = np.array([converter_effect(float(value), bits) for value in per_sample])
        noise *= (effects[:, 0] ** 2)[:, None, None]
        noise += effects[:, 1][:, None, None]
        for found in heard:
            found.channel *= effects[:, 0][:, None, None]
        clipped = self._clipped(port.parameters.name, request.first_sample, effects[:, 2])
        received_slots, failed = self._decode(port, request.first_sample, wanted, heard, noise)
        return SlotReception(received_slots, failed, clipped)

    def _hear(
        self, link: LinkChannel, first_sample: int, wanted: SlotRequest, gain: float, floor: float
    ) -> Heard | None:
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
        subchannels = np.flatnonzero((mcs_index != UNUSED).any(axis=0))
        if len(subchannels) == 0:
            return None
        taps = self._taps(link, first_sample, num_slots, sent_cycles)
        taps *= gain * _amplitude_sqrt_w(source.parameters.tx_full_scale_dbm)
        width = numerology.subcarriers_per_subchannel
        ramps = self._ramps[id(link)]
        own_ramps = ramps.reshape(len(ramps), -1, width)[:, subchannels].reshape(len(ramps), -1)
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
        turn = tx_gain * np.sinc(spill) * np.exp(2j * np.pi * np.mod(cycles * middle, 1.0))
        channel = (taps @ own_ramps).reshape(num_slots, len(subchannels), width)
        channel *= (amplitude[:, subchannels] * turn[:, None])[:, :, None]
        advance = 2 * np.pi * cycles * (pilot_b - pilot_a) * numerology.symbol_samples
        noise = None
        if (tx_noise * np.abs(taps).sum(axis=1) ** 2 > NEGLIGIBLE * floor).any():
            noise = (np.abs(taps @ ramps) ** 2 * tx_noise[:, None]).reshape(*shape, width)
        return Heard(link, subchannels, channel, advance, spill, mcs_index[:, subchannels], noise, bursts)

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

    def _spill(
        self,
        found: Heard,
        received: NDArray[np.float64],
        thermal: float,
        noise: NDArray[np.float64],
    ) -> None:
        """Add to the noise what a residual carrier offset spills from each subcarrier into the others.

        A subcarrier that is off by e spacings is heard m places away with power sinc(m + e)^2, which
        for one symbol of the data is as random as noise.
        """
        share = (np.pi * found.spill) ** 2 / 3
        for slot in np.flatnonzero(share * received.max(axis=(1, 2)) > NEGLIGIBLE * thermal).tolist():
            reach = np.arange(-SPILL_SUBCARRIERS, SPILL_SUBCARRIERS + 1)
            weight = np.where(reach == 0, 0.0, np.sinc(reach - found.spill[slot]) ** 2)
            sent = np.zeros(noise[slot].shape)
            sent[found.subchannels] = received[slot]
            spread = np.convolve(sent.reshape(-1), weight, mode="same")
            noise[slot] += spread.reshape(sent.shape)

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
        noise: NDArray[np.float64],
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
        signals, truth, disturbance, sent, loudest, advance = self._superpose(heard, place_shape)
        pilots = self._pilots(port, first_sample, signals, noise)[:, :, used]
        estimate = estimate_channel(numerology, pilots)
        # From here to the equaliser as in radio.phy.
        estimated_noise = estimate.noise_power.mean(axis=0)
        result.snr[:, used], result.noise_power[:, used] = estimate.snr, estimated_noise
        owners, owner_of_used = np.unique(wanted.owner[used], return_inverse=True)
        members = (owner_of_used[None, :] == np.arange(len(owners))[:, None]).astype(np.float32)
        tried, certain = find_transmitters(numerology, estimate, members)
        result.attempted[:, used] = certain
        slots, local = np.nonzero(tried & (sent[:, used] == wanted.mcs_index[used]))
        if len(slots) == 0:
            return result, {}
        width = numerology.subcarriers_per_subchannel
        centres = numerology.subcarrier_offsets.reshape(-1, width)[used].mean(axis=1)
        motion = slot_motion(numerology, estimate, estimated_noise, centres, owner_of_used, tried)
        # Data tell whole turns between the pilots where there can be any: taken as always right.
        most = possible_turns(numerology)
        turns = np.clip(np.round((advance[:, used] - motion.angle) / (2 * np.pi)), -most, most)
        angle = motion.angle + 2 * np.pi * turns
        middle = motion.middle * np.where(turns % 2, np.float32(-1.0), np.float32(1.0))[:, :, None]
        subchannels = used[local]
        places = slots, subchannels
        mcs, transmitter = sent[places], loudest[places]
        quality = BlockQuality(
            truth[places],
            middle[slots, local],
            noise[places] + disturbance[places],
            advance[places] - angle[slots, local],
            self._positions,
        )
        snr_db = quality.effective_snr_db(mcs)
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
            error = quality.error_power()[first] * np.maximum(1 + scatter, 0.0)
            result.evm = float(np.sqrt(error.mean()))
        return result, failed

    def _superpose(
        self, heard: list[Heard], place_shape: tuple[int, int]
    ) -> tuple[
        NDArray[np.complex128],
        NDArray[np.complex128],
        NDArray[np.float64],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.float64],
    ]:
        """All transmitters together, by place.

        Returns
        -------
        signals
            ``[num_slots, 2, num_subchannels, width]`` at both pilots, which all transmitters send alike.
        truth
            ``[num_slots, num_subchannels, width]`` channel of the loudest, which alone can be decoded.
        disturbance
            ``[num_slots, num_subchannels, width]`` power of the others, whose data are not its own.
        sent, loudest
            ``[num_slots, num_subchannels]`` its MCS, and its place among ``heard``.
        advance
            ``[num_slots, num_subchannels]`` its phase from pilot to pilot [rad].
        """
        width = self._numerology.subcarriers_per_subchannel
        signals = np.zeros((place_shape[0], 2, place_shape[1], width), np.complex128)
        truth = np.zeros((*place_shape, width), np.complex128)
        total = np.zeros((*place_shape, width))
        best = np.zeros(place_shape)
        sent = np.full(place_shape, UNUSED, np.int64)
        loudest = np.zeros(place_shape, np.int64)
        advance = np.zeros(place_shape)
        for index, found in enumerate(heard):
            chosen, half = found.subchannels, np.exp(0.5j * found.advance)[:, None, None]
            signals[:, 0, chosen] += found.channel * half.conj()
            signals[:, 1, chosen] += found.channel * half
            power = np.abs(found.channel) ** 2
            total[:, chosen] += power
            strength = power.sum(axis=2)
            slots, local = np.nonzero((found.mcs_index != UNUSED) & (strength > best[:, chosen]))
            places = slots, chosen[local]
            truth[places] = found.channel[slots, local]
            best[places] = strength[slots, local]
            sent[places] = found.mcs_index[slots, local]
            loudest[places] = index
            advance[places] = found.advance[slots]
        disturbance = np.maximum(total - np.abs(truth) ** 2, 0.0)
        return signals, truth, disturbance, sent, loudest, advance

    def _failure_rate(self, mcs_index: NDArray[np.int64], snr_db: NDArray[np.float64]) -> NDArray[np.float64]:
        return failure_rate(mcs_index, snr_db, self._numerology.block_resource_elements)

    def _pilots(
        self,
        port: _Port,
        first_sample: int,
        signals: NDArray[np.complex128],
        noise: NDArray[np.float64],
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
