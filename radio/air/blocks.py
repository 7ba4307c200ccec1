"""The emulated air without samples: pilots are drawn, and so is whether a block is decoded.

Ports, words, rounds and settling are those of :mod:`radio.air.core`; only the computation of a window
is another.  Per slot and subcarrier of a receiver's window:

1.  Every transmitter's gain is taken from the taps that its samples would have gone through, with the
    phases that carrier offsets leave at each symbol.  Converters reduce the signal and add noise as
    :mod:`radio.air.converter` says, and a residual carrier offset spills power into neighbours.
2.  Pilots are that signal plus noise, and go through the modem's own estimator.  Nothing that a
    receiver reports is modelled: it has the estimator's statistics because the estimator made it.
3.  The estimate against the truth gives the SNR of each equalised subcarrier, their mutual information
    the SNR of the block (:mod:`radio.effective_snr`), and the measured curve of its MCS the probability
    with which the decoder fails.

Draws are keyed by (seed, receiver or link, slot, subchannel), so that neither the order of words nor the
cutting of windows changes them.  Soundings are a few symbols per round, and stay samples: a window
of samples hears bursts of blocks too, which are then modulated as an ``iq`` modem would have.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from radio.air.channel import FadingProfile, LinkChannel, LinkParameters
from radio.air.converter import converter_effect
from radio.air.core import (
    AirCore,
    AirParameters,
    PortParameters,
    Window,
    WindowRequest,
    _amplitude_sqrt_w,
    _Port,
)
from radio.air.kernels import transmit_convert
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
from radio.estimation import estimate_channel
from radio.events import Observer, RadioEvent, RadioEventKind, ignore
from radio.fidelity import Fidelity
from radio.numerology import Numerology
from radio.phy import UNUSED, ReceivedSlots, _phase_drift, modulate_slots
from radio.rotation import rotate
from radio.units import db_to_linear, thermal_noise_w_per_hz

# Fields that this air knows what to do with; any other one must have its default.
_KNOWN = {
    PortParameters: {
        "name",
        "tx_full_scale_dbm",
        "rx_full_scale_dbm",
        "noise_figure_db",
        "converter_bits",
        "muted",
    },
    LinkParameters: {
        "transmitter",
        "receiver",
        "path_loss_db",
        "antenna_gain_db",
        "cfo_hz",
        "timing_offset_samples",
        "fading",
        "attenuation_db",
        "redraw_rounds",
    },
    FadingProfile: {
        "delay_spread_s",
        "num_taps",
        "rician_k_db",
        "doppler_hz",
        "round_correlation",
    },
}
SPILL_SUBCARRIERS = 16  # to both sides, over which a carrier offset is taken to spill
NEGLIGIBLE = 1e-3  # of the noise: spilt power below it is left out


def unsupported_by_blocks(parameters: AirParameters) -> list[str]:
    """What an air of ``blocks`` fidelity cannot represent of these parameters, in words; empty: nothing."""
    found = []
    for port in parameters.ports:
        found += _unknown(port, f"port {port.name}")
    for link in parameters.links:
        name = f"link {link.transmitter} to {link.receiver}"
        found += _unknown(link, name) + _unknown(link.fading, name)
    numerology = parameters.numerology
    if numerology is None:
        return [*found, "no numerology was given"]
    if parameters.sample_rate_hz != numerology.sample_rate_hz:
        found.append(
            f"the air's {parameters.sample_rate_hz} samples/s, the grid's being {numerology.sample_rate_hz}"
        )
    if parameters.tap_update_samples % numerology.slot_samples:
        found.append(
            f"taps that change every {parameters.tap_update_samples} samples, within a slot of "
            f"{numerology.slot_samples}"
        )
    if found:
        return found
    for link in parameters.links:
        channel = LinkChannel(link, parameters.seed, parameters.sample_rate_hz)
        low, high = channel.min_delay_samples, channel.max_delay_samples
        if low < 0 or high >= numerology.prefix_samples:
            found.append(
                f"link {link.transmitter} to {link.receiver}: echoes {low}..{high} samples late, a prefix of "
                f"{numerology.prefix_samples} holding 0..{numerology.prefix_samples - 1}"
            )
    return found


def _unknown(part: PortParameters | LinkParameters | FadingProfile, where: str) -> list[str]:
    known = _KNOWN[type(part)]
    return [
        f"{where}: {item.name} = {getattr(part, item.name)!r}"
        for item in dataclasses.fields(part)
        if item.name not in known and getattr(part, item.name) != item.default
    ]


def make_air(parameters: AirParameters, observer: Observer = ignore) -> AirCore:
    """The air of the fidelity that the parameters name."""
    if parameters.fidelity is Fidelity.BLOCKS:
        return BlockAir(parameters, observer)
    return AirCore(parameters, observer)


@dataclass(eq=False)
class _KeptBlocks:
    """A burst of blocks as the air keeps it; samples are made where somebody hears it as such."""

    first_sample: int
    burst: SlotBurst
    numerology: Numerology
    converter_bits: int

    @property
    def num_samples(self) -> int:
        return self.burst.num_slots * self.numerology.slot_samples

    @property
    def end(self) -> int:
        return self.first_sample + self.num_samples

    @cached_property
    def samples(self) -> NDArray[np.float32]:
        burst = self.burst
        made = modulate_slots(
            self.numerology, burst.num_slots, burst.blocks, burst.mcs_index, burst.amplitude
        )
        turned = rotate(made, self.first_sample, burst.cycles_per_sample, out=made)
        converted = np.empty((2, len(turned)), np.float32)
        transmit_convert(turned, self.converter_bits, converted)
        return converted

    @cached_property
    def amplitude(self) -> NDArray[np.float64]:
        """``[num_slots, num_subchannels]`` of each subcarrier; 0 where there is no block."""
        result = np.zeros((self.burst.num_slots, len(self.burst.amplitude)))
        if self.burst.blocks:
            slots, subchannels = np.array(list(self.burst.blocks)).T
            result[slots, subchannels] = self.burst.amplitude[subchannels]
        return result

    @cached_property
    def mcs_index(self) -> NDArray[np.int64]:
        """``[num_slots, num_subchannels]``; :data:`~radio.phy.UNUSED` where there is no block."""
        result = np.full((self.burst.num_slots, len(self.burst.amplitude)), UNUSED, np.int64)
        if self.burst.blocks:
            slots, subchannels = np.array(list(self.burst.blocks)).T
            result[slots, subchannels] = self.burst.mcs_index[subchannels]
        return result


@dataclass
class _Heard:
    """One transmitter's blocks in a window, in the receiver's digital scale.

    Attributes
    ----------
    channel
        complex128 ``[num_slots, num_subchannels, width]``: transfer function times amplitude, half-way
        between the pilots; 0 where nothing was sent.
    advance
        ``[num_slots]`` phase from one pilot to the other [rad].
    spill
        ``[num_slots]`` residual carrier offset in subcarrier spacings.
    noise
        ``[num_slots, num_subchannels, width]`` what the transmitter's converter adds, as received.
    """

    link: LinkChannel
    channel: NDArray[np.complex128]
    advance: NDArray[np.float64]
    spill: NDArray[np.float64]
    noise: NDArray[np.float64]
    mcs_index: NDArray[np.int64]
    blocks: dict[tuple[int, int], bytes]


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
        bits = port.parameters.converter_bits
        kept = _KeptBlocks(first_sample, burst, self._numerology, bits)
        if not port.parameters.muted and burst.blocks:
            self._keep(port, kept)
            clipped = self._clipped(name, first_sample, self._sent_power(kept), bits)
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
        heard = [
            found
            for link in self._heard_by[port.parameters.name]
            if (found := self._hear(link, request.first_sample, wanted, gain)) is not None
        ]
        noise = np.full((*place_shape, width), thermal * gain**2)
        noise += self._stray_power(port, request, gain)[:, None, None]
        power = np.zeros(place_shape)
        for found in heard:
            received = np.abs(found.channel) ** 2
            power += received.sum(axis=2)
            noise += found.noise
            self._spill(found, received, thermal * gain**2, noise)
        # What the converter gets, per sample: noise fills the whole band, signals their subcarriers.
        per_sample = noise.mean(axis=(1, 2)) + power.sum(axis=1) / numerology.fft_size
        bits = port.parameters.converter_bits
        effects = [converter_effect(float(value), bits) for value in per_sample]
        kept_gain = np.array([effect.gain for effect in effects])
        noise *= (kept_gain**2)[:, None, None]
        noise += np.array([effect.distortion_power for effect in effects])[:, None, None]
        for found in heard:
            found.channel *= kept_gain[:, None, None]
        clipped = self._clipped(port.parameters.name, request.first_sample, per_sample, bits)
        received_slots, failed = self._decode(port, request.first_sample, wanted, heard, noise)
        return SlotReception(received_slots, failed, clipped)

    def _hear(self, link: LinkChannel, first_sample: int, wanted: SlotRequest, gain: float) -> _Heard | None:
        """What one transmitter's blocks are in a window; ``None`` where it sends none."""
        numerology = self._numerology
        source = self._ports[link.parameters.transmitter]
        slot_samples, num_slots = numerology.slot_samples, wanted.num_slots
        end = first_sample + num_slots * slot_samples
        bursts = [
            burst
            for burst in source.bursts
            if isinstance(burst, _KeptBlocks) and burst.first_sample < end and burst.end > first_sample
        ]
        if not bursts:
            return None
        shape = (num_slots, numerology.num_subchannels)
        amplitude, mcs_index = np.zeros(shape), np.full(shape, UNUSED, np.int64)
        sent_cycles, tx_gain, tx_noise = np.zeros(num_slots), np.ones(num_slots), np.zeros(num_slots)
        blocks: dict[tuple[int, int], bytes] = {}
        for kept in bursts:
            shift = (kept.first_sample - first_sample) // slot_samples
            low, high = max(shift, 0), min(shift + kept.burst.num_slots, num_slots)
            own = slice(low - shift, high - shift)
            amplitude[low:high], mcs_index[low:high] = kept.amplitude[own], kept.mcs_index[own]
            sent_cycles[low:high] = kept.burst.cycles_per_sample
            bits = source.parameters.converter_bits
            effects = [converter_effect(float(value), bits) for value in self._sent_power(kept)[own]]
            tx_gain[low:high] = [effect.gain for effect in effects]
            tx_noise[low:high] = [effect.distortion_power for effect in effects]
            blocks.update(
                ((slot + shift, k), payload)
                for (slot, k), payload in kept.burst.blocks.items()
                if low <= slot + shift < high
            )
        active = np.flatnonzero(mcs_index.max(axis=1) != UNUSED)
        if len(active) == 0:
            return None
        transfer = np.zeros((num_slots, numerology.num_subcarriers), np.complex128)
        transfer[active] = self._transfer(link, first_sample, active, sent_cycles[active])
        transfer *= gain * _amplitude_sqrt_w(source.parameters.tx_full_scale_dbm)
        cycles = sent_cycles + link.cycles_per_sample - wanted.cycles_per_sample
        spill = cycles * numerology.fft_size
        by_subchannel = transfer.reshape(*shape, -1)
        channel = by_subchannel * (amplitude * (tx_gain * np.sinc(spill))[:, None])[:, :, None]
        pilot_a, pilot_b = numerology.pilot_symbols
        middle = (
            first_sample
            + np.arange(num_slots) * slot_samples
            + (pilot_a + pilot_b) / 2 * numerology.symbol_samples
            + numerology.prefix_samples
            + (numerology.fft_size - 1) / 2
        )
        channel *= np.exp(2j * np.pi * np.mod(cycles * middle, 1.0))[:, None, None]
        advance = 2 * np.pi * cycles * (pilot_b - pilot_a) * numerology.symbol_samples
        noise = np.abs(by_subchannel) ** 2 * tx_noise[:, None, None]
        return _Heard(link, channel, advance, spill, noise, mcs_index, blocks)

    def _transfer(
        self,
        link: LinkChannel,
        first_sample: int,
        slots: NDArray[np.int64],
        sent_cycles: NDArray[np.float64],
    ) -> NDArray[np.complex128]:
        """``[len(slots), num_subcarriers]`` amplitude gains, with the taps of each slot's start and round."""
        slot_samples, update = self._numerology.slot_samples, self.parameters.tap_update_samples
        starts = first_sample + slots * slot_samples
        time_s = (starts // update) * (update / self.parameters.sample_rate_hz)
        rounds = np.array([self._round_at(start + slot_samples // 2) for start in starts.tolist()])
        taps = np.empty((len(slots), len(link.delays)), np.complex128)
        for round_index in np.unique(rounds).tolist():
            chosen = rounds == round_index
            taps[chosen] = link.taps_at(time_s[chosen], round_index)
        # The transmitter's own offset was put in before the delay.
        taps *= np.exp(-2j * np.pi * sent_cycles[:, None] * link.delays)
        return np.asarray(taps @ self._ramps[id(link)])

    def _round_at(self, sample: int) -> int:
        return self._round_indices[bisect_right(self._round_begins, sample) - 1]

    def _spill(
        self,
        found: _Heard,
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
            spread = np.convolve(received[slot].reshape(-1), weight, mode="same")
            noise[slot] += spread.reshape(received[slot].shape)

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
                if isinstance(burst, _KeptBlocks) or burst.first_sample >= end:
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
                        transfer = self._transfer(link, request.first_sample, np.array([slot]), np.zeros(1))
                        amplitude = gain * _amplitude_sqrt_w(source.parameters.tx_full_scale_dbm)
                        mean_gain = float(np.mean(np.abs(transfer) ** 2)) * amplitude**2
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
        heard: list[_Heard],
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
        pilots = self._pilots(port, first_sample, num_slots, heard, noise, used)
        estimate = estimate_channel(numerology, pilots)
        # From here to the equaliser as in radio.phy.
        estimated_noise = estimate.noise_power.mean(axis=0)
        result.snr[:, used], result.noise_power[:, used] = estimate.snr, estimated_noise
        result.attempted[:, used] = estimate.detected
        owners, owner_of_used = np.unique(wanted.owner[used], return_inverse=True)
        members = (owner_of_used[None, :] == np.arange(len(owners))[:, None]).astype(np.float32)
        tried = (estimate.detected @ members.T)[:, owner_of_used] > 0
        if not heard or not tried.any():
            return result, {}
        middle, angle = _phase_drift(numerology, estimate, estimated_noise, members, owner_of_used)

        # The loudest transmitter of a place is the one that can be decoded, the others disturb it.
        power = np.array([np.sum(np.abs(found.channel[:, used]) ** 2, axis=2) for found in heard])
        loudest = power.argmax(axis=0)
        rows, columns = np.indices(loudest.shape)
        channel = np.array([found.channel[:, used] for found in heard])
        sent = np.array([found.mcs_index[:, used] for found in heard])[loudest, rows, columns]
        truth = channel[loudest, rows, columns]
        variance = noise[:, used] + np.sum(np.abs(channel) ** 2, axis=0) - np.abs(truth) ** 2
        advance = np.array([found.advance for found in heard])[loudest, rows]
        expected = wanted.mcs_index[used]
        candidate = tried & (sent == expected)
        if not candidate.any():
            return result, {}
        at = np.nonzero(candidate)
        quality = BlockQuality(truth[at], middle[at], variance[at], advance[at] - angle[at], self._positions)
        mcs = sent[at]
        snr_db = quality.effective_snr_db(mcs)
        slots, subchannels = at[0], used[at[1]]
        transmitter = loudest[at]
        contents = [
            heard[which].blocks[slot, k]
            for which, slot, k in zip(transmitter.tolist(), slots.tolist(), subchannels.tolist(), strict=True)
        ]
        digests = []
        if wanted.remembered is not None:
            digests = [
                block_digest(index, payload) for index, payload in zip(mcs.tolist(), contents, strict=True)
            ]
            earlier = np.array([wanted.remembered.get(digest, 0.0) for digest in digests])
            snr_db = 10 * np.log10(10 ** (snr_db / 10) + earlier)
        uniform, normal = self._draws(port, first_sample, num_slots, heard)
        decoded = uniform[transmitter, slots, subchannels] >= self._failure_rate(mcs, snr_db)
        for index in np.flatnonzero(decoded).tolist():
            place = int(slots[index]), int(subchannels[index])
            result.blocks[place] = contents[index]
            result.attempted[place] = True
        failed = (
            {digests[i]: float(10 ** (snr_db[i] / 10)) for i in np.flatnonzero(~decoded)} if digests else {}
        )
        good = np.flatnonzero(decoded)
        if len(good):
            # One block of each MCS, as the modem does; its error energy is a sum over all its symbols.
            first = good[np.unique(mcs[good], return_index=True)[1]]
            elements = numerology.block_resource_elements
            scatter = normal[transmitter[first], slots[first], subchannels[first]] / np.sqrt(elements)
            error = quality.error_power()[first] * np.maximum(1 + scatter, 0.0)
            result.evm = float(np.sqrt(error.mean()))
        return result, failed

    def _failure_rate(self, mcs_index: NDArray[np.int64], snr_db: NDArray[np.float64]) -> NDArray[np.float64]:
        return failure_rate(mcs_index, snr_db, self._numerology.block_resource_elements)

    def _pilots(
        self,
        port: _Port,
        first_sample: int,
        num_slots: int,
        heard: list[_Heard],
        noise: NDArray[np.float64],
        used: NDArray[np.int64],
    ) -> NDArray[np.complex64]:
        """``[num_slots, 2, num_used, width]`` received pilots over sent ones."""
        numerology = self._numerology
        first_slot = first_sample // numerology.slot_samples
        count = 2 * numerology.num_subcarriers
        drawn = gaussian_noise(
            self._pilot_keys[port.parameters.name], first_slot * count, num_slots * count, np.sqrt(0.5)
        )
        shape = (num_slots, 2, numerology.num_subchannels, numerology.subcarriers_per_subchannel)
        white = (drawn[0] + 1j * drawn[1]).reshape(shape)[:, :, used]
        pilots = white * np.sqrt(noise[:, None, used])
        for found in heard:
            half = np.exp(0.5j * found.advance)[:, None, None]
            channel = found.channel[:, used]
            pilots[:, 0] += channel * half.conj()
            pilots[:, 1] += channel * half
        return pilots.astype(np.complex64)

    def _draws(
        self, port: _Port, first_sample: int, num_slots: int, heard: list[_Heard]
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

    # ---------------------------------------------------------------------------------- converters
    def _sent_power(self, kept: _KeptBlocks) -> NDArray[np.float64]:
        """``[num_slots]`` mean power of a sample at the transmitter's converter."""
        width = self._numerology.subcarriers_per_subchannel
        return np.asarray((kept.amplitude**2).sum(axis=1) * (width / self._numerology.fft_size))

    def _clipped(self, name: str, first_sample: int, power: NDArray[np.float64], num_bits: int) -> int:
        """How many samples of consecutive slots a converter clips: drawn, as it is rare or countless."""
        slot_samples = self._numerology.slot_samples
        share = np.array([converter_effect(float(value), num_bits).clipped_share for value in power])
        if not (share * slot_samples > 1e-9).any():
            return 0
        first_slot = first_sample // slot_samples
        uniform = special.ndtr(
            gaussian_noise(self._clip_keys[name], first_slot, len(power))[0].astype(np.float64)
        )
        # The smallest count whose cumulative binomial probability reaches the draw.
        counts = np.ceil(special.bdtrik(uniform, slot_samples, share))
        counts = np.where(np.isfinite(counts), counts, 0.0)
        return int(np.clip(counts, 0, slot_samples).sum())
