"""What the configuration promises: every mistake named at its place, all at once, nothing lost."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from radio.air.channel import FadingProfile
from radio.air.core import AirCore
from radio.air.front_end import IDEAL, PortImpairments, ReceiverImpairments, TransmitterImpairments
from radio.air.interference import Interference
from radio.air.oscillator import PhaseNoise
from testbed.config import checks
from testbed.config.loader import (
    ResolvedConfig,
    config_hash,
    load,
    preset_names,
    resolved_yaml,
)
from testbed.config.messages import number_text
from testbed.config.yamltree import SourceKind, dump, read
from testbed.errors import ConfigError, ConfigProblem, ExitCode, TestbedError, exit_code
from testbed.specs import air_setup, node_setup, numerology_of


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file into the working directory, so that messages show its bare name."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> str:
        Path(name).write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return name

    return write_file


def problems_of(*args, **kwargs) -> list[ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return list(caught.value.problems)


def only(*args, **kwargs) -> str:
    problems = problems_of(*args, **kwargs)
    assert len(problems) == 1, "\n".join(map(str, problems))
    return str(problems[0])


# ----------------------------------------------------------------------------------- presets
@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_loads_and_passes_every_check(preset):
    config = load(preset=preset)
    assert checks.findings(config.experiment, config.lab) == []
    assert all(origin.kind in (SourceKind.PRESET, SourceKind.DEFAULT) for origin in config.sources.values())


def test_the_presets_are_the_two_numerologies_of_the_lab():
    laptop, pluto = load().experiment.numerology, load(preset="pluto-lab").experiment.numerology
    assert preset_names() == ["edge", "laptop", "pluto-lab"]
    assert load(preset="edge").experiment.numerology == laptop
    assert (laptop.sample_rate_hz, laptop.fft_size, laptop.prefix_samples) == (20e6, 1024, 72)
    assert (pluto.sample_rate_hz, pluto.fft_size, pluto.prefix_samples) == (2.5e6, 256, 32)
    assert laptop.num_subchannels == pluto.num_subchannels == 20
    assert (laptop.subcarriers_per_subchannel, pluto.subcarriers_per_subchannel) == (40, 10)


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_is_the_scenario_scaled_by_its_bandwidth(preset):
    config = load(preset=preset)
    grid, lab = config.experiment.numerology, config.lab
    band_hz = grid.num_subchannels * grid.subcarriers_per_subchannel * grid.sample_rate_hz / grid.fft_size
    s = band_hz / 200e6
    assert lab.total_power_dbm == pytest.approx(36.99 + 10 * math.log10(s), abs=0.006)
    assert lab.server.processor.clock_hz == pytest.approx(5e9 * s)
    assert lab.server.downlink_psd_dbm_per_hz == -50
    for board in lab.boards:
        assert board.max_power_dbm == pytest.approx(31.76 + 10 * math.log10(s), abs=0.006)
        assert 1e9 <= board.processor.clock_hz / s <= 1.6e9
        assert board.channel is not None
        assert abs(board.channel.cfo_hz) < 0.08 * grid.sample_rate_hz / grid.fft_size
        noise_dbm_per_hz = -174 + lab.radio.noise_figure_db
        received_dbm_per_hz = -50 + lab.radio.antenna_gain_db - board.channel.path_loss_db
        assert 5 <= received_dbm_per_hz - noise_dbm_per_hz <= 28


def test_on_the_edge_computing_lasts_as_long_whether_measured_or_modelled():
    """Its cycles per FLOP are fitted to what a machine like this one takes at the shallowest cut."""
    lab = load(preset="edge").lab
    client_cpu_s, client_flops = 0.6e-3 + 0.9e-3, 2 * 221184
    server_cpu_s, server_flops = 4e-3 + 10e-3, 151_838_720 + 197_533_696
    for processor, cpu_s, flops in [
        *[(board.processor, client_cpu_s, client_flops) for board in lab.boards],
        (lab.server.processor, server_cpu_s, server_flops),
    ]:
        measured_s = cpu_s * processor.slowdown
        assert flops * processor.cycles_per_flop / processor.clock_hz == pytest.approx(measured_s, rel=0.02)
    slowdowns = [board.processor.slowdown for board in lab.boards]
    assert (min(slowdowns), max(slowdowns)) == (40, 64)
    # The same core everywhere, at another clock.
    assert {round(b.processor.slowdown * b.processor.clock_hz / 5e9, 3) for b in lab.boards} == {1.0}


# -------------------------------------------------------------------------------- precedence
def test_default_preset_file_environment_flag_each_win_over_the_one_before(write):
    experiment = write("e.yaml", "format: experiment/1\nlearning: {phi: 0.25, momentum: 0.25}\nseed: 7\n")
    environ = {
        "TESTBED__LEARNING__PHI": "0.375",
        "TESTBED__SEED": "8",
        "PATH": "/bin",
        "TESTBED_REQUIRE": "x",
    }
    config = load(experiment, None, "laptop", ["learning.phi=0.625", "seed=9"], environ, {"seed": 10})
    assert config.experiment.learning.momentum == 0.25
    assert config.experiment.learning.phi == 0.625
    assert config.experiment.seed == 10
    assert config.experiment.learning.batch_size == load().experiment.learning.batch_size
    sources = config.sources
    assert str(sources["experiment.learning.phi"]) == "--set learning.phi=0.625"
    assert str(sources["experiment.learning.momentum"]) == "e.yaml:2:33"
    assert str(sources["experiment.seed"]) == "--seed 10"
    assert str(sources["experiment.learning.batch_size"]).startswith("presets/laptop/experiment.yaml:")
    assert sources["experiment.data.path"].kind is SourceKind.DEFAULT
    without_flags = load(experiment, environ=environ)
    assert without_flags.experiment.learning.phi == 0.375
    assert str(without_flags.sources["experiment.seed"]) == "environment variable TESTBED__SEED"


def test_a_file_merges_into_the_preset_key_by_key_but_replaces_lists(write):
    lab = write(
        "lab.yaml",
        """
        format: lab/1
        radio: {noise_figure_db: 5}
        boards:
          - name: only
            max_power_dbm: 10
            processor: {clock_hz: 1e8, cycles_per_flop: 0.1}
            channel: {path_loss_db: 110}
        """,
    )
    config = load(None, lab)
    assert [board.name for board in config.lab.boards] == ["only"]
    assert (config.lab.radio.noise_figure_db, config.lab.radio.antenna_gain_db) == (5, 10)
    assert config.experiment == load().experiment


def test_flags_of_their_own_reach_their_keys():
    flags = {"rounds": 3, "seed": None, "allocator": "rss", "compute": "modelled"}
    config = load(flags=flags)
    assert (config.experiment.rounds, config.experiment.seed) == (3, 1)
    assert (config.experiment.allocator.name, config.experiment.compute.value) == ("rss", "modelled")
    assert only(flags={"rounds": 0}) == "--rounds 0: rounds: must be greater than 0, not 0"


def test_entries_of_a_list_are_set_by_index_name_or_all_at_once():
    config = load(
        overrides=[
            "lab.boards.*.max_power_dbm=2",
            "lab.boards.0.max_power_dbm=3",
            "lab.boards[1].channel.cfo_hz=-5",
            "lab.boards.board-3.processor.slowdown=2.5",
            "lab.radio.muted=[board-1, server]",
        ]
    )
    assert [board.max_power_dbm for board in config.lab.boards] == [3, 2, 2, 2, 2]
    assert config.lab.boards[1].channel.cfo_hz == -5
    assert config.lab.boards[2].processor.slowdown == 2.5
    assert config.lab.radio.muted == ("board-1", "server")
    assert load(environ={"TESTBED_LAB__BOARDS__4__NAME": "far"}).lab.boards[4].name == "far"
    message = only(overrides=["lab.boards.7.name=x"])
    assert message.startswith("--set lab.boards.7.name=x: boards: has no entry 7 (0 to 4, * for all")


def test_a_preset_stands_in_for_a_file_by_name(write):
    mixed = load("pluto-lab", "laptop")
    assert (mixed.experiment.name, mixed.lab.name) == ("pluto-lab", "laptop")
    # The other way round, echoes that pluto-lab's slow samples hold outlast laptop's short prefix.
    assert all("exceed the cyclic prefix" in str(problem) for problem in problems_of("laptop", "pluto-lab"))
    message = only(preset="lptop")
    assert message == "--preset lptop: there is no such preset (did you mean laptop?)"
    message = only(None, "missing.yaml")
    assert message.startswith("missing.yaml: can't be read: No such file or directory (give a file, or")


# --------------------------------------------------------------------- places and suggestions
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learnin: {phi: 1}", "e.yaml:2:1 learnin: unknown key (did you mean learning?)"),
        (
            "learning: {Batch-Size: 4}",
            "e.yaml:2:12 learning.Batch-Size: unknown key (did you mean batch_size?)",
        ),
        ("phi: 0.5", "e.yaml:2:1 phi: unknown key (it belongs to learning.phi)"),
        ("carrier_hz: 1e9", "e.yaml:2:1 carrier_hz: unknown key (it belongs to carrier_hz of the lab file)"),
        ("learning: {phi: 1.5}", "e.yaml:2:17 learning.phi: must be at most 1, not 1.5"),
        ("learning:\n  phi: 50%", "e.yaml:3:8 learning.phi: must be a finite number, not '50%' (write 0.5)"),
        ("rounds: 20.5", "e.yaml:2:9 rounds: must be a whole number, not 20.5"),
        ("rounds: '20'", "e.yaml:2:9 rounds: must be a whole number, not '20' (write 20)"),
        ("rounds: true", "e.yaml:2:9 rounds: must be a whole number, not true"),
        ("name: 5", "e.yaml:2:7 name: must be text, not 5 (put it in quotes)"),
        (
            "learning: {weighted: yes}",
            "e.yaml:2:22 learning.weighted: must be true or false, not 'yes' (write true)",
        ),
        (
            "learning: {scheme: espl}",
            "e.yaml:2:20 learning.scheme: must be one of psl, epsl, not 'espl' (did you mean epsl?)",
        ),
        ("model: {cut_layer: 0}", "e.yaml:2:20 model.cut_layer: must be 'auto' or greater than 0, not 0"),
        (
            "model: [1]",
            "e.yaml:2:8 model: must be a mapping with the keys name, cut_layer, cut_schedule, not a list of 1",
        ),
        ("evaluation:", "e.yaml:2:12 evaluation: must be a mapping with the keys every_rounds"),
        ("seed: 3\nseed: 4", "e.yaml:3:1 seed: this key is already given in line 2 (keep one of the two)"),
        (
            "round_deadline_s: .nan",
            "e.yaml:2:19 round_deadline_s: must be a plain number in seconds, not nan",
        ),
        (
            "round_deadline_s: 1e999",
            "e.yaml:2:19 round_deadline_s: must be a plain number in seconds, not inf",
        ),
        ("round_deadline_s: 1e-3", "e.yaml:2:19 round_deadline_s: one frame takes 9.206e-3 s: no round can"),
        ("round_deadline_s: 90 ms", "must be a plain number in seconds, not '90 ms' (write 0.09)"),
        (
            "numerology: {sample_rate_hz: 20 MHz}",
            "e.yaml:2:30 numerology.sample_rate_hz: must be a plain number in Hz, not '20 MHz' (write 20e6)",
        ),
        ("numerology: {sample_rate_hz: 2_000_000}", "not '2_000_000' (write 2e6)"),
        (
            "numerology: {sample_rate_hz: 20}",
            "e.yaml:2:30 numerology.sample_rate_hz: 20 Hz is not plausible, 100000 to 1e9 Hz is "
            "(if 20 MHz is meant, write 20e6)",
        ),
        ("link: {ack_delay_s: 5}", "5 s is not plausible, 0 to 1 s is (if 5 ms is meant, write 5e-3)"),
        (
            "model: !!python/name:os.system ''",
            "e.yaml:2:8 model: the tag !!python/name:os.system is not allowed",
        ),
        ("seed: !!int x", "e.yaml:2:7 seed: this int can't be read"),
        ('data: {path: "\\ud800"}', "e.yaml:2:14 data.path: this str can't be read"),
        ("? [1]\n: 2", "e.yaml:2:3: a key must be a plain word"),
        ("<<: {seed: 1}", "e.yaml:2:1 <<: unknown key (merge keys are not read"),
        ("learning:\n\tphi: 1", "found character '\\t' that cannot start any token"),
        ("a: b: c", "e.yaml:2:5: mapping values are not allowed here"),
    ],
)
def test_a_mistake_in_the_experiment_is_named_at_its_place(write, text, expected):
    assert expected in only(write("e.yaml", f"format: experiment/1\n{text}\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "carrier_hz: 2.4GHz",
            "lab.yaml:2:13 carrier_hz: must be a plain number in Hz, not '2.4GHz' (write 2.4e9)",
        ),
        (
            "carrier_hz: 2.4",
            "lab.yaml:2:13 carrier_hz: 2.4 Hz is not plausible, 1e6 to 300e9 Hz is "
            "(if 2.4 GHz is meant, write 2.4e9)",
        ),
        ("total_power_dbm: 5 W", "must be a plain number in dBm, not '5 W' (write 36.99)"),
        (
            "total_power_dbm: 5000",
            "5000 dBm is not plausible, -60 to 60 dBm is (if 5000 mW is meant, write 36.99)",
        ),
        ("control: {heartbeat_s: 500 ms}", "not '500 ms' (write 0.5)"),
        ("control: {bind: 'tcp://0.0.0.0:*'}", "lab.yaml:2:17 control.bind: 0.0.0.0 is not loopback"),
        (
            "control: {bind: 'tcp://127.0.0.1:70000'}",
            "lab.yaml:2:17 control.bind: 'tcp://127.0.0.1:70000' is no",
        ),
        ("control: {timeout_s: 0.6}", "lab.yaml:2:22 control.timeout_s: a peer is given up after 0.6 s"),
        (
            "radio: {muted: [board-6]}",
            "lab.yaml:2:17 radio.muted[0]: there is no port board-6 (did you mean board-5?)",
        ),
        ("radio: {driver: pluto}", "lab.yaml:2:17 radio.driver: must be 'emulated', not 'pluto'"),
        ("environment: cabled", "lab.yaml:2:14 environment: the emulated radio radiates nothing"),
        ("boards: []", "lab.yaml:2:9 boards: must be a list of one or more entries, not a list of 0"),
        ("boards: 5", "lab.yaml:2:9 boards: must be a list, not 5"),
        ("server: {name: a/b}", "lab.yaml:2:16 server.name: must be a name of at most 63 letters"),
    ],
)
def test_a_mistake_in_the_lab_is_named_at_its_place(write, text, expected):
    assert expected in only(None, write("lab.yaml", f"format: lab/1\n{text}\n"))


def test_a_key_of_a_board_is_named_with_its_index_line_and_column(write):
    lab = write(
        "lab.yaml",
        """
        format: lab/1
        boards:
          - &first
            name: a
            max_power_dbm: 10
            processor: {clock_hz: 1e8, cycles_per_flop: 0.1}
            channel: {path_loss_db: 110}
          - name: b
            processor: {clock_hz: 1e8, cycles_per_flop: 0.1}
            channel: {path_loss_db: 110}
            max_powr_dbm: 10
        """,
    )
    assert [str(problem) for problem in problems_of(None, lab)] == [
        "lab.yaml:8:5 boards[1].max_power_dbm: this key is missing",
        "lab.yaml:11:5 boards[1].max_powr_dbm: unknown key (did you mean max_power_dbm?)",
    ]


def test_sources_without_lines_are_named_themselves():
    problems = problems_of(
        overrides=["learning.phi=2", "nonsense", "=3", "lab.radio.noise_figure=5", "seed=[", "rounds="],
        environ={"TESTBED__LEARNING__PHY": "1", "TESTBED_LAB__CARRIER_HZ": "2.4 GHz"},
    )
    assert [str(problem) for problem in problems] == [
        "--set =3: is no KEY=VALUE (as in --set learning.phi=0.5)",
        "--set lab.radio.noise_figure=5: radio.noise_figure: unknown key (did you mean noise_figure_db?)",
        "--set learning.phi=2: learning.phi: must be at most 1, not 2",
        "--set nonsense: is no KEY=VALUE (as in --set learning.phi=0.5)",
        "--set rounds=: rounds: must be a whole number, not nothing",
        "--set seed=[: expected the node content, but found '<stream end>' while parsing a flow node",
        "environment variable TESTBED_LAB__CARRIER_HZ: carrier_hz: must be a plain number in Hz, not "
        "'2.4 GHz' (write 2.4e9)",
        "environment variable TESTBED__LEARNING__PHY: learning.phy: unknown key (did you mean phi?)",
    ]
    assert all(problem.line is None and problem.column is None for problem in problems)


def test_everything_wrong_in_both_files_is_said_at_once(write):
    experiment = write(
        "e.yaml",
        """
        format: experiment/1
        rouns: 5
        learning: {phi: 3}
        numerology: {fft_size: 777, num_subchannels: 3, symbols_per_slot: 10}
        data: {name: mnist}
        """,
    )
    lab = write("lab.yaml", "format: lab/1\ncarrier_hz: 2.4\nradio: {muted: [nobody], nosie_figure_db: 3}\n")
    places = [problem.where for problem in problems_of(experiment, lab, overrides=["seed=-1"])]
    assert places == [
        "--set seed=-1",
        "e.yaml:2:1",  # unknown key
        "e.yaml:3:17",  # phi
        "e.yaml:4:24",  # fft_size
        "e.yaml:4:67",  # symbols_per_slot
        "e.yaml:5:1",  # data.path, said where its section begins
        "lab.yaml:2:13",
        "lab.yaml:3:17",
        "lab.yaml:3:26",
        # The preset's five boards do not fit the file's three subchannels, nor its digits-cnn mnist.
        *[p.where for p in problems_of(experiment, lab) if p.file.startswith("presets/")],
    ]
    presets = [str(p) for p in problems_of(experiment, lab) if p.file.startswith("presets/")]
    assert [text.partition(" ")[0].partition(":")[0] for text in presets] == [
        "presets/laptop/experiment.yaml",
        "presets/laptop/lab.yaml",
    ]


def test_a_file_says_what_it_is(write):
    unsaid = write("e.yaml", "seed: 3\n")
    assert only(unsaid) == (
        "e.yaml:1:1 format: missing: every file says what it is (begin the file with `format: experiment/1`)"
    )
    newer = write("e.yaml", "format: experiment/2\nlearnin: 3\n")
    assert only(newer).startswith("e.yaml:1:9 format: experiment/2 is newer than this testbed")
    swapped = write("lab.yaml", "format: lab/1\nname: x\n")
    assert only(swapped).endswith("this is a file for the lab, not for the experiment (give it with --lab)")
    assert "must hold keys and values" in only(write("list.yaml", "- format: experiment/1\n"))
    assert "must hold keys and values" in only(write("empty.yaml", ""))


def test_a_file_that_cannot_be_read_does_not_hide_the_other(write):
    experiment = write("e.yaml", "format: experiment/1\nlearning: [\n")
    lab = write("lab.yaml", "format: lab/1\ncarrier_hz: 2.4\n")
    assert [problem.file for problem in problems_of(experiment, lab)] == ["e.yaml", "lab.yaml"]


@pytest.mark.parametrize(
    "content",
    [
        b"format: experiment/1\n#" + b"x" * (1 << 20),
        b"\xff\xfe\x00",
        b"format: experiment/1\nname: \x00",
        b"format: experiment/1\nname: &a [*a]",
        b"format: experiment/1\nname: " + b"[" * 5000,
        # A "billion laughs": each line ten times the line before.
        b"a0: &a0 [1]\n"
        + b"\n".join(b"a%d: &a%d [%s]" % (i, i, b",".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 12)),
    ],
    ids=["huge", "binary", "null", "endless", "deep", "laughs"],
)
def test_hostile_files_are_refused_in_words(write, content):
    Path("e.yaml").write_bytes(content)
    problems = problems_of("e.yaml")
    assert all(problem.file == "e.yaml" for problem in problems)


# -------------------------------------------------------------------------------- cross checks
@pytest.mark.parametrize(
    ("overrides", "path", "words"),
    [
        (["numerology.fft_size=1022"], "numerology.fft_size", "the next is 1024"),
        (
            ["numerology.fft_size=864", "numerology.num_subchannels=21"],
            "numerology.num_subchannels",
            "at most 20",
        ),
        (["numerology.num_subchannels=24"], "numerology.num_subchannels", "at most 23 subchannels"),
        (["numerology.prefix_samples=1024"], "numerology.prefix_samples", "not shorter than the symbol"),
        (["numerology.symbols_per_slot=27"], "numerology.symbols_per_slot", "250 bits per subchannel"),
        (["numerology.symbols_per_slot=27"], "numerology.symbols_per_slot", "write at least 28"),
        (["numerology.duplex=fdd"], "numerology.duplex", "has no fdd yet"),
        (
            ["lab.boards.4.channel.timing_offset_samples=63"],
            "boards[4].channel.timing_offset_samples",
            "at most 62",
        ),
        (["lab.boards.2.channel.cfo_hz=-9800"], "boards[2].channel.cfo_hz", "more than half the subcarrier"),
        (["lab.boards.1.max_power_dbm=26"], "boards[1].max_power_dbm", "above the lab's total_power_dbm"),
        (["lab.boards.1.max_power_dbm=100"], "boards[1].max_power_dbm", "if 100 mW is meant, write 20"),
        (["lab.boards.3.name=board-1"], "boards[3].name", "taken by boards[0]"),
        (["lab.boards.3.name=server"], "boards[3].name", "taken by the server"),
        (["lab.boards.3.channel=null"], "boards[3]", "the emulated radio needs a channel"),
        (
            ["data.partition=labels", "data.labels_per_client=11"],
            "data.labels_per_client",
            "10 labels, not 11",
        ),
        (["data.name=mnist", "model.name=mlp"], "data.path", "no folder is given"),
        (["data.name=mnist", "data.path=/x"], "model.name", "8 x 8 images"),
        (
            ["lab.boards.0.channel.fading.delay_spread_s=100"],
            "boards[0].channel.fading.delay_spread_s",
            "100 ns",
        ),
        (
            ["lab.boards.0.channel.fading.profile=tdl-d"],
            "boards[0].channel.fading.num_taps",
            "tdl-d has the taps of its table (write num_taps: 1",
        ),
        (
            ["lab.boards.0.channel.fading={profile: tdl-a, delay_spread_s: 1e-7, rician_k_db: 5}"],
            "boards[0].channel.fading.rician_k_db",
            "write null, or take tdl-d or tdl-e",
        ),
        (
            ["lab.boards.0.channel.fading={profile: tdl-e, delay_spread_s: 0}"],
            "boards[0].channel.fading.delay_spread_s",
            "as in delay_spread_s: 100e-9",
        ),
        (
            ["lab.boards.0.channel.fading={profile: tdl-e, delay_spread_s: 5e-7}"],
            "boards[0].channel.timing_offset_samples",
            "of delay spread exceed the cyclic prefix",
        ),
        (
            ["lab.boards.0.channel.fading={profile: tdl-e, delay_spread_s: 1e-4}"],
            "boards[0].channel.fading.delay_spread_s",
            "4096 can be had",
        ),
        (
            ["lab.boards.4.channel.clock_drift_ppm=200"],
            "boards[4].channel.timing_offset_samples",
            "47 of them for a drifting clock,",
        ),
        (["lab.boards.0.channel.clock_drift_ppm=2000"], "boards[0].channel.clock_drift_ppm", "not plausible"),
        (
            ["lab.radio.impairments.phase_noise={rms_deg: 1, bandwidth_hz: 10}"],
            "radio.impairments.phase_noise.bandwidth_hz",
            "200 to 5e6 Hz can",
        ),
        (
            ["lab.boards.1.impairments={phase_noise: {rms_deg: 1, bandwidth_hz: 6e6}}"],
            "boards[1].impairments.phase_noise.bandwidth_hz",
            "can't be emulated",
        ),
        (
            ["lab.interference=[{receiver: sever, kind: tone, power_dbm: -60}]"],
            "interference[0].receiver",
            "server",
        ),
        (
            ["lab.interference=[{receiver: server, kind: noise, power_dbm: -60}]"],
            "interference[0].bandwidth_hz",
            "noise needs one",
        ),
        (
            ["lab.interference=[{receiver: server, kind: tone, power_dbm: -60, bandwidth_hz: 1e6}]"],
            "interference[0].bandwidth_hz",
            "a tone has none",
        ),
        (
            ["lab.interference=[{receiver: server, kind: noise, power_dbm: -60, bandwidth_hz: 3e7}]"],
            "interference[0].bandwidth_hz",
            "is not within",
        ),
        (
            ["lab.interference=[{receiver: server, kind: tone, power_dbm: -60, centre_hz: 2.4e9}]"],
            "interference[0].centre_hz",
            "lies outside",
        ),
    ],
)
def test_values_that_cannot_work_together_are_refused(overrides, path, words):
    problems = problems_of(overrides=overrides)
    assert any(p.path == path and words in str(p) for p in problems), "\n".join(map(str, problems))


def test_what_is_wrong_with_the_air_goes_to_the_air_and_to_nobody_else():
    """Impairments, interference, profiles and drift are hidden truth: no node is told of them."""
    overrides = [
        "lab.radio.impairments={phase_noise: {rms_deg: 0.5, bandwidth_hz: 5e4}, receiver: {dc_offset_dbfs: -50}}",
        "lab.boards.1.impairments={transmitter: {pa_saturation_dbfs: 2, pa_smoothness: 3}}",
        "lab.server.impairments={}",
        "lab.boards.2.channel.fading={profile: tdl-d, delay_spread_s: 5e-8, num_taps: 1, rician_k_db: null}",
        "lab.boards.2.channel.clock_drift_ppm=2.5",
        "lab.interference=[{receiver: board-3, kind: noise, power_dbm: -80, bandwidth_hz: 1e6, duty: 0.5}]",
    ]
    config, plain = load(overrides=overrides), load()
    parameters = air_setup(config.experiment, config.lab).parameters
    ports = {port.name: port.impairments for port in parameters.ports}
    assert ports["board-1"] == PortImpairments(
        PhaseNoise(0.5, 5e4), receiver=ReceiverImpairments(dc_offset_dbfs=-50)
    )
    assert ports["board-2"] == PortImpairments(
        transmitter=TransmitterImpairments(pa_saturation_dbfs=2, pa_smoothness=3)
    )
    assert ports["server"] == IDEAL
    links = {(link.transmitter, link.receiver): link for link in parameters.links}
    up, down = links["board-3", "server"], links["server", "board-3"]
    assert (up.clock_drift_ppm, down.clock_drift_ppm) == (2.5, -2.5)
    assert up.clock_realign_samples == numerology_of(config.experiment).frame_samples
    assert up.fading == FadingProfile(5e-8, doppler_hz=0.2, profile="tdl-d")
    assert parameters.interference == (Interference("board-3", "noise", -80.0, 0.0, 1e6, 0.5, 0.01),)
    AirCore(parameters)
    for name in ("server", "board-3"):
        told, expected = (
            node_setup(one.experiment, one.lab, name, "run", "tcp://x", 0) for one in (config, plain)
        )
        assert told == expected


@pytest.mark.parametrize("preset", ["laptop", "edge", "pluto-lab"])
def test_the_shipped_labs_have_ideal_radios_and_clocks(preset):
    config = load(preset=preset)
    parameters = air_setup(config.experiment, config.lab).parameters
    assert {port.impairments for port in parameters.ports} == {IDEAL}
    assert {link.clock_drift_ppm for link in parameters.links} == {0.0}
    assert {link.fading.profile for link in parameters.links} == {"exponential"}
    assert parameters.interference == ()


def test_more_clients_than_subchannels_are_refused(write):
    config = load(overrides=["numerology.num_subchannels=5", "numerology.subcarriers_per_subchannel=160"])
    assert len(config.lab.boards) == 5
    overrides = ["numerology.num_subchannels=4", "numerology.subcarriers_per_subchannel=160"]
    assert "5 boards share 4 subchannels" in only(overrides=overrides)


@given(
    fft_size=st.integers(1, 5000),
    prefix=st.integers(1, 5000),
    num_subchannels=st.integers(1, 64),
    width=st.integers(1, 200),
    symbols=st.integers(1, 300),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_accepted_numerology_is_a_grid_the_modem_can_build(
    fft_size, prefix, num_subchannels, width, symbols
):
    from radio.numerology import Numerology

    keys = {
        "fft_size": fft_size,
        "prefix_samples": prefix,
        "num_subchannels": num_subchannels,
        "subcarriers_per_subchannel": width,
        "symbols_per_slot": symbols,
    }
    try:
        config = load(overrides=[f"numerology.{key}={value}" for key, value in keys.items()])
    except ConfigError:
        return
    section = config.experiment.numerology
    grid = Numerology(**section.model_dump(exclude={"duplex"}))
    assert grid.block_resource_elements * 0.25 >= 256
    assert len(set(grid.fft_bins)) == grid.num_subcarriers < grid.fft_size


# ----------------------------------------------------------------------------------- round trip
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
_FINITE = st.floats(-1e6, 1e6)


@given(
    path=_TEXT,
    phi=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-12, 1e12),
    loss=st.floats(0, 250),
    muted=st.lists(st.sampled_from(["server", "board-1", "board-5"]), max_size=3),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True),
    rician=st.none() | st.floats(-40, 60),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_resolved_configuration_loads_again_to_itself(
    tmp_path_factory, path, phi, seed, rate, loss, muted, name, rician
):
    base = load()
    experiment = base.experiment.model_copy(
        update={
            "name": name,
            "seed": seed,
            "data": base.experiment.data.model_copy(update={"path": path}),
            "learning": base.experiment.learning.model_copy(
                update={"phi": phi, "learning_rate_client": rate}
            ),
        }
    )
    board = base.lab.boards[2]
    fading = board.channel.fading.model_copy(update={"rician_k_db": rician})
    channel = board.channel.model_copy(update={"path_loss_db": loss, "fading": fading})
    lab = base.lab.model_copy(
        update={
            "boards": (base.lab.boards[0], board.model_copy(update={"channel": channel}), base.lab.boards[4]),
            "radio": base.lab.radio.model_copy(update={"muted": tuple(muted)}),
        }
    )
    config = ResolvedConfig(experiment, lab, {})
    file = tmp_path_factory.mktemp("resolved", numbered=True) / "config.yaml"
    file.write_text(resolved_yaml(config), encoding="utf-8", newline="")
    again = load(file, preset="pluto-lab")
    assert (again.experiment, again.lab) == (experiment, lab)
    assert config_hash(again) == config_hash(config)
    assert resolved_yaml(again) == resolved_yaml(config)


def test_a_resolved_file_gives_the_lab_unless_another_is_given(write):
    file = write("config.yaml", resolved_yaml(load(preset="pluto-lab", overrides=["seed=5"])))
    assert load(file).lab.name == "pluto-lab"
    assert (load(file, "laptop").lab.name, load(file, "laptop").experiment.seed) == ("laptop", 5)
    assert "lab: this section is missing" in only(
        write("half.yaml", dump({"format": "resolved/1", "experiment": {}}))
    )


def test_the_hash_changes_with_any_value():
    plain = config_hash(load())
    assert plain == config_hash(load(overrides=["learning.phi=0.5"]))
    for override in (
        "seed=2",
        "learning.phi=0.25",
        "lab.boards.4.channel.cfo_hz=1",
        "lab.radio.muted=[server]",
    ):
        assert config_hash(load(overrides=[override])) != plain


# ----------------------------------------------------------------------------------------- yaml
@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("2e6", 2e6),
            ("20e6", 20e6),
            ("1.e-3", 1e-3),
            (".5", 0.5),
            ("-1E+2", -100.0),
            ("007", 7),
            ("0x1F", 31),
        ],
        *[("0o17", 15), ("~", None), ("", None), ("true", True), ("False", False), ("1_000", "1_000")],
        *[(word, word) for word in ("on", "off", "yes", "no", "y", "12:30", "2024-01-01", "1e", "e5", "0b1")],
        *[("'2e6'", "2e6"), ("-.inf", -math.inf), ("!!str 5", "5")],
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    tree, problems = read(f"[{text}]" if text else "", SourceKind.FILE, "x")
    assert problems == []
    found = tree.value[0].value if text else tree.value
    assert found == value
    assert type(found) is type(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT, st.lists, max_leaves=8
    )
)
@example(data="\x85")
@settings(max_examples=150, deadline=None)
def test_what_is_dumped_is_read_back_by_us_and_by_yaml_1_1(data):
    tree, problems = read(dump({"x": data}), SourceKind.FILE, "x")
    assert problems == []
    assert tree.plain() == {"x": data}
    assert str(tree.plain()) == str({"x": data})  # 1 is not 1.0, nor True
    assert yaml.safe_load(dump({"x": "on 2e6 yes"})) == {"x": "on 2e6 yes"}


@given(st.floats(1e-15, 1e15) | st.floats(-1e15, -1e-15))
def test_numbers_in_messages_are_those_that_were_meant(value):
    assert float(number_text(value)) == pytest.approx(value, rel=1e-9)


# ------------------------------------------------------------------------------------ exit codes
def test_every_failure_has_a_documented_exit_code():
    def below(cls):
        return [cls, *(leaf for sub in cls.__subclasses__() for leaf in below(sub))]

    for cls in below(TestbedError):
        assert cls.exit_code.help
    assert exit_code(ConfigError([])) == ExitCode.CONFIG == 10
    assert exit_code(KeyboardInterrupt()) == ExitCode.INTERRUPTED == 1
    assert exit_code(OSError(28, "no space left")) == ExitCode.STORAGE == 70
    assert exit_code(ZeroDivisionError()) == ExitCode.BUG == 90


def test_a_failure_of_a_lower_room_is_filed_under_that_room():
    from radio.errors import GapError

    assert exit_code(GapError("x")) == ExitCode.RADIO == 30
