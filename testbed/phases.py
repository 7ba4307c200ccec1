"""What a round's time and airtime went into, from what the nodes reported of it.

The round's latency is laid out in tiles (:data:`ROUND_PHASES`) along one path through it, and they add
up to it to the nanosecond.  With t0 the decision, start = t0 + control latency, and permit = the end
of the sounding + ack_delay::

    sounding         start .. permit
    client-forward   .. the later of permit and the end of the uplink straggler's forward pass
    uplink           .. the completion of that client's uplink
    server-forward   .. the end of the server's forward pass
    server-backward  .. the end of its backward pass
    broadcast        .. the last client's completion of the broadcast
    unicast          .. the downlink straggler's completion of its unicast
    client-backward  .. the end of the downlink straggler's backward pass
    control          the two control latencies, and what is left until the last node is done

Where the definition leaves a choice:

- The *uplink straggler* is the client whose uplink was complete last, of those that the server had
  before its forward pass: slots end at the same instant for all, so several can be.  Of these it is
  the one that started last, whose own transmission explains the least; what it waited for is told by
  its forward pass.
- The *downlink straggler* is the client whose backward pass ended last; of several, the one that
  received last.  A client that ended early in the broadcast may be it: its backward pass then counts
  from the last client's completion on, since tiles do not overlap.
- Clients that did not get to the end are left out, as are boards that were merely sounded.  What the
  server waited for on their behalf lies in the tile in which it waited.
- A client that was lost after its uplink counts as the straggler of it with a forward pass that did
  not delay it, for nobody said more.
- An instant that lies before that of the tile before it ends its tile at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from nodes.messages import ReceptionReport, RoundReport, SpanRecord
from radio.units import ns_to_seconds
from testbed.latency.names import ROUND_PHASES, STREAMS

__all__ = ["ROUND_PHASES", "STREAMS", "measured_airtime", "measured_phases", "phases_ns"]


def _span(report: RoundReport | None, phase: str, resource: str = "processor") -> SpanRecord | None:
    """A node's last span of a phase."""
    spans = report.spans if report is not None else ()
    found = [span for span in spans if span.phase == phase and span.resource == resource]
    return max(found, key=lambda span: span.end_ns, default=None)


def _received(report: RoundReport, stream: str) -> list[ReceptionReport]:
    return [
        reception
        for reception in report.receptions
        if reception.stream == stream and reception.complete_ns is not None
    ]


def _completion_ns(report: RoundReport, stream: str, otherwise_ns: int) -> int:
    instants = [reception.complete_ns or 0 for reception in _received(report, stream)]
    return max(instants, default=otherwise_ns)


def phases_ns(
    reports: Mapping[str, RoundReport],
    plan_ns: int,
    start_ns: int,
    control_latency_ns: int,
    server: str,
    *,
    ack_delay_ns: int,
) -> dict[str, int] | None:
    """Return the tiles of a round [ns], which add up to its latency; see the module's docstring.

    Parameters
    ----------
    reports
        By node: of all that reported the round.
    plan_ns, start_ns
        Instants of the decision and of the grant [ns].

    Returns
    -------
    ``None`` when no client got to the end of the round.
    """
    own = reports.get(server)
    sounding = _span(own, "sounding-uplink", "receiver")
    forward, backward = _span(own, "server-forward"), _span(own, "server-backward")
    clients = {name: report for name, report in reports.items() if name != server}
    ends = {
        name: span.end_ns
        for name, report in clients.items()
        if (span := _span(report, "client-backward")) is not None
    }
    if own is None or sounding is None or forward is None or backward is None or not ends:
        return None

    permit_ns = sounding.end_ns + ack_delay_ns
    uplinks = []  # (complete, ready to send)
    for reception in _received(own, "uplink"):
        complete_ns = reception.complete_ns or 0
        if complete_ns <= forward.start_ns:
            span = _span(clients.get(reception.transmitter), "client-forward")
            uplinks.append((complete_ns, max(permit_ns, span.end_ns if span else permit_ns)))
    if not uplinks:
        return None
    uplink_ns, ready_ns = max(uplinks)

    broadcast_ns = max(_completion_ns(clients[name], "broadcast", backward.end_ns) for name in ends)
    downlinks = [
        (end_ns, max(broadcast_ns, _completion_ns(clients[name], "unicast", broadcast_ns)))
        for name, end_ns in ends.items()
    ]
    done_ns, unicast_ns = max(downlinks)

    marks_ns = (
        permit_ns,
        ready_ns,
        uplink_ns,
        forward.end_ns,
        backward.end_ns,
        broadcast_ns,
        unicast_ns,
        done_ns,
    )
    tiles = {}
    reached_ns = start_ns
    for name, mark_ns in zip(ROUND_PHASES[1:], marks_ns, strict=True):
        tiles[name] = max(0, mark_ns - reached_ns)
        reached_ns = max(reached_ns, mark_ns)
    end_ns = max(report.end_ns for report in reports.values()) + control_latency_ns
    return {"control": end_ns - plan_ns - sum(tiles.values()), **tiles}


def measured_airtime(reports: Mapping[str, RoundReport]) -> dict[str, float]:
    """Return what was radiated [s], summed over transmitters, by stream; a cut move's if there was one."""
    radiated_ns = dict.fromkeys(STREAMS, 0)
    for report in reports.values():
        for sent in report.transmissions:
            radiated_ns[sent.stream] = radiated_ns.get(sent.stream, 0) + sent.airtime_ns
        for span in report.spans:
            if span.resource == "transmitter" and span.phase in ("sounding-downlink", "sounding-uplink"):
                radiated_ns["sounding"] += span.end_ns - span.start_ns
    return {stream: ns_to_seconds(duration_ns) for stream, duration_ns in radiated_ns.items()}


def measured_phases(
    reports: Mapping[str, RoundReport],
    plan_ns: int,
    start_ns: int,
    control_latency_ns: int,
    server: str,
    *,
    ack_delay_ns: int,
) -> tuple[dict[str, float] | None, dict[str, float]]:
    """Return the tiles of a round [s], ``None`` when nobody completed it, and its airtimes [s].

    Parameters as of :func:`phases_ns`.
    """
    tiles = phases_ns(reports, plan_ns, start_ns, control_latency_ns, server, ack_delay_ns=ack_delay_ns)
    seconds = None if tiles is None else {name: ns_to_seconds(value) for name, value in tiles.items()}
    return seconds, measured_airtime(reports)
