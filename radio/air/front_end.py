"""What a port's analogue hardware does to a signal, on its way out and on its way in.

Out, behind the converter: IQ imbalance and leakage of the local oscillator in the mixer, phase noise
of that oscillator, compression in the power amplifier.  In, before the converter: phase noise of the
same oscillator with the other sign, IQ imbalance, and an offset of the baseband amplifiers.  Each
sample is worked on by itself, so it does not matter how a signal is cut.

An IQ mixer with gain ratio g and phase error p between its branches turns x into u x + v x* with
u = (g^-1/2 + g^1/2 e^jp) / 2 and v = (g^-1/2 - g^1/2 e^jp) / 2, p with the other sign in a receiver.
The image lies below the signal by the image rejection ratio (Razavi, "RF Microelectronics", chapter 4)

    IRR = |u|^2 / |v|^2 = (1 + 2 g cos p + g^2) / (1 - 2 g cos p + g^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio.air.noise import noise_key
from radio.air.oscillator import Oscillator, PhaseNoise
from radio.errors import RadioConfigurationError
from radio.jit import kernel, register_warmup
from radio.randomness import generator

MAX_IQ_GAIN_DB = 6.0
MAX_IQ_PHASE_DEG = 45.0
SMOOTHNESS_RANGE = (0.5, 20.0)


@dataclass(frozen=True)
class TransmitterImpairments:
    """Mixer and power amplifier of a transmitter; ideal by default.

    Attributes
    ----------
    iq_gain_imbalance_db, iq_phase_imbalance_deg
        Gain of the Q branch over the I branch [dB], and its phase beyond 90 deg [deg].
    lo_leakage_dbfs
        Power of the leaking carrier over full scale while a burst is sent [dB]; ``None``: none.
    pa_saturation_dbfs
        Saturated output power of the amplifier over full scale [dB]; ``None``: it is linear.
    pa_smoothness
        Rapp's p: the larger, the more abrupt its saturation.
    """

    iq_gain_imbalance_db: float = 0.0
    iq_phase_imbalance_deg: float = 0.0
    lo_leakage_dbfs: float | None = None
    pa_saturation_dbfs: float | None = None
    pa_smoothness: float = 2.0


@dataclass(frozen=True)
class ReceiverImpairments:
    """Mixer and baseband of a receiver; ideal by default.

    Attributes
    ----------
    iq_gain_imbalance_db, iq_phase_imbalance_deg
        As for :class:`TransmitterImpairments`.
    dc_offset_dbfs
        Power of the offset over the converter's full scale, whatever the gain [dB]; ``None``: none.
    """

    iq_gain_imbalance_db: float = 0.0
    iq_phase_imbalance_deg: float = 0.0
    dc_offset_dbfs: float | None = None


@dataclass(frozen=True)
class PortImpairments:
    """Analogue hardware of one port; ideal by default."""

    phase_noise: PhaseNoise | None = None
    transmitter: TransmitterImpairments = TransmitterImpairments()
    receiver: ReceiverImpairments = ReceiverImpairments()


IDEAL = PortImpairments()


def image_rejection_db(gain_imbalance_db: float, phase_imbalance_deg: float) -> float:
    """Power of a signal over that of its image behind an imbalanced mixer [dB]; infinite without imbalance."""
    gain = 10.0 ** (gain_imbalance_db / 20.0)
    cross = 2.0 * gain * math.cos(math.radians(phase_imbalance_deg))
    image = 1.0 - cross + gain**2
    return 10.0 * math.log10((1.0 + cross + gain**2) / image) if image > 0.0 else math.inf


def rapp_gain(power: NDArray[np.floating], saturation: float, smoothness: float) -> NDArray[np.float64]:
    """Amplitude gain of Rapp's amplifier, (1 + (|x| / A)^2p)^(-1/2p).

    Parameters
    ----------
    power
        |x|^2 of samples, of any shape.
    saturation
        A, the magnitude that the output never exceeds.
    smoothness
        p.

    Notes
    -----
    C. Rapp, "Effects of HPA-nonlinearity on a 4-DPSK/OFDM-signal for a digital sound broadcasting
    system", 1991.  Its gain has fallen by 1 dB where (|x| / A)^2p = 10^(p/10) - 1.
    """
    ratio = (np.asarray(power, np.float64) / saturation**2) ** smoothness
    return np.asarray((1.0 + ratio) ** (-0.5 / smoothness))


@kernel
def _mix(planes, matrix, offset):  # type: ignore[no-untyped-def]
    """Multiply (real, imaginary) by a matrix ``[2, 2]`` and add an offset ``[2]``, all float32, in place."""
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    e, f = offset[0], offset[1]
    real, imaginary = planes[0], planes[1]
    for n in range(planes.shape[1]):
        x, y = real[n], imaginary[n]
        real[n] = a * x + b * y + e
        imaginary[n] = c * x + d * y + f


@kernel
def _compress_smoothness_two(planes, per_saturation_power):  # type: ignore[no-untyped-def]
    """Rapp's amplifier with p = 2, whose powers are square roots."""
    one = np.float32(1.0)
    real, imaginary = planes[0], planes[1]
    for n in range(planes.shape[1]):
        x, y = real[n], imaginary[n]
        ratio = (x * x + y * y) * per_saturation_power
        gain = one / np.sqrt(np.sqrt(one + ratio * ratio))
        real[n] = x * gain
        imaginary[n] = y * gain


@kernel
def _compress(planes, per_saturation_power, smoothness, exponent):  # type: ignore[no-untyped-def]
    one = np.float32(1.0)
    real, imaginary = planes[0], planes[1]
    for n in range(planes.shape[1]):
        x, y = real[n], imaginary[n]
        ratio = (x * x + y * y) * per_saturation_power
        gain = (one + ratio**smoothness) ** exponent
        real[n] = x * gain
        imaginary[n] = y * gain


def compress(planes: NDArray[np.float32], saturation: float, smoothness: float) -> None:
    """Rapp's amplifier on samples float32 ``[2, num_samples]``, in place; see :func:`rapp_gain`."""
    per_power = np.float32(saturation**-2)
    if smoothness == 2.0:
        _compress_smoothness_two(planes, per_power)
    else:
        _compress(planes, per_power, np.float32(smoothness), np.float32(-0.5 / smoothness))


@dataclass(frozen=True)
class _Mixer:
    matrix: NDArray[np.float32]  # [2, 2], on (real, imaginary)
    offset: complex  # in units of full scale

    def apply(self, planes: NDArray[np.float32], full_scale: float) -> None:
        offset = np.array([self.offset.real, self.offset.imag]) * full_scale
        _mix(planes, self.matrix, offset.astype(np.float32))


def _mixer(
    gain_db: float, phase_deg: float, offset_dbfs: float | None, seed: int, name: str, receiving: bool
) -> _Mixer | None:
    if not abs(gain_db) <= MAX_IQ_GAIN_DB or not abs(phase_deg) <= MAX_IQ_PHASE_DEG:
        raise RadioConfigurationError(
            f"an IQ imbalance of {gain_db} dB and {phase_deg} deg at {name}; up to {MAX_IQ_GAIN_DB:g} dB and "
            f"{MAX_IQ_PHASE_DEG:g} deg can be had"
        )
    if offset_dbfs is not None and not offset_dbfs <= 0.0:
        raise RadioConfigurationError(
            f"an offset of {offset_dbfs} dB over full scale at {name}; at most 0 dB can be had"
        )
    if gain_db == 0.0 and phase_deg == 0.0 and offset_dbfs is None:
        return None
    in_phase, quadrature = 10.0 ** (-gain_db / 40.0), 10.0 ** (gain_db / 40.0)
    cosine, sine = math.cos(math.radians(phase_deg)), math.sin(math.radians(phase_deg))
    if receiving:  # the Q branch sees the carrier late: it picks up some of I
        matrix = np.array([[in_phase, 0.0], [-quadrature * sine, quadrature * cosine]], np.float32)
    else:  # what the Q branch sends is not orthogonal to I
        matrix = np.array([[in_phase, -quadrature * sine], [0.0, quadrature * cosine]], np.float32)
    offset = 0j
    if offset_dbfs is not None:
        phase = 2 * np.pi * generator(seed, "offset", name, int(receiving)).random()
        offset = 10.0 ** (offset_dbfs / 20.0) * complex(math.cos(phase), math.sin(phase))
    return _Mixer(matrix, offset)


class FrontEnd:
    """A port's impairments at work.

    Parameters
    ----------
    impairments
        Of this port.
    seed, name
        Of the run and the port: they decide the oscillator's noise and the phases of offsets.

    Raises
    ------
    RadioConfigurationError
        A value that no front end has.
    """

    def __init__(self, impairments: PortImpairments, seed: int, name: str, sample_rate_hz: float) -> None:
        sends, receives = impairments.transmitter, impairments.receiver
        self._oscillator: Oscillator | None = None
        if impairments.phase_noise is not None and impairments.phase_noise.rms_deg != 0.0:
            key = noise_key(seed, "oscillator", name)
            self._oscillator = Oscillator(impairments.phase_noise, sample_rate_hz, key)
        self._up = _mixer(
            sends.iq_gain_imbalance_db, sends.iq_phase_imbalance_deg, sends.lo_leakage_dbfs, seed, name, False
        )
        self._down = _mixer(
            receives.iq_gain_imbalance_db,
            receives.iq_phase_imbalance_deg,
            receives.dc_offset_dbfs,
            seed,
            name,
            True,
        )
        self._saturation: float | None = None
        self._smoothness = sends.pa_smoothness
        if sends.pa_saturation_dbfs is not None:
            low, high = SMOOTHNESS_RANGE
            if not low <= sends.pa_smoothness <= high or not abs(sends.pa_saturation_dbfs) <= 100.0:
                raise RadioConfigurationError(
                    f"an amplifier that saturates at {sends.pa_saturation_dbfs} dB over full scale with "
                    f"smoothness {sends.pa_smoothness} at {name}; within 100 dB and {low:g} to {high:g} can "
                    "be had"
                )
            self._saturation = 10.0 ** (sends.pa_saturation_dbfs / 20.0)

    @property
    def sends_ideally(self) -> bool:
        """Whether it leaves what is sent as it is."""
        return self._oscillator is None and self._up is None and self._saturation is None

    @property
    def receives_ideally(self) -> bool:
        """Whether it leaves what is received as it is."""
        return self._oscillator is None and self._down is None

    def send(self, planes: NDArray[np.float32], first_sample: int) -> None:
        """Turn a burst ``[2, num_samples]``, full scale 1, into what is radiated, in place."""
        if self._up is not None:
            self._up.apply(planes, 1.0)
        if self._oscillator is not None:
            self._oscillator.turn(planes, first_sample, 1.0)
        if self._saturation is not None:
            compress(planes, self._saturation, self._smoothness)

    def receive(self, planes: NDArray[np.float32], first_sample: int, full_scale: float) -> None:
        """Turn what is at the port ``[2, num_samples]`` into what the gain stages get, in place.

        ``full_scale`` is the magnitude there that fills the converter behind the gain.
        """
        if self._oscillator is not None:
            self._oscillator.turn(planes, first_sample, -1.0)
        if self._down is not None:
            self._down.apply(planes, full_scale)


@register_warmup
def _warm_up() -> None:
    planes = np.zeros((2, 8), np.float32)
    _mix(planes, np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    compress(planes, 1.0, 2.0)
    compress(planes, 1.0, 3.0)
