"""Control messages: what controller, server and boards say to each other besides the air.

No message carries a tensor.  Every message travels in an :class:`Envelope` that says run, round,
attempt and sequence, and the experiment time at which it takes effect at its receiver.
"""

from __future__ import annotations

import contextlib

import msgspec

from nodes.errors import MessageError

CONTROL_FORMAT = "control/1"
MAX_CONTROL_BYTES = 64 * 1024
CONTROLLER = "controller"


class Message(msgspec.Struct, tag_field="t", frozen=True):
    """Base of every message."""


# ------------------------------------------------------------------------------- specifications
class NumerologySpec(msgspec.Struct, frozen=True):
    sample_rate_hz: float
    fft_size: int
    prefix_samples: int
    num_subchannels: int
    subcarriers_per_subchannel: int
    symbols_per_slot: int
    slots_per_frame: int


class LinkSpec(msgspec.Struct, frozen=True):
    ack_delay_ns: int
    control_latency_ns: int
    turnaround_ns: int  # between receiving the downlink sounding and sending the uplink one
    target_bler: float
    mcs_backoff_db: float
    stall_frames: int


class ClockSpec(msgspec.Struct, frozen=True):
    kind: str  # ClockKind
    epoch_ns: int = 0
    slow_motion: float = 1.0


class ComputeSpec(msgspec.Struct, frozen=True):
    kind: str  # "measured" or "modelled"
    clock_hz: float
    cycles_per_flop: float
    slowdown: float
    # By round, on top of all that; beyond its end the last value, empty: 1.
    slowdown_by_round: tuple[float, ...] = ()


class LearningSpec(msgspec.Struct, frozen=True):
    model: str
    scheme: str
    phi: float
    reading: str
    weighted: bool
    batch_size: int
    learning_rate_client: float
    learning_rate_server: float
    momentum: float
    data: str
    data_path: str | None
    partition: str
    dirichlet_alpha: float
    labels_per_client: int
    validation_fraction: float
    test_fraction: float


class PortSpec(msgspec.Struct, frozen=True):
    """A node's radio port."""

    name: str
    tx_full_scale_dbm: float
    rx_full_scale_dbm: float


class NodeSetup(msgspec.Struct, frozen=True):
    """Everything a node is told when it joins a run."""

    run: str
    seed: int
    role: str  # "client" or "server"
    server: str
    clients: tuple[str, ...]
    ports: tuple[PortSpec, ...]
    air_endpoint: str
    plane: str
    numerology: NumerologySpec
    link: LinkSpec
    clock: ClockSpec
    compute: ComputeSpec
    learning: LearningSpec
    heartbeat_s: float
    timeout_s: float
    fidelity: str = "iq"  # a value of radio.fidelity.Fidelity


class ModelSpec(msgspec.Struct, frozen=True):
    """Cost of the split model per sample, by cut layer 0..L (cumulative FLOPs, bits at the cut)."""

    forward_flops: tuple[float, ...]
    backward_flops: tuple[float, ...]
    smashed_bits: tuple[int, ...]
    gradient_bits: tuple[int, ...]
    smashed_shape: tuple[tuple[int, ...], ...]
    state_bytes: tuple[int, ...]  # parameters, buffers and optimiser state of each stage
    packed_bytes: tuple[int, ...]  # the same as it goes over the air, its description included
    uplink_overhead_bytes: tuple[int, ...]  # of one message of smashed data and labels
    gradient_overhead_bytes: tuple[int, ...]
    label_bytes: int  # per sample


class ClientGrant(msgspec.Struct, frozen=True):
    """Subchannels of one client in one round, with the uplink PSD on each."""

    client: str
    num_samples: int  # D_i
    subchannels: tuple[int, ...]
    psd_w_per_hz: tuple[float, ...]
    sounding_psd_w_per_hz: float


class RoundGrant(msgspec.Struct, frozen=True):
    """The plan of one round."""

    start_ns: int
    deadline_ns: int
    cut_layer: int
    previous_cut_layer: int  # differs in a cut move only
    downlink_psd_w_per_hz: float
    clients: tuple[ClientGrant, ...]


class SpanRecord(msgspec.Struct, frozen=True):
    """One activity of one resource of one node, in experiment time."""

    phase: str
    resource: str  # "processor", "transmitter", "receiver"
    start_ns: int
    end_ns: int
    attributes: dict[str, float | int | str | None] = {}


class RadioEventRecord(msgspec.Struct, frozen=True):
    kind: str
    at_ns: int
    count: int
    detail: str


# ------------------------------------------------------------------------------ node <-> controller
class Hello(Message, tag="hello", frozen=True):
    pid: int
    versions: dict[str, str]
    format: str = CONTROL_FORMAT


class Welcome(Message, tag="welcome", frozen=True):
    setup: NodeSetup


class Ready(Message, tag="ready", frozen=True):
    num_samples: int
    model: ModelSpec


class Configure(Message, tag="configure", frozen=True):
    """Before the first round: own the stages on your side of this cut, freshly initialised."""

    cut_layer: int


class Rehearse(Message, tag="rehearse", frozen=True):
    """Do the work of a round at each of these cuts on a scratch model, and say how long it takes."""

    cut_layers: tuple[int, ...]


class RehearsedSpan(msgspec.Struct, frozen=True):
    """How long a phase takes at a cut: the median of some repetitions after a first."""

    phase: str
    cut_layer: int
    flops: float
    seconds: float


class Rehearsed(Message, tag="rehearsed", frozen=True):
    spans: tuple[RehearsedSpan, ...]


class Heartbeat(Message, tag="heartbeat", frozen=True):
    pass


class PeerLost(Message, tag="peer-lost", frozen=True):
    peer: str
    reason: str


class SoundingStart(Message, tag="sounding-start", frozen=True):
    """A sounding by itself: receiver gains are set from it."""

    start_ns: int
    downlink_psd_w_per_hz: float
    clients: tuple[str, ...]
    sounding_psd_w_per_hz: tuple[float, ...]


class LinkMeasurement(msgspec.Struct, frozen=True):
    """What a receiver estimated of one link, referred to the ports.

    ``channel_gain`` is a linear power gain, antennas included, per subchannel.
    """

    transmitter: str
    receiver: str
    detected: bool
    channel_gain: tuple[float, ...]
    noise_w_per_hz: float
    cfo_hz: float
    delay_samples: float


class SoundingReport(Message, tag="sounding-report", frozen=True):
    links: tuple[LinkMeasurement, ...]
    spans: tuple[SpanRecord, ...]
    radio_events: tuple[RadioEventRecord, ...]
    rx_gain_db: float
    peak_dbfs: float
    gain_settled: bool
    end_ns: int


class RoundStart(Message, tag="round-start", frozen=True):
    grant: RoundGrant


class Abort(Message, tag="abort", frozen=True):
    """Leave what you are doing: somebody without whom it cannot end has failed."""

    command: str  # name of the message that is being obeyed
    words: str


class CutMove(Message, tag="cut-move", frozen=True):
    """Move parameters and optimiser state over the air, from ``previous_cut_layer`` to ``cut_layer``."""

    grant: RoundGrant


class TransmissionReport(msgspec.Struct, frozen=True):
    """A stream as its sender saw it."""

    stream: str  # "uplink", "broadcast", "unicast", "cut-move"
    transmitter: str
    receivers: tuple[str, ...]  # those that got everything
    subchannels: tuple[int, ...]
    payload_bytes: int
    blocks_sent: int
    blocks_failed: int
    blocks_retransmitted: int
    airtime_ns: int
    frames: int
    complete: bool
    mcs_index: tuple[int, ...]
    goodput_bps: float | None


class ReceptionReport(msgspec.Struct, frozen=True):
    """A stream as one of its receivers saw it."""

    stream: str
    transmitter: str
    receiver: str
    received_bytes: int
    blocks_ok: int
    blocks_failed: int
    blocks_refused: int
    mean_snr_db: tuple[float | None, ...]  # by granted subchannel
    evm: float | None
    complete_ns: int | None
    failure: str
    blocks_combined: int = 0  # decoded only with an earlier copy


class AdaptationState(msgspec.Struct, frozen=True):
    """Shift of one link's outer loop after a round [dB]; positive is more careful."""

    transmitter: str
    receiver: str
    offset_db: float


class LossReport(msgspec.Struct, frozen=True):
    client: str
    loss: float


class RoundReport(Message, tag="round-report", frozen=True):
    """What a node did in a round or a cut move."""

    complete: bool
    words: tuple[str, ...]  # what went wrong, in words
    end_ns: int
    spans: tuple[SpanRecord, ...]
    transmissions: tuple[TransmissionReport, ...]
    receptions: tuple[ReceptionReport, ...]
    links: tuple[LinkMeasurement, ...]
    losses: tuple[LossReport, ...]
    radio_events: tuple[RadioEventRecord, ...]
    adaptation: tuple[AdaptationState, ...] = ()  # of the server only, which runs all outer loops


class WeightsWanted(Message, tag="weights-wanted", frozen=True):
    """Send weights (and optimiser state) over the bulk plane to ``target``."""

    target: str
    purpose: str


class WeightsInstall(Message, tag="weights-install", frozen=True):
    """Take the weights that the bulk plane brought under this purpose."""

    purpose: str


class WeightsDone(Message, tag="weights-done", frozen=True):
    purpose: str
    num_bytes: int


class Evaluate(Message, tag="evaluate", frozen=True):
    split: str  # "validation" or "test"
    purposes: tuple[str, ...]  # bulk transfers that bring the clients' weights, in client order


class Evaluated(Message, tag="evaluated", frozen=True):
    split: str
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]
    num_samples: int


class Stop(Message, tag="stop", frozen=True):
    reason: str


class Stopped(Message, tag="stopped", frozen=True):
    """Last words of a node: what it cost."""

    cpu_s: dict[str, float]
    process_cpu_s: float
    max_rss_bytes: int
    refused_frames: int


class Failure(Message, tag="failure", frozen=True):
    kind: str
    words: str


# ------------------------------------------------------------------------------------ node <-> node
class UplinkPermit(Message, tag="uplink-permit", frozen=True):
    """Server to client after sounding: MCS of its subchannels until an acknowledgement says other."""

    mcs_index: tuple[int, ...]
    detected: bool


class UplinkIntent(Message, tag="uplink-intent", frozen=True):
    """Client to server: the slot in which its stream starts."""

    stream: str
    first_slot: int


class DownlinkState(Message, tag="downlink-state", frozen=True):
    """Client to server after sounding: SNR [dB] per subchannel at the downlink PSD."""

    snr_db: tuple[float, ...]
    detected: bool


class GradientNotice(Message, tag="gradient-notice", frozen=True):
    """Server to client: which downlink streams of this round are for it, and its lambda_i."""

    broadcast: bool
    unicast: bool
    weight: float
    words: str = ""  # why nothing comes


class DownlinkStart(Message, tag="downlink-start", frozen=True):
    """Server to client: a stream starts."""

    stream: str
    first_slot: int
    subchannels: tuple[int, ...]
    mcs_index: tuple[int, ...]


class FrameAck(Message, tag="frame-ack", frozen=True):
    """Receiver to sender: what of a frame was decoded.

    ``received`` is a bitmap over (slot, subchannel), slot-major, least significant bit first.
    """

    stream: str
    frame: int
    received: bytes
    complete: bool
    give_up: bool = False
    mcs_index: tuple[int, ...] = ()  # uplink: MCS from now on
    snr_db: tuple[float, ...] = ()  # downlink: what the client measured


class FrameControl(Message, tag="frame-control", frozen=True):
    """Server to client, for each downlink frame whose acknowledgements are in."""

    stream: str
    frame: int
    mcs_index: tuple[int, ...]
    give_up: bool = False


Body = (
    Hello
    | Welcome
    | Ready
    | Configure
    | Rehearse
    | Rehearsed
    | Heartbeat
    | PeerLost
    | SoundingStart
    | SoundingReport
    | RoundStart
    | CutMove
    | Abort
    | RoundReport
    | WeightsWanted
    | WeightsInstall
    | WeightsDone
    | Evaluate
    | Evaluated
    | Stop
    | Stopped
    | Failure
    | UplinkPermit
    | UplinkIntent
    | DownlinkState
    | GradientNotice
    | DownlinkStart
    | FrameAck
    | FrameControl
)


class Envelope(msgspec.Struct, frozen=True):
    """A message on its way.

    ``takes_effect_ns`` is experiment time at the receiver; ``round_index`` is -1 outside rounds.
    """

    run: str
    source: str
    target: str
    round_index: int
    attempt: int
    sequence: int
    takes_effect_ns: int
    body: Body
    format: str = CONTROL_FORMAT


class _Version(msgspec.Struct, frozen=True):
    """What every version of an envelope has, read when the whole makes no sense."""

    source: str = "its sender"
    format: str = CONTROL_FORMAT


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)
_version_decoder = msgspec.msgpack.Decoder(_Version)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode_envelope(envelope: Envelope) -> bytes:
    """Frame of one envelope.

    Raises
    ------
    MessageError
        The frame would exceed :data:`MAX_CONTROL_BYTES`: tensors and weights have other planes.
    """
    frame = _encoder.encode(envelope)
    if len(frame) > MAX_CONTROL_BYTES:
        raise MessageError(
            f"{type(envelope.body).__name__} from {envelope.source} to {envelope.target} takes {len(frame)} "
            f"bytes; the control plane refuses frames above {MAX_CONTROL_BYTES}: send weights over the bulk "
            "plane and tensors over the air"
        )
    return frame


def decode_envelope(frame: bytes) -> Envelope:
    """Envelope of one frame.

    Raises
    ------
    MessageError
        The frame is too long, malformed or of another version.
    """
    if len(frame) > MAX_CONTROL_BYTES:
        raise MessageError(f"a control frame of {len(frame)} bytes exceeds {MAX_CONTROL_BYTES}")
    try:
        envelope = _decoder.decode(frame)
    except _UNREADABLE as exc:
        # Another version may have bodies that this one does not know: its number explains more.
        with contextlib.suppress(*_UNREADABLE):
            _check_version(_version_decoder.decode(frame))
        raise MessageError(f"not a {CONTROL_FORMAT} message: {exc}") from exc
    _check_version(envelope)
    return envelope


def _check_version(envelope: Envelope | _Version) -> None:
    if envelope.format != CONTROL_FORMAT:
        raise MessageError(
            f"this side speaks {CONTROL_FORMAT}, {envelope.source} speaks {envelope.format[:40]}"
        )
