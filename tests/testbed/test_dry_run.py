"""A plan without a run: what it says comes true, and nothing is run to say it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from testbed.cli import app
from testbed.dry_run import dry_run, record_bytes_per_round
from testbed.errors import NodeError, StorageError
from testbed.plan_command import render
from testbed.state import LinkBudgetError
from tests.testbed.experiments import run_in_memory, small

STILL = (
    "lab.boards.*.channel.fading={delay_spread_s: 0, num_taps: 1, rician_k_db: 40, doppler_hz: 0}",
    "allocator.name=closed-loop",
)


def test_what_a_dry_run_says_of_a_still_channel_comes_true(tmp_path: Path) -> None:
    config = small(*STILL, rounds=6, num_boards=3)
    dry = dry_run(config)
    _, run = run_in_memory(config, tmp_path / "run")
    measured_s = np.mean([event["latency_ns"] / 1e9 for event in run.of_kind("round")])
    assert dry.forecast.round_s.mean == pytest.approx(measured_s, rel=0.15)
    sent = {event["transmitter"]: event["payload_bytes"] for event in run.of_kind("transmission")}
    for name, count in dry.budget.uplink_bytes.items():
        assert sent[name] == count
    kinds = {event["stream"]: event["payload_bytes"] for event in run.of_kind("transmission")}
    assert kinds["broadcast"] == dry.budget.broadcast_bytes
    assert kinds["unicast"] in dry.budget.unicast_bytes.values()
    assert dry.run_s.mean == pytest.approx(6 * dry.forecast.round_s.mean)


def test_a_plan_from_measurements_is_made_of_what_that_run_measured(tmp_path: Path) -> None:
    config = small("allocator.name=closed-loop", rounds=5, num_boards=3)
    _, run = run_in_memory(config, tmp_path / "run")
    dry = dry_run(config, tmp_path / "run")
    last = run.of_kind("prediction")[-1]["round_s"]["mean"]
    assert dry.forecast.round_s.mean == pytest.approx(last, rel=0.2)
    assert str(tmp_path / "run") in dry.source


def test_the_record_is_about_as_large_as_was_said(tmp_path: Path) -> None:
    for boards in (2, 4):
        config = small("allocator.name=closed-loop", rounds=4, num_boards=boards)
        _, run = run_in_memory(config, tmp_path / f"run-{boards}")
        lines = (tmp_path / f"run-{boards}" / "events.jsonl").read_bytes().splitlines()
        inside = sum(
            len(line) + 1 for line, event in zip(lines, run.events, strict=True) if event["round"] >= 0
        )
        assert inside / 4 == pytest.approx(record_bytes_per_round(boards, 6), rel=0.35)


def test_checkpoints_are_as_large_as_was_said(tmp_path: Path) -> None:
    config = small(rounds=2)
    dry = dry_run(config)
    run_in_memory(config, tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints").rglob("*.safetensors")
    assert sum(path.stat().st_size for path in files) == pytest.approx(dry.budget.checkpoint_bytes, rel=0.05)


def test_what_cannot_be_known_is_an_error_in_words(tmp_path: Path) -> None:
    config = small(rounds=1)
    boards = tuple(board.model_copy(update={"channel": None}) for board in config.lab.boards)
    unknown = dataclasses.replace(config, lab=config.lab.model_copy(update={"boards": boards}))
    with pytest.raises(NodeError, match=r"board-1 has no channel in lab\.yaml.*--from RUN"):
        dry_run(unknown)
    with pytest.raises(StorageError, match="holds no run"):
        dry_run(config, tmp_path / "nothing")


@pytest.mark.parametrize("policy", ["closed-loop", "round-robin"])
def test_the_page_names_every_client_phase_and_need(policy: str) -> None:
    config = small(f"allocator.name={policy}", num_boards=3)
    page = render(dry_run(config))
    for word in (
        "board-1",
        "board-3",
        "client-forward",
        "unicast",
        "broadcast to all",
        "disk: about",
        policy,
    ):
        assert word in page


def test_the_command_prints_one_json_object_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plan", "--preset", "edge", "--model", "paper", "--json"])
    assert result.exit_code == 0, result.output
    said = msgspec.json.decode(result.stdout)
    assert said["format"] == "dry-run/1"
    assert said["model"] == "paper"
    assert said["phases"]["sounding"]["mean"] == 0
    assert len(said["assignment"]) == 20
    assert list(tmp_path.iterdir()) == []


def test_links_that_no_plan_can_carry_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(LinkBudgetError, match=r"no plan for board-1, board-2 .*path loss"):
        dry_run(small("lab.boards.*.channel.path_loss_db=170", rounds=1))
