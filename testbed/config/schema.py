"""What ``experiment.yaml`` and ``lab.yaml`` may say.

``Lab`` is a room: boards, radios, power caps, keys.  ``Experiment`` is portable science: model,
data, learning scheme, numerology, allocator, seed; never a URI or a key.  Both are frozen and
refuse unknown keys.  Units are in the names.  Checks that need both files are in
:mod:`testbed.config.checks`.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from radio.fidelity import Fidelity

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
RunShare = Annotated[float, Field(ge=0, le=1)]  # of a run's rounds
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compute(str, Enum):
    """How a compute span gets its length."""

    MEASURED = "measured"  # thread CPU time x the board's slowdown
    MODELLED = "modelled"  # FLOPs x cycles per FLOP / clock: deterministic


# ---------------------------------------------------------------------------------- experiment
class Model(Section):
    name: Literal["digits-cnn", "mlp", "resnet18"] = "digits-cnn"
    cut_layer: Literal["auto"] | PositiveInt = "auto"  # number of stages on the client
    cut_schedule: dict[int, PositiveInt] = {}  # from a round on, this cut: for studies of cut moves


class Data(Section):
    name: Literal["digits", "mnist", "ham10000", "cifar10"] = "digits"
    path: str | None = None  # folder of the files, for all but digits
    partition: Literal["iid", "dirichlet", "labels"] = "iid"
    dirichlet_alpha: PositiveFloat = 0.5
    labels_per_client: PositiveInt = 2


class Learning(Section):
    scheme: Literal["psl", "epsl"] = "epsl"
    phi: Annotated[float, Field(ge=0, le=1)] = 0.5  # aggregation ratio; psl means 0
    reading: Literal["layerwise", "individual", "merged"] = "layerwise"
    weighted: bool = False  # lambda_i left in a client's own gradients
    batch_size: PositiveInt = 32
    learning_rate_client: PositiveFloat = 0.01
    learning_rate_server: PositiveFloat = 0.04
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class NumerologySection(Section):
    sample_rate_hz: PositiveFloat
    fft_size: PositiveInt
    prefix_samples: PositiveInt
    num_subchannels: PositiveInt
    subcarriers_per_subchannel: PositiveInt
    symbols_per_slot: PositiveInt
    slots_per_frame: PositiveInt
    duplex: Literal["tdd", "fdd"] = "tdd"


class Link(Section):
    ack_delay_s: NonNegativeFloat = 0.0005
    turnaround_s: NonNegativeFloat = 0.0005  # between hearing the server's sounding and answering it
    target_bler: Annotated[float, Field(gt=0, lt=1)] = 0.01
    mcs_backoff_db: FiniteFloat = 1.0
    stall_frames: PositiveInt = 24  # frames without one acknowledged block before a stream is given up


Share = Annotated[float, Field(ge=0, lt=1)]


class Allocator(Section):
    """A policy of :mod:`testbed.policies` and how reluctant it is to change its mind."""

    name: Literal["closed-loop", "solve-once", "balanced", "round-robin", "rss", "bcd"] = "closed-loop"
    rate_model: Literal["mcs", "shannon"] = "mcs"
    power_hysteresis: Share = 0.005  # share of the predicted latency that other power must save
    assignment_hysteresis: Share = 0.02  # the same for a new assignment
    cut_hysteresis: Share = 0.03  # and for another cut, on top of the cost of moving there
    cut_horizon_rounds: PositiveInt = 10  # over which that cost is spread
    iterations: PositiveInt | None = None  # of the optimiser's outer loop, in place of its own default


class Prediction(Section):
    model: Literal["twin", "paper"] = "twin"  # the protocol, simulated; or the paper's formula
    num_draws: Annotated[int, Field(ge=8, le=4096)] = 96


class Evaluation(Section):
    every_rounds: PositiveInt = 10
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.2


class Checkpoints(Section):
    every_rounds: Annotated[int, Field(ge=0)] = 50  # 0: only at the end


class Experiment(Section):
    format: Literal["experiment/1"] = "experiment/1"
    name: Name = "experiment"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    rounds: PositiveInt = 120
    round_deadline_s: PositiveFloat = 10.0  # experiment time
    compute: Compute = Compute.MEASURED
    model: Model = Model()
    data: Data = Data()
    learning: Learning = Learning()
    numerology: NumerologySection
    link: Link = Link()
    allocator: Allocator = Allocator()
    prediction: Prediction = Prediction()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()


# ----------------------------------------------------------------------------------------- lab
class Processor(Section):
    clock_hz: PositiveFloat  # f
    cycles_per_flop: PositiveFloat  # kappa
    slowdown: PositiveFloat = 1.0  # emulated board against this machine (measured compute)


class Fading(Section):
    """A tapped delay line per link, optionally with a line of sight."""

    # How power is spread over delays: exponential on whole samples, or TR 38.901's tables at any delay.
    profile: Literal["exponential", "tdl-a", "tdl-b", "tdl-c", "tdl-d", "tdl-e"] = "exponential"
    delay_spread_s: NonNegativeFloat = 0.0  # RMS
    num_taps: Annotated[int, Field(ge=1, le=64)] = 1  # exponential; the others bring their own
    rician_k_db: FiniteFloat | None = None  # None: Rayleigh, or what the table of tdl-d or tdl-e says
    doppler_hz: NonNegativeFloat = 0.0  # 0: the channel does not move
    # Still within a round, and correlated by rho^k over k rounds; None: it moves with time.
    round_correlation: Annotated[float, Field(ge=0, lt=1)] | None = None


class LinkChannel(Section):
    """One board's radio channel to and from the server (emulated radio only)."""

    path_loss_db: FiniteFloat
    cfo_hz: FiniteFloat = 0.0  # the board's carrier against the server's
    # The board's sample clock against the server's, positive where it is fast.  Timing is common, so
    # sample counters are set right at each frame's start and drift accumulates within a frame.
    clock_drift_ppm: FiniteFloat = 0.0
    timing_offset_samples: Annotated[int, Field(ge=0)] = 0
    fading: Fading = Fading()


class PhaseNoise(Section):
    """Of a radio's oscillator, whose loop follows a clean reference up to its bandwidth."""

    rms_deg: Annotated[float, Field(ge=0, le=60)]  # integrated phase error
    bandwidth_hz: PositiveFloat  # above it the density falls by 20 dB per decade


IqGainDb = Annotated[float, Field(ge=-6, le=6)]
IqPhaseDeg = Annotated[float, Field(ge=-45, le=45)]
LevelDbfs = Annotated[float, Field(ge=-200, le=0)]


class TransmitterImpairments(Section):
    iq_gain_imbalance_db: IqGainDb = 0.0  # the Q branch against the I branch
    iq_phase_imbalance_deg: IqPhaseDeg = 0.0
    lo_leakage_dbfs: LevelDbfs | None = None  # carrier that leaks while a burst is sent; None: none
    pa_saturation_dbfs: Annotated[float, Field(ge=-100, le=100)] | None = None  # Rapp; None: linear
    pa_smoothness: Annotated[float, Field(ge=0.5, le=20)] = 2.0  # Rapp's p


class ReceiverImpairments(Section):
    iq_gain_imbalance_db: IqGainDb = 0.0
    iq_phase_imbalance_deg: IqPhaseDeg = 0.0
    dc_offset_dbfs: LevelDbfs | None = None  # whatever the gain; None: none


class Impairments(Section):
    """Analogue hardware of an emulated radio; ideal by default."""

    phase_noise: PhaseNoise | None = None
    transmitter: TransmitterImpairments = TransmitterImpairments()
    receiver: ReceiverImpairments = ReceiverImpairments()


class Interference(Section):
    """A signal of others at a receiver (emulated radio only)."""

    receiver: Name  # the server or a board
    kind: Literal["tone", "noise"]
    power_dbm: FiniteFloat  # at its port, while it is on
    centre_hz: FiniteFloat = 0.0  # over the carrier
    bandwidth_hz: PositiveFloat | None = None  # of noise
    duty: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of each period in which it is on
    period_s: PositiveFloat = 0.01


class Board(Section):
    name: Name
    processor: Processor
    max_power_dbm: FiniteFloat  # p_max, over all its subchannels
    launch: Literal["local", "external"] = "local"
    channel: LinkChannel | None = None  # emulated radio only
    impairments: Impairments | None = None  # in place of all those of lab.radio


class Server(Section):
    name: Name = "server"
    processor: Processor
    downlink_psd_dbm_per_hz: FiniteFloat
    launch: Literal["local", "external"] = "local"
    impairments: Impairments | None = None  # in place of all those of lab.radio


class EmulatedRadio(Section):
    driver: Literal["emulated"] = "emulated"
    fidelity: Fidelity = Fidelity.IQ  # samples, or blocks whose errors are drawn from measured curves
    antenna_gain_db: FiniteFloat = 10.0  # G, both ends together
    noise_figure_db: NonNegativeFloat = 7.0
    converter_bits: Annotated[int, Field(ge=4, le=16)] = 12
    backoff_db: NonNegativeFloat = 12.0  # full scale above a port's maximum mean power
    muted: tuple[Name, ...] = ()  # ports that radiate nothing, for fault drills
    impairments: Impairments = Impairments()  # of every port that has none of its own
    plane: Literal["auto", "shared-memory", "network"] = "auto"


class Clock(Section):
    """Virtual: nobody sleeps.  Wall: real time times ``slow_motion``."""

    kind: Literal["virtual", "wall"] = "virtual"
    slow_motion: PositiveFloat = 1.0


class Control(Section):
    bind: str = "tcp://127.0.0.1:*"
    latency_s: NonNegativeFloat = 0.001  # declared cost of a grant or a report
    heartbeat_s: PositiveFloat = 0.5
    timeout_s: PositiveFloat = 2.0  # wall time without a heartbeat before a peer is detached
    start_timeout_s: PositiveFloat = 60.0


class ScenarioFading(Section):
    """What all channels of the lab do in place of their own ``doppler_hz`` or ``round_correlation``."""

    kind: Literal["per_round", "doppler"]
    correlation: Annotated[float, Field(ge=0, lt=1)] | None = None  # per_round: over one round
    doppler_hz: NonNegativeFloat | None = None  # doppler; 0: nothing moves


class Change(Section):
    """Something that happens to one board, named by ``board`` or by ``index`` (0: the lab's first)."""

    board: Name | None = None
    index: Annotated[int, Field(ge=0)] | None = None


class Walk(Change):
    """A walk through a fade: path loss rises by ``depth_db`` and falls again, as a raised cosine."""

    begins: RunShare
    ends: RunShare
    depth_db: Annotated[float, Field(gt=0, le=15)]


class Throttle(Change):
    """A processor that is slower for a while, as when it is too hot."""

    begins: RunShare
    ends: RunShare
    slowdown: Annotated[float, Field(ge=1, le=3)]


class Happening(Change):
    """A redraw of a board's channel, a board that joins, or one that leaves."""

    at: RunShare


class Scenario(Section):
    """Hidden truth of the emulated lab that changes while a run goes on.

    Instants are shares of the run's rounds, so that a scenario fits a run of any length.
    """

    format: Literal["scenario/1"] = "scenario/1"
    name: Name = "scenario"
    version: PositiveInt = 1
    description: str = ""
    fading: ScenarioFading | None = None  # None: the lab's own
    walks: tuple[Walk, ...] = ()
    throttles: tuple[Throttle, ...] = ()
    redraws: tuple[Happening, ...] = ()
    joins: tuple[Happening, ...] = ()
    leaves: tuple[Happening, ...] = ()


class Lab(Section):
    format: Literal["lab/1"] = "lab/1"
    name: Name = "lab"
    environment: Literal["emulated", "cabled", "over_the_air"] = "emulated"
    carrier_hz: PositiveFloat = 2.4e9
    total_power_dbm: FiniteFloat  # p_th, over all boards
    radio: EmulatedRadio = EmulatedRadio()
    clock: Clock = Clock()
    control: Control = Control()
    interference: tuple[Interference, ...] = ()
    scenario: Scenario | None = None  # in a file: also the name of a shipped one, or a path
    server: Server
    boards: Annotated[tuple[Board, ...], Field(min_length=1, max_length=256)]
