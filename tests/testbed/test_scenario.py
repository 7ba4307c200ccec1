"""Scenarios: what a file may say, what it means round by round, and who gets to know."""

from __future__ import annotations

import ast
import math
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config import checks
from testbed.config.loader import config_hash, load, preset_names, resolved_yaml, scenario_names
from testbed.config.schema import Lab, Scenario
from testbed.config.yamltree import SourceKind
from testbed.errors import ConfigError, ConfigProblem
from testbed.scenario import ResolvedScenario, resolve_scenario
from testbed.specs import air_setup, node_setup

ROOMS = Path(__file__).resolve().parents[2] / "testbed"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file into the working directory, so that messages show its bare name."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> str:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        return name

    return write_file


def problems_of(*args: object, **kwargs: object) -> list[ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)  # type: ignore[arg-type]
    return list(caught.value.problems)


def resolved(rounds: int = 40, num_boards: int = 5, **changes: object) -> ResolvedScenario:
    lab = load().lab
    lab = lab.model_copy(update={"boards": lab.boards[:num_boards]})
    return resolve_scenario(Scenario.model_validate(changes), lab, rounds)


# ----------------------------------------------------------------------------------- what is shipped
@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("name", scenario_names())
def test_a_shipped_scenario_fits_every_preset(preset: str, name: str) -> None:
    config = load(preset=preset, flags={"scenario": name})
    assert config.lab.scenario is not None
    assert (config.lab.scenario.format, config.lab.scenario.name) == ("scenario/1", name)
    assert config.lab.scenario.version >= 1
    assert config.lab.scenario.description
    assert checks.findings(config.experiment, config.lab) == []
    assert config.sources["lab.scenario.name"].kind is SourceKind.PRESET
    assert str(config.sources["lab.scenario.name"]).startswith(f"scenarios/{name}.yaml:")


@pytest.mark.parametrize("name", ["static", "walk", "throttle"])
@pytest.mark.parametrize("rounds", [1, 2, 3, 120])
def test_a_scenario_of_one_board_fits_a_lab_of_one(name: str, rounds: int) -> None:
    lab = load().lab
    overrides = [f"lab.boards=[{lab.boards[0].model_dump_json()}]"]
    config = load(overrides=overrides, flags={"scenario": name, "rounds": rounds})
    assert resolve_scenario(config.lab.scenario, config.lab, rounds).present(0) == ("board-1",)


def test_static_freezes_every_channel_and_changes_nothing_else() -> None:
    for preset in preset_names():
        config = load(preset=preset, flags={"scenario": "static"})
        for link in air_setup(config.experiment, config.lab).parameters.links:
            assert (link.fading.doppler_hz, link.fading.round_correlation) == (0.0, None)
            assert (link.attenuation_db, link.redraw_rounds) == ((), ())


def test_most_of_a_busy_day_is_busy_and_some_of_it_is_not() -> None:
    config, rounds = load(flags={"scenario": "busy-day"}), 200
    truth = resolve_scenario(config.lab.scenario, config.lab, rounds)

    def something(index: int) -> bool:
        return any(
            (index < len(board.attenuation_db) and board.attenuation_db[index] > 1)
            or (index < len(board.slowdown_by_round) and board.slowdown_by_round[index] > 1)
            for board in truth.boards.values()
        )

    busy = [something(index) for index in range(rounds)]
    assert 0.65 < sum(busy) / rounds < 0.85
    quiet = [len(stretch) for stretch in "".join("x" if b else "." for b in busy).split("x") if stretch]
    assert len(quiet) >= 3
    assert max(quiet) > 0.05 * rounds
    assert [len(truth.present(index)) for index in (0, 79, 80, 151, 152, 199)] == [4, 4, 5, 5, 4, 4]
    assert sorted(index for board in truth.boards.values() for index in board.redraw_rounds) == [44, 168]


# ---------------------------------------------------------------------------------- how it is given
def test_a_scenario_is_given_by_name_path_or_text(write) -> None:
    text = """
        format: scenario/1
        name: mine
        throttles: [{board: board-2, begins: 0.1, ends: 0.5, slowdown: 2}]
        """
    path = write("mine.yaml", text)
    inline = "{name: mine, throttles: [{board: board-2, begins: 0.1, ends: 0.5, slowdown: 2}]}"
    by_path = load(flags={"scenario": path})
    assert by_path.lab.scenario is not None
    assert by_path.lab.scenario.throttles[0].slowdown == 2
    assert str(by_path.sources["lab.scenario.throttles[0].slowdown"]) == "mine.yaml:3:64"
    assert load(overrides=[f"lab.scenario={inline}"]).lab == by_path.lab
    assert load(environ={"TESTBED_LAB__SCENARIO": path}).lab == by_path.lab
    named = load(overrides=["lab.scenario=walk"])
    assert named.lab == load(flags={"scenario": "walk"}).lab
    assert load().lab.scenario is None


def test_a_lab_file_names_a_scenario_from_where_it_lies(write) -> None:
    write("room/day.yaml", "format: scenario/1\nname: day\n")
    lab = write("room/lab.yaml", "format: lab/1\nscenario: day.yaml\n")
    assert load(None, lab).lab.scenario == Scenario(name="day")
    (problem,) = problems_of(None, write("room/other.yaml", "format: lab/1\nscenario: night.yaml\n"))
    assert str(problem).startswith(
        "room/other.yaml:2:11 scenario: room/night.yaml can't be read: No such file or directory"
    )


def test_who_comes_later_wins_over_a_scenario_or_changes_a_part_of_it(write) -> None:
    lab = write("lab.yaml", "format: lab/1\nscenario: throttle\n")
    assert load(None, lab).lab.scenario.name == "throttle"
    changed = load(None, lab, overrides=["lab.scenario.throttles.1.slowdown=1.25"]).lab.scenario
    plain = load(None, lab).lab.scenario
    assert changed.throttles[1].slowdown == 1.25
    assert changed.throttles[0] == plain.throttles[0]
    # Another name replaces it whole: nothing of it shines through.
    environ = {"TESTBED_LAB__SCENARIO": "walk"}
    assert load(None, lab, environ=environ).lab.scenario == load(flags={"scenario": "walk"}).lab.scenario
    assert load(None, lab, environ=environ, overrides=["lab.scenario=static"]).lab.scenario.name == "static"
    over = load(None, lab, environ=environ, overrides=["lab.scenario=static"], flags={"scenario": "busy-day"})
    assert over.lab.scenario.name == "busy-day"
    assert load(None, lab, overrides=["lab.scenario=null"]).lab.scenario is None


@pytest.mark.parametrize("name", scenario_names())
def test_a_resolved_configuration_holds_the_scenario_and_loads_again(name: str, write) -> None:
    config = load(preset="edge", flags={"scenario": name})
    text = resolved_yaml(config)
    assert config.lab.scenario.description in " ".join(text.split())
    again = load(write("config.yaml", text), preset="pluto-lab")
    assert (again.experiment, again.lab) == (config.experiment, config.lab)
    assert config_hash(again) == config_hash(config) != config_hash(load(preset="edge"))
    assert load("config.yaml", flags={"scenario": "static"}).lab.scenario.name == "static"


# ---------------------------------------------------------------------------------------- mistakes
def test_a_name_that_is_not_there_gets_a_suggestion() -> None:
    (problem,) = problems_of(flags={"scenario": "busyday"})
    assert str(problem) == (
        "--scenario busyday: scenario: there is no scenario busyday (did you mean busy-day?)"
    )
    (problem,) = problems_of(overrides=["lab.scenario=xyz"])
    assert "there are busy-day, static, throttle, walk, or give a file" in str(problem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\n", "mine.yaml:1:1 format: missing: every file says what it is"),
        ("format: scenario/2\n", "mine.yaml:1:9 format: scenario/2 is newer than this testbed"),
        ("format: lab/1\n", "this is a file for the lab, not for the scenario (give it with --lab)"),
        ("- 1\n", "must hold keys and values, and begin with `format: scenario/1`"),
        ("format: [\n", "mine.yaml:2:1"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused(text: str, expected: str, write) -> None:
    (problem,) = problems_of(flags={"scenario": write("mine.yaml", text)})
    assert expected in str(problem)


def test_a_scenario_is_no_lab_and_no_experiment(write) -> None:
    path = write("mine.yaml", "format: scenario/1\n")
    assert all("give it with --scenario" in str(problem) for problem in problems_of(path))
    assert all("give it with --scenario" in str(problem) for problem in problems_of(None, path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("walk: []", "2:1 scenario.walk: unknown key (did you mean walks?)"),
        (
            "walks: [{board: bord-1, begins: 0, ends: 1, depth_db: 5}]",
            "2:17 scenario.walks[0].board: there is no board bord-1 (did you mean board-1?)",
        ),
        (
            "walks: [{board: server, begins: 0, ends: 1, depth_db: 5}]",
            "2:17 scenario.walks[0].board: there is no board server (boards: board-1, board-2,",
        ),
        (
            "redraws: [{index: 5, at: 0.5}]",
            "2:19 scenario.redraws[0].index: the lab has 5 boards, and none of index 5 (0 to 4)",
        ),
        ("joins: [{at: 0.5}]", "2:9 scenario.joins[0]: names no board (add board: NAME, or index: 0"),
        (
            "joins: [{board: board-1, index: 1, at: 0.5}]",
            "2:33 scenario.joins[0].index: names a board beside this index (keep one of the two)",
        ),
        (
            "walks: [{index: 0, begins: 0.5, ends: 0.5, depth_db: 5}]",
            "2:39 scenario.walks[0].ends: a walk from 0.5 to 0.5 of the run has no length",
        ),
        (
            "throttles: [{index: 0, begins: 0.5, ends: 0.2, slowdown: 2}]",
            "2:43 scenario.throttles[0].ends: a throttle from 0.5 to 0.2 of the run has no length",
        ),
        (
            "throttles: [{index: 0, begins: 0.5, ends: 0.7, slowdown: 4}]",
            "2:58 scenario.throttles[0].slowdown: must be at most 3, not 4",
        ),
        (
            "throttles: [{index: 0, begins: 0.5, ends: 0.7, slowdown: 0.5}]",
            "2:58 scenario.throttles[0].slowdown: must be at least 1, not 0.5",
        ),
        (
            "walks: [{index: 0, begins: 0, ends: 50%, depth_db: 5}]",
            "2:37 scenario.walks[0].ends: must be a finite number, not '50%' (write 0.5)",
        ),
        (
            "walks: [{index: 0, begins: 0, ends: 1, depth_db: 16}]",
            "2:50 scenario.walks[0].depth_db: must be at most 15, not 16",
        ),
        (
            "walks: [{index: 0, begins: 0, ends: 1, depth_db: 9}, {board: board-1, begins: 0, ends: 1, depth_db: 9}]",
            "2:54 scenario.walks[1]: the walks of board-1 add up to 18 dB in round 59; 15 dB in total",
        ),
        (
            "leaves: [{index: 0, at: 0.5}, {index: 0, at: 0.6}]",
            "2:31 scenario.leaves[1]: board-1 leaves twice; a board joins once and leaves once",
        ),
        (
            "joins: [{index: 0, at: 0.5}]\nleaves: [{index: 0, at: 0.4}]",
            "3:25 scenario.leaves[0].at: board-1 leaves at 0.4 of the run, and joins at 0.5 (a board does not",
        ),
        (
            "leaves: [{index: 0, at: 0.9}, {index: 1, at: 0.1}, {index: 2, at: 0.5}, {index: 3, at: 0.2}, {index: 4, at: 0.3}]",
            "2:9 scenario.leaves: nobody is left in round 108 of 120",
        ),
        (
            "joins: [{index: 0, at: 0.9}, {index: 1, at: 0.1}, {index: 2, at: 0.5}, {index: 3, at: 0.2}, {index: 4, at: 0.3}]",
            "2:8 scenario.joins: nobody is left in round 0 of 120",
        ),
        ("fading: {kind: per_round}", "2:1 scenario.fading.correlation: fading of kind per_round needs it"),
        ("fading: {kind: doppler}", "2:1 scenario.fading.doppler_hz: fading of kind doppler needs it"),
        (
            "fading: {kind: per_round, correlation: 0.5, doppler_hz: 0}",
            "2:57 scenario.fading.doppler_hz: belongs to kind: doppler, not to per_round",
        ),
        (
            "fading: {kind: per_round, correlation: 1.0}",
            "2:40 scenario.fading.correlation: must be less than 1, not 1",
        ),
        (
            "fading: {kind: doppler, doppler_hz: 2e6}",
            "2:37 scenario.fading.doppler_hz: 2e6 Hz is not plausible",
        ),
        ("fading: {kind: slow}", "2:16 scenario.fading.kind: must be one of per_round, doppler, not 'slow'"),
    ],
)
def test_a_mistake_is_named_at_its_place_in_the_scenario(text: str, expected: str, write) -> None:
    path = write("mine.yaml", f"format: scenario/1\n{text}\n")
    (problem,) = problems_of(flags={"scenario": path})
    assert f"mine.yaml:{expected}" in str(problem)


def test_a_scenario_needs_the_emulated_air() -> None:
    config = load(flags={"scenario": "walk"})
    radio = config.lab.radio.model_copy(update={"driver": "pluto"})
    lab = config.lab.model_copy(update={"radio": radio, "environment": "cabled"})
    assert any(
        finding.path == ("scenario",) and "the pluto radio has none" in finding.message
        for finding in checks.findings(config.experiment, lab)
    )
    without = lab.model_copy(update={"scenario": None})
    assert checks.findings(config.experiment, without) == []


def test_a_channel_changes_with_the_round_or_with_time_and_not_with_both() -> None:
    key = "lab.boards.2.channel.fading"
    (problem,) = problems_of(overrides=[f"{key}.round_correlation=0.9"])
    assert problem.path == "boards[2].channel.fading.round_correlation"
    assert "doppler_hz is 0.2 (write doppler_hz: 0)" in str(problem)
    config = load(overrides=[f"{key}.round_correlation=0.9", f"{key}.doppler_hz=0"])
    links = {
        (a.transmitter, a.receiver): a for a in air_setup(config.experiment, config.lab).parameters.links
    }
    for ends in (("board-3", "server"), ("server", "board-3")):
        assert links[ends].fading.round_correlation == 0.9


def test_throttles_that_no_message_could_tell_are_refused() -> None:
    flags = {"scenario": "throttle", "rounds": 6000}
    (problem,) = problems_of(flags=flags)
    assert problem.path == "scenario.throttles"
    assert "5000 rounds can be told to a board" in str(problem)
    assert load(flags={**flags, "rounds": 5000}).experiment.rounds == 5000
    assert load(flags={"scenario": "walk", "rounds": 100_000}).experiment.rounds == 100_000


# ------------------------------------------------------------------------------------- what it means
def test_a_walk_is_a_raised_cosine_between_its_shares() -> None:
    truth = resolved(rounds=40, walks=({"index": 1, "begins": 0.25, "ends": 0.75, "depth_db": 10.0},))
    found = truth.boards["board-2"].attenuation_db
    assert found[:10] == (0.0,) * 10
    assert found[-1] == 0.0
    assert len(found) == 31, "beyond its end the last value holds, so nothing more needs to be said"
    for index in range(10, 30):
        expected = 10 * (1 - math.cos(2 * math.pi * (index + 0.5 - 10) / 20)) / 2
        assert found[index] == pytest.approx(expected, abs=1e-4)
    assert found[10:30] == found[29:9:-1]
    assert 9.9 < max(found) < 10
    assert all(board.attenuation_db == () for name, board in truth.boards.items() if name != "board-2")


def test_walks_add_and_throttles_do_not() -> None:
    walks = ({"index": 0, "begins": 0.0, "ends": 1.0, "depth_db": 6.0},)
    one = resolved(walks=walks).boards["board-1"].attenuation_db
    two = resolved(walks=2 * walks).boards["board-1"].attenuation_db
    assert two == pytest.approx([2 * value for value in one], abs=2e-4)
    truth = resolved(
        rounds=10,
        throttles=(
            {"board": "board-3", "begins": 0.2, "ends": 0.6, "slowdown": 2.0},
            {"index": 2, "begins": 0.4, "ends": 0.8, "slowdown": 1.5},
        ),
    )
    assert truth.boards["board-3"].slowdown_by_round == (1, 1, 2, 2, 2, 2, 1.5, 1.5, 1)


@pytest.mark.parametrize(
    ("share", "rounds", "first"), [(0.3, 40, 12), (0.3, 10, 3), (0.35, 10, 4), (0.0, 7, 0), (1.0, 7, 7)]
)
def test_shares_become_rounds(share: float, rounds: int, first: int) -> None:
    truth = resolved(rounds, joins=({"index": 4, "at": share},), redraws=({"index": 0, "at": share},))
    assert truth.boards["board-5"].first_round == first
    assert truth.boards["board-1"].redraw_rounds == (first,)
    assert [index for index in range(rounds) if "board-5" in truth.present(index)] == [*range(first, rounds)]


def test_who_is_present_in_which_round() -> None:
    truth = resolved(
        20,
        joins=({"index": 4, "at": 0.25}, {"index": 0, "at": 0.5}),
        leaves=({"index": 1, "at": 0.5}, {"index": 4, "at": 0.75}),
    )
    assert truth.present(0) == ("board-2", "board-3", "board-4")
    assert truth.present(5) == ("board-2", "board-3", "board-4", "board-5")
    assert truth.present(10) == ("board-1", "board-3", "board-4", "board-5")
    assert truth.present(15) == truth.present(19) == ("board-1", "board-3", "board-4")
    everybody = resolve_scenario(None, load().lab, 20)
    assert all(everybody.present(index) == tuple(everybody.boards) for index in range(20))


_CHANGE = {"index": st.integers(0, 4)}
_SPAN = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: pair[0] < pair[1])


@settings(max_examples=150, deadline=None)
@given(
    walks=st.lists(st.tuples(st.integers(0, 4), _SPAN, st.floats(0.01, 15)), max_size=3),
    throttles=st.lists(st.tuples(st.integers(0, 4), _SPAN, st.floats(1, 3)), max_size=3),
    joins=st.dictionaries(st.integers(0, 4), st.floats(0, 1), max_size=4),
    rounds=st.integers(1, 300),
)
def test_whatever_passes_the_checks_stays_within_its_bounds(walks, throttles, joins, rounds) -> None:
    values = {
        "walks": [{"index": i, "begins": b, "ends": e, "depth_db": d} for i, (b, e), d in walks],
        "throttles": [{"index": i, "begins": b, "ends": e, "slowdown": d} for i, (b, e), d in throttles],
        "joins": [{"index": i, "at": at} for i, at in joins.items()],
    }
    config = load(flags={"rounds": rounds})
    lab = Lab.model_validate({**config.lab.model_dump(), "scenario": values})
    if checks.findings(config.experiment, lab):
        return
    truth = resolve_scenario(lab.scenario, lab, rounds)
    for board in truth.boards.values():
        assert all(0 <= value <= 15 for value in board.attenuation_db)
        assert all(1 <= value <= 3 for value in board.slowdown_by_round)
        assert len(board.attenuation_db) <= rounds
        assert len(board.slowdown_by_round) <= rounds
    assert all(truth.present(index) for index in range(rounds))
    for _, (begins, ends), slowdown in throttles:
        assert slowdown == 1 or any(
            max(b.slowdown_by_round, default=1) >= slowdown for b in truth.boards.values()
        )
        assert begins < ends


# --------------------------------------------------------------------------------- who gets to know
def test_the_air_is_told_of_channels_and_a_board_of_its_own_processor() -> None:
    config = load(flags={"scenario": "busy-day", "rounds": 100})
    experiment, lab = config.experiment, config.lab
    truth = resolve_scenario(lab.scenario, lab, 100).boards
    for link in air_setup(experiment, lab).parameters.links:
        board = next(name for name in (link.transmitter, link.receiver) if name != "server")
        assert link.attenuation_db == truth[board].attenuation_db
        assert link.redraw_rounds == truth[board].redraw_rounds
        assert (link.fading.doppler_hz, link.fading.round_correlation) == (0.0, 0.98)
    plain = load(flags={"rounds": 100}).lab
    for name in (*truth, "server"):
        setup = node_setup(experiment, lab, name, "run", "tcp://x", 0)
        without = node_setup(experiment, plain, name, "run", "tcp://x", 0)
        slowdown = truth[name].slowdown_by_round if name in truth else ()
        assert setup.compute.slowdown_by_round == slowdown
        assert setup.compute.slowdown == without.compute.slowdown
        # Of fades, and of what happens to others, a node is told nothing.
        assert {f for f in setup.__struct_fields__ if getattr(setup, f) != getattr(without, f)} <= {"compute"}
    assert truth["board-1"].slowdown_by_round


def test_a_lab_without_a_scenario_is_as_it_was() -> None:
    config = load()
    for link in air_setup(config.experiment, config.lab).parameters.links:
        assert (link.attenuation_db, link.redraw_rounds) == ((), ())
        assert (link.fading.doppler_hz, link.fading.round_correlation) == (0.2, None)


def test_hidden_truth_is_read_where_air_and_nodes_are_told_of_it_and_nowhere_else() -> None:
    """Neither estimates nor forecasts nor policies may look at what they are to find out."""
    hidden = {"attenuation_db", "slowdown_by_round", "redraw_rounds", "walks", "throttles", "redraws"}
    readers = set()
    for path in ROOMS.rglob("*.py"):
        names = {
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        }
        if names & hidden:
            readers.add(path.relative_to(ROOMS).as_posix())
    # The last makes tables of runs that are over.
    assert readers - {"frames.py"} == {"scenario.py", "specs.py", "config/checks.py"}
    users = {path for path in ROOMS.rglob("*.py") if "testbed.frames" in path.read_text()}
    loop = ("planner", "estimat", "forecast", "polic", "latency", "allocator", "rounds", "engine")
    assert not [path for path in users if path.relative_to(ROOMS).parts[0].startswith(loop)]
