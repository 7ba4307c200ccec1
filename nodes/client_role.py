"""A client in the rounds of a run: forward, uplink, downlink, backward."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np

from nodes.codec import CodecError, decode_tensors, encode_tensors
from nodes.context import NodeContext
from nodes.data_source import Material
from nodes.downlink import client_receive
from nodes.learning.aggregation import client_work
from nodes.learning.client import ClientTrainer, assemble_gradient
from nodes.learning.stages import StageState
from nodes.messages import (
    ClientGrant,
    DownlinkState,
    GradientNotice,
    RoundGrant,
    UplinkPermit,
)
from nodes.roles import (
    RehearsalStep,
    RoundNotes,
    client_settings,
    label_array,
    max_smashed_bytes,
    max_state_bytes,
    pack_states,
    states_manifest,
    tag_of,
    unpack_states,
)
from nodes.sounding import client_sounding
from nodes.streams import NO_SNR_DB, client_send
from nodes.weights import WeightsError
from radio.units import linear_to_db


class ClientRole:
    """One board's client-side submodel and its way through a round."""

    def __init__(self, context: NodeContext, material: Material) -> None:
        self.context = context
        self.material = material
        self.index = context.setup.clients.index(context.name)
        self.num_samples = material.partition.sizes[self.index]
        self.trainer: ClientTrainer | None = None

    def configure(self, cut_layer: int) -> None:
        """Start over with the run's initial weights and this cut."""
        self.trainer = ClientTrainer(
            self.material.fresh_model(), cut_layer, client_settings(self.context.setup.learning)
        )

    def rehearsal(self, cut_layer: int) -> tuple[RehearsalStep, ...]:
        """The work of a round at a cut, on a scratch model."""
        settings = client_settings(self.context.setup.learning)
        scratch = ClientTrainer(self.material.fresh_model(), cut_layer, settings)
        images, _ = self.material.mini_batch(self.index, 0)
        flops = client_work(self.material.profile, cut_layer, len(images))
        gradient = np.zeros((len(images), *self.material.profile.smashed_shape[cut_layer]), np.float32)
        return (
            RehearsalStep("client-forward", flops[0], lambda: scratch.forward(images)),
            RehearsalStep("client-backward", flops[1], lambda: scratch.backward(gradient)),
        )

    def _trainer(self) -> ClientTrainer:
        if self.trainer is None:
            raise RuntimeError(f"{self.context.name} has not been configured with a cut layer")
        return self.trainer

    def states(self) -> dict[int, StageState]:
        """Parameters, buffers and optimiser state of the client-side submodel."""
        return self._trainer().stack.states()

    def install(self, data: bytes) -> None:
        """Replace the submodel's state by packed weights; ``WeightsError`` if they do not fit."""
        trainer = self._trainer()
        for index, state in unpack_states(data, states_manifest(self.states())).items():
            trainer.load_stage_state(index, state)

    async def _sound(
        self, round_index: int, grant: RoundGrant, own: ClientGrant, notes: RoundNotes
    ) -> tuple[int, tuple[int, ...]] | None:
        """Sounding and what follows from it; the permit to send, or ``None`` if the server heard nothing."""
        context = self.context
        clients = tuple(client.client for client in grant.clients)
        estimate, _, end_ns = await client_sounding(
            context, grant.start_ns, clients, own.sounding_psd_w_per_hz, grant.downlink_psd_w_per_hz
        )
        notes.reach(end_ns)
        notes.links.append(context.measurement(context.setup.server, estimate))
        snr_db = np.asarray(linear_to_db(np.maximum(estimate.snr, 1e-9)))
        await context.endpoint.send(
            context.setup.server,
            DownlinkState(
                tuple(round(float(value), 2) if estimate.detected else NO_SNR_DB for value in snr_db),
                estimate.detected,
            ),
            round_index=round_index,
            at_ns=end_ns + context.link.ack_delay_ns,
        )
        permit, envelope = await context.endpoint.take(
            UplinkPermit,
            context.setup.server,
            round_index=round_index,
            timeout_s=context.wait_s,
            what="the permit to send after sounding",
        )
        await context.radio.stand_down()
        if not permit.detected:
            notes.fail(f"the server did not hear the sounding of {context.name}")
            return None
        return envelope.takes_effect_ns, permit.mcs_index

    async def round(self, round_index: int, grant: RoundGrant) -> RoundNotes:
        """One round of training."""
        context, material, trainer = self.context, self.material, self._trainer()
        own = next(client for client in grant.clients if client.client == context.name)
        notes = RoundNotes(end_ns=grant.start_ns)
        if not own.subchannels:
            # Sounded so that the loop learns when it can be heard; to be idle is no failure.
            await self._sound(round_index, grant, own, notes)
            return RoundNotes(end_ns=notes.end_ns, links=notes.links)
        images, labels = material.mini_batch(self.index, round_index)
        forward_flops, backward_flops = client_work(material.profile, trainer.cut, len(images))
        forward = asyncio.create_task(
            context.timeline.compute(
                "client-forward", grant.start_ns, forward_flops, lambda: trainer.forward(images)
            ),
            name="client forward",
        )
        try:
            permit = await self._sound(round_index, grant, own, notes)
            smashed, forward_end_ns = await forward
        except BaseException:
            forward.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await forward
            trainer.discard()
            raise
        notes.reach(forward_end_ns)
        if permit is None:
            trainer.discard()
            return notes
        payload = encode_tensors(
            {"smashed": smashed, "labels": label_array(labels, material.dataset.num_classes)}
        )
        uplink = await client_send(
            context,
            round_index,
            "uplink",
            payload,
            forward_end_ns,
            own.subchannels,
            own.psd_w_per_hz,
            permit,
            tag_of(context.setup, round_index, context.run_attempt, "uplink", context.name),
        )
        notes.transmissions.append(uplink.report)
        notes.reach(uplink.end_ns)
        if not uplink.complete:
            trainer.discard()
            notes.fail(f"the uplink of {context.name} was given up")
            return notes
        gradient, ready_ns = await self._receive_gradient(round_index, len(images), notes)
        if gradient is None:
            trainer.discard()
            return notes
        _, end_ns = await context.timeline.compute(
            "client-backward", ready_ns, backward_flops, lambda: trainer.backward(gradient)
        )
        notes.reach(end_ns)
        return notes

    async def _receive_gradient(
        self, round_index: int, batch_size: int, notes: RoundNotes
    ) -> tuple[np.ndarray | None, int]:
        """Both parts of the smashed-data gradient, and when the later one was there."""
        context, learning = self.context, self.context.setup.learning
        notice, _ = await context.endpoint.take(
            GradientNotice,
            context.setup.server,
            round_index=round_index,
            timeout_s=context.wait_s,
            what="word of the gradients to come",
        )
        if notice.words:
            notes.fail(notice.words)
            return None, notes.end_ns
        streams = [("broadcast", "")] if notice.broadcast else []
        if notice.unicast:
            streams.append(("unicast", context.name))
        parts: dict[str, dict[str, np.ndarray]] = {}
        ready_ns = 0
        limit = max_smashed_bytes(
            self.material.profile, self._trainer().cut, max(batch_size, learning.batch_size)
        )
        for stream, addressee in streams:
            tag = tag_of(context.setup, round_index, context.run_attempt, stream, addressee)
            outcome = await client_receive(context, round_index, stream, tag, limit)
            notes.receptions.append(outcome.report(stream, context.setup.server, context.name))
            notes.reach(outcome.end_ns)
            if outcome.complete_ns is None:
                notes.fail(outcome.failure)
                return None, outcome.end_ns
            ready_ns = max(ready_ns, outcome.complete_ns)
            try:
                parts[stream] = decode_tensors(outcome.receiver.payload(), limit)
            except CodecError as exc:
                notes.fail(f"the {stream} gradient reached {context.name} damaged: {exc}")
                return None, outcome.end_ns
        broadcast = parts.get("broadcast", {}).get("gradient")
        own = parts.get("unicast", {}).get("gradient")
        scale = notice.weight if learning.weighted else 1.0
        return assemble_gradient(broadcast, own, batch_size, scale), ready_ns

    async def move_cut(self, round_index: int, grant: RoundGrant) -> RoundNotes:
        """Take stages from the server, or give the own copies of some to it, over the air."""
        context, trainer = self.context, self._trainer()
        own = next(client for client in grant.clients if client.client == context.name)
        notes = RoundNotes(end_ns=grant.start_ns)
        permit = await self._sound(round_index, grant, own, notes)
        if grant.cut_layer > grant.previous_cut_layer:
            if permit is None:
                return notes
            limit = max_state_bytes(self.material.profile, grant.previous_cut_layer, grant.cut_layer)
            tag = tag_of(context.setup, round_index, context.run_attempt, "cut-move", "")
            outcome = await client_receive(context, round_index, "cut-move", tag, limit)
            notes.receptions.append(outcome.report("cut-move", context.setup.server, context.name))
            notes.reach(outcome.end_ns)
            if outcome.complete_ns is None:
                notes.fail(outcome.failure)
                return notes
            reference = ClientTrainer(
                self.material.fresh_model(), grant.cut_layer, client_settings(context.setup.learning)
            ).stack.states()
            gained = {index: reference[index] for index in range(grant.previous_cut_layer, grant.cut_layer)}
            try:
                states = unpack_states(outcome.receiver.payload(), states_manifest(gained))
            except WeightsError as exc:
                notes.fail(f"the moved stages reached {context.name} damaged: {exc}")
                return notes
            trainer.move_cut(grant.cut_layer, states)
            return notes
        lost = {
            index: trainer.stage_state(index) for index in range(grant.cut_layer, grant.previous_cut_layer)
        }
        if permit is not None:
            uplink = await client_send(
                context,
                round_index,
                "cut-move",
                pack_states(lost),
                grant.start_ns,
                own.subchannels,
                own.psd_w_per_hz,
                permit,
                tag_of(context.setup, round_index, context.run_attempt, "cut-move", context.name),
            )
            notes.transmissions.append(uplink.report)
            notes.reach(uplink.end_ns)
            if not uplink.complete:
                notes.fail(f"{context.name} could not hand its stages over")
        trainer.move_cut(grant.cut_layer, {})
        return notes
