"""The edge server in the rounds of a run: sounding, uplinks, forward, backward, downlinks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nodes.codec import CodecError, decode_tensors, encode_tensors
from nodes.context import NodeContext
from nodes.data_source import Material
from nodes.downlink import ClientDownlink, Outgoing, server_send
from nodes.errors import PeerLostError
from nodes.learning.aggregation import merge_stage_states, server_work
from nodes.learning.client import ClientTrainer
from nodes.learning.server import EvaluationResult, ServerStep, ServerTrainer, evaluate
from nodes.learning.stages import StageState
from nodes.messages import (
    AdaptationState,
    ClientGrant,
    DownlinkState,
    GradientNotice,
    LossReport,
    RoundGrant,
    UplinkIntent,
    UplinkPermit,
)
from nodes.roles import (
    RehearsalStep,
    RoundNotes,
    aggregation_ratio,
    client_settings,
    max_smashed_bytes,
    max_state_bytes,
    pack_states,
    reading_of,
    server_settings,
    states_manifest,
    tag_of,
    unpack_states,
)
from nodes.sounding import server_sounding
from nodes.streams import NO_SNR_DB, Incoming, McsHistory, server_receive, subchannel_array
from nodes.weights import WeightsError
from radio.adaptation import LinkAdaptation, TrackedSnr
from radio.estimation import SoundingEstimate
from radio.link import SelectiveRepeatReceiver, SelectiveRepeatSender
from radio.units import db_to_linear


@dataclass
class _Arrival:
    """Decoded uplink of one client."""

    client: str
    index: int
    tensors: dict[str, np.ndarray]
    complete_ns: int


class ServerRole:
    """The server-side submodel, the server's side of every link, and evaluation."""

    def __init__(self, context: NodeContext, material: Material) -> None:
        self.context = context
        self.material = material
        self.clients = context.setup.clients
        self.trainer: ServerTrainer | None = None
        self._uplinks = {name: self._adaptation() for name in self.clients}
        num = context.numerology.num_subchannels
        self._downlinks = {
            name: ClientDownlink(self._adaptation(), TrackedSnr.empty(num)) for name in self.clients
        }

    def _adaptation(self) -> LinkAdaptation:
        link = self.context.link
        return LinkAdaptation(link.target_bler, link.mcs_backoff_db)

    def configure(self, cut_layer: int) -> None:
        """Start over with the run's initial weights and this cut."""
        self.trainer = ServerTrainer(
            self.material.fresh_model(), cut_layer, server_settings(self.context.setup.learning)
        )

    def rehearsal(self, cut_layer: int) -> tuple[RehearsalStep, ...]:
        """The work of a round with all clients at a cut, on a scratch model."""
        learning, cut = self.context.setup.learning, cut_layer
        phi, reading = aggregation_ratio(learning), reading_of(learning)
        scratch = ServerTrainer(self.material.fresh_model(), cut, server_settings(learning))
        shape = self.material.profile.smashed_shape[cut]
        sizes = {index: self.material.batch_size(index) for index in range(len(self.clients))}
        smashed = {index: np.zeros((size, *shape), np.float32) for index, size in sizes.items()}
        labels = {index: np.zeros(size, np.int64) for index, size in sizes.items()}
        weights = {index: float(size) for index, size in sizes.items()}
        flops = server_work(self.material.profile, cut, list(sizes.values()), phi, reading)
        return (
            RehearsalStep(
                "server-forward", flops[0], lambda: scratch.forward(smashed, labels, weights, phi, reading)
            ),
            RehearsalStep("server-backward", flops[1], lambda: scratch.backward(learning.weighted)),
        )

    def _trainer(self) -> ServerTrainer:
        if self.trainer is None:
            raise RuntimeError("the server has not been configured with a cut layer")
        return self.trainer

    def states(self) -> dict[int, StageState]:
        """Parameters, buffers and optimiser state of the server-side submodel."""
        return self._trainer().stack.states()

    def initial_client_states(self) -> dict[int, StageState]:
        """Fresh client-side submodel at the present cut, for the start of the run."""
        return self._client_template(self._trainer().cut).stack.states()

    def _client_template(self, cut_layer: int) -> ClientTrainer:
        return ClientTrainer(
            self.material.fresh_model(), cut_layer, client_settings(self.context.setup.learning)
        )

    def install(self, data: bytes) -> None:
        """Replace the submodel's state by packed weights; ``WeightsError`` if they do not fit."""
        trainer = self._trainer()
        for index, state in unpack_states(data, states_manifest(self.states())).items():
            trainer.load_stage_state(index, state)

    def evaluate(self, split: str, client_weights: list[bytes]) -> tuple[EvaluationResult, int]:
        """Accuracy and loss of every composite, and the number of samples."""
        trainer = self._trainer()
        images, labels = self.material.evaluation_data(split)
        submodels: list[nn.ModuleList] = []
        for data in client_weights:
            template = self._client_template(trainer.cut)
            manifest = states_manifest(template.stack.states())
            for index, state in unpack_states(data, manifest).items():
                template.load_stage_state(index, state)
            submodels.append(template.stages)
        return evaluate(submodels, trainer.stages, images, labels), len(labels)

    # ------------------------------------------------------------------------------- rounds
    async def _sound(self, round_index: int, grant: RoundGrant, notes: RoundNotes) -> dict[str, Incoming]:
        """Sounding, permits to the clients that were heard, and what they heard of the server."""
        context = self.context
        names = tuple(client.client for client in grant.clients)
        estimates, _, end_ns = await server_sounding(
            context,
            grant.start_ns,
            names,
            tuple(client.sounding_psd_w_per_hz for client in grant.clients),
            grant.downlink_psd_w_per_hz,
        )
        await context.radio.stand_down()
        notes.reach(end_ns)
        permit_ns = end_ns + context.link.ack_delay_ns
        incoming: dict[str, Incoming] = {}
        for client in grant.clients:
            estimate = estimates[client.client]
            notes.links.append(context.measurement(client.client, estimate))
            if estimate.detected:
                self._uplinks[client.client].renew()
            mcs = self._first_mcs(client, estimate)
            await context.endpoint.send(
                client.client,
                UplinkPermit(tuple(int(value) for value in mcs), estimate.detected),
                round_index=round_index,
                at_ns=permit_ns,
            )
            if not client.subchannels:
                continue
            if not estimate.detected:
                notes.fail(f"the sounding of {client.client} was not heard")
                continue
            num = context.numerology.num_subchannels
            incoming[client.client] = Incoming(
                client=client.client,
                subchannels=client.subchannels,
                receiver=SelectiveRepeatReceiver(0, 0),
                adaptation=self._uplinks[client.client],
                history=McsHistory([(permit_ns, subchannel_array(num, client.subchannels, mcs))]),
                first_slot=0,
            )
        for name in names:
            await self._take_downlink_state(round_index, name, notes)
        return incoming

    async def _take_downlink_state(self, round_index: int, name: str, notes: RoundNotes) -> None:
        context = self.context
        try:
            state, _ = await context.endpoint.take(
                DownlinkState,
                name,
                round_index=round_index,
                timeout_s=context.wait_s,
                what="the downlink state after sounding",
            )
        except PeerLostError as exc:
            notes.fail(str(exc))
            return
        if state.detected:
            self._downlinks[name].adaptation.renew()
            heard = np.array(state.snr_db)
            linear = np.asarray(db_to_linear(heard))
            measured = np.where(heard == NO_SNR_DB, 0.0, linear)
            self._downlinks[name].tracked.restart(np.arange(len(measured)), measured)

    def _first_mcs(self, client: ClientGrant, estimate: SoundingEstimate) -> NDArray[np.int64]:
        """MCS of a client's subchannels from its sounding, at the PSD that it was granted."""
        context = self.context
        amplitude = context.amplitude(client.client, np.array(client.psd_w_per_hz))
        chosen = list(client.subchannels)
        snr = estimate.gain[chosen] * amplitude**2 / estimate.noise_power
        return self._uplinks[client.client].choose(snr, context.numerology.block_resource_elements)

    async def _collect(
        self,
        round_index: int,
        grant: RoundGrant,
        stream: str,
        max_bytes: int,
        notes: RoundNotes,
    ) -> list[Incoming]:
        """Sounding and the clients' uplink streams; those that arrived, in client order."""
        context = self.context
        incoming = await self._sound(round_index, grant, notes)
        for name, state in incoming.items():
            tag = tag_of(context.setup, round_index, context.run_attempt, stream, name)
            state.receiver = SelectiveRepeatReceiver(tag, max_bytes)
            try:
                intent, _ = await context.endpoint.take(
                    UplinkIntent,
                    name,
                    round_index=round_index,
                    timeout_s=context.wait_s,
                    accepts=lambda intent: intent.stream == stream,
                    what=f"word of its {stream}",
                )
                state.first_slot = intent.first_slot
            except PeerLostError as exc:
                state.failure = str(exc)
        await server_receive(context, round_index, stream, incoming, self.clients, grant.deadline_ns)
        arrived = []
        for name in self.clients:
            if name not in incoming:
                continue
            state = incoming[name]
            notes.receptions.append(state.report(stream, context.name))
            if state.complete_ns is None:
                notes.fail(state.failure)
            else:
                arrived.append(state)
                notes.reach(state.complete_ns)
        if not arrived:
            notes.fail(
                f"nothing arrived over the air: no {stream} of {len(grant.clients)} clients was received"
            )
        return arrived

    async def round(self, round_index: int, grant: RoundGrant) -> RoundNotes:
        """One round of training."""
        context, material, trainer = self.context, self.material, self._trainer()
        learning = context.setup.learning
        notes = RoundNotes(end_ns=grant.start_ns)
        limit = max_smashed_bytes(material.profile, trainer.cut, learning.batch_size)
        arrived = await self._collect(round_index, grant, "uplink", limit, notes)
        arrivals: list[_Arrival] = []
        for state in arrived:
            assert state.complete_ns is not None
            try:
                tensors = decode_tensors(state.receiver.payload(), limit)
            except CodecError as exc:
                notes.fail(f"smashed data of {state.client} arrived damaged: {exc}")
                await self._notice(round_index, state.client, words=f"smashed data damaged: {exc}")
                continue
            index = self.clients.index(state.client)
            arrivals.append(_Arrival(state.client, index, tensors, state.complete_ns))
        if not arrivals:
            return notes

        phi, reading = aggregation_ratio(learning), reading_of(learning)
        samples = {client.client: client.num_samples for client in grant.clients}
        weights = {arrival.index: float(samples[arrival.client]) for arrival in arrivals}
        forward_flops, backward_flops = server_work(
            material.profile,
            trainer.cut,
            [len(arrival.tensors["labels"]) for arrival in arrivals],
            phi,
            reading,
        )
        smashed = {arrival.index: arrival.tensors["smashed"] for arrival in arrivals}
        labels = {arrival.index: arrival.tensors["labels"].astype(np.int64) for arrival in arrivals}
        _, forward_end_ns = await context.timeline.compute(
            "server-forward",
            max(arrival.complete_ns for arrival in arrivals),
            forward_flops,
            lambda: trainer.forward(smashed, labels, weights, phi, reading),
        )
        step, end_ns = await context.timeline.compute(
            "server-backward",
            forward_end_ns,
            backward_flops,
            lambda: trainer.backward(learning.weighted),
        )
        notes.reach(end_ns)
        notes.losses = [LossReport(self.clients[index], loss) for index, loss in sorted(step.losses.items())]
        await self._send_gradients(round_index, grant, arrivals, step, end_ns, notes)
        notes.adaptation = self._adaptation_states(grant)
        return notes

    def _adaptation_states(self, grant: RoundGrant) -> list[AdaptationState]:
        """Where the outer loops of the granted links stand."""
        own = self.context.name
        states = []
        for client in grant.clients:
            if not client.subchannels:
                continue
            name = client.client
            states.append(AdaptationState(name, own, self._uplinks[name].offset_db))
            states.append(AdaptationState(own, name, self._downlinks[name].adaptation.offset_db))
        return states

    async def _notice(
        self,
        round_index: int,
        client: str,
        *,
        broadcast: bool = False,
        unicast: bool = False,
        weight: float = 0.0,
        words: str = "",
    ) -> None:
        await self.context.endpoint.send(
            client, GradientNotice(broadcast, unicast, weight, words), round_index=round_index
        )

    async def _send_gradients(
        self,
        round_index: int,
        grant: RoundGrant,
        arrivals: list[_Arrival],
        step: ServerStep,
        ready_ns: int,
        notes: RoundNotes,
    ) -> None:
        """Aggregated gradients to all at once, then each client's own on its subchannels."""
        context = self.context
        weights = dict(zip(step.plan.clients, step.plan.weights, strict=True))
        for arrival in arrivals:
            await self._notice(
                round_index,
                arrival.client,
                broadcast=step.broadcast is not None,
                unicast=len(step.own.get(arrival.index, ())) > 0,
                weight=weights[arrival.index],
            )
        left = {arrival.client for arrival in arrivals}
        if step.broadcast is not None:
            outgoing = self._outgoing(
                round_index,
                "broadcast",
                "",
                encode_tensors({"gradient": step.broadcast}),
                sorted(left),
                tuple(range(context.numerology.num_subchannels)),
            )
            ready_ns = await self._serve(round_index, [outgoing], grant, ready_ns, notes)
            left -= set(outgoing.failures)
        granted = {client.client: client.subchannels for client in grant.clients}
        unicasts = [
            self._outgoing(
                round_index,
                "unicast",
                arrival.client,
                encode_tensors({"gradient": step.own[arrival.index]}),
                [arrival.client],
                granted[arrival.client],
            )
            for arrival in arrivals
            if arrival.client in left and len(step.own.get(arrival.index, ())) > 0
        ]
        if unicasts:
            await self._serve(round_index, unicasts, grant, ready_ns, notes)

    def _outgoing(
        self,
        round_index: int,
        stream: str,
        addressee: str,
        payload: bytes,
        receivers: list[str],
        subchannels: tuple[int, ...],
    ) -> Outgoing:
        context = self.context
        tag = tag_of(context.setup, round_index, context.run_attempt, stream, addressee)
        return Outgoing(stream, SelectiveRepeatSender(payload, tag, receivers), subchannels)

    async def _serve(
        self,
        round_index: int,
        streams: list[Outgoing],
        grant: RoundGrant,
        ready_ns: int,
        notes: RoundNotes,
    ) -> int:
        context = self.context
        reports, end_ns = await server_send(
            context,
            round_index,
            streams,
            self._downlinks,
            ready_ns,
            grant.downlink_psd_w_per_hz,
            grant.deadline_ns,
        )
        await context.radio.stand_down()
        notes.transmissions.extend(reports)
        for outgoing in streams:
            for words in outgoing.failures.values():
                notes.fail(words)
        notes.reach(end_ns)
        return end_ns

    async def move_cut(self, round_index: int, grant: RoundGrant) -> RoundNotes:
        """Hand stages to the clients, or merge the copies that come from them."""
        context, trainer = self.context, self._trainer()
        notes = RoundNotes(end_ns=grant.start_ns)
        if grant.cut_layer > grant.previous_cut_layer:
            incoming = await self._sound(round_index, grant, notes)
            moved = {
                index: trainer.stage_state(index)
                for index in range(grant.previous_cut_layer, grant.cut_layer)
            }
            if incoming:
                outgoing = self._outgoing(
                    round_index,
                    "cut-move",
                    "",
                    pack_states(moved),
                    sorted(incoming),
                    tuple(range(context.numerology.num_subchannels)),
                )
                await self._serve(round_index, [outgoing], grant, notes.end_ns, notes)
            trainer.move_cut(grant.cut_layer, {})
            return notes
        limit = max_state_bytes(self.material.profile, grant.cut_layer, grant.previous_cut_layer)
        arrived = await self._collect(round_index, grant, "cut-move", limit, notes)
        template = self._client_template(grant.previous_cut_layer).stack
        lost = range(grant.cut_layer, grant.previous_cut_layer)
        manifest = states_manifest({index: template.stage_state(index) for index in lost})
        copies: list[dict[int, StageState]] = []
        weights: list[float] = []
        samples = {client.client: client.num_samples for client in grant.clients}
        for state in arrived:
            try:
                copies.append(unpack_states(state.receiver.payload(), manifest))
            except WeightsError as exc:
                notes.fail(f"the stages of {state.client} arrived damaged: {exc}")
                continue
            weights.append(float(samples[state.client]))
        if copies:
            merged = {index: merge_stage_states([copy[index] for copy in copies], weights) for index in lost}
            trainer.move_cut(grant.cut_layer, merged)
        return notes
