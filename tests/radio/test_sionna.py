"""The code, the checks and the constellations against Sionna, an implementation of the standard by others.

Sionna is no dependency.  It runs on PyTorch; with the environment's own PyTorch in place these tests
run after ``pip install sionna-no-rt`` (2.x), and are skipped otherwise.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from radio.coding.base_graph import BaseGraph, lifted_code, select_lifting_size
from radio.coding.crc import Crc, crc_bits
from radio.coding.reference import encode_word
from radio.coding.scrambling import gold_sequence
from radio.coding.transport_block import (
    LLR_MAX,
    LLR_SCALE,
    SCRAMBLING_STATE,
    TransportBlockCode,
    decode,
    encode,
    transport_block_code,
)
from radio.mcs import SCHEMES, mcs_table
from radio.modulation import Modulation, constellation, demodulate_llr_reference, modulate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    sionna_phy = pytest.importorskip(
        "sionna.phy", reason="Sionna is not installed; pip install sionna-no-rt", exc_type=ImportError
    )
    torch = pytest.importorskip("torch")
    from sionna.phy.fec.crc import CRCEncoder
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    from sionna.phy.mapping import Constellation, Demapper
    from sionna.phy.nr.utils import generate_prng_seq

pytestmark = [pytest.mark.optional, pytest.mark.filterwarnings("ignore")]

CLASSES = tuple(int(length) for length in mcs_table().block_resource_elements)
SQUARE = [modulation for modulation in Modulation if modulation is not Modulation.BPSK]


def _sionna_encoder(num_info_bits: int, num_coded_bits: int, graph: BaseGraph, order: int | None) -> Any:
    return LDPC5GEncoder(
        num_info_bits, num_coded_bits, num_bits_per_symbol=order, bg=graph.name.lower(), device="cpu"
    )


def _sionna_bits(module: Any, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return module(torch.tensor(bits, dtype=torch.float32)).numpy().astype(np.uint8)


def _code_blocks(code: TransportBlockCode, payload: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Bits that enter the LDPC encoder, ``[num_blocks, num_code_block_bits]`` per code block.

    The checks are Sionna's; the scrambling before them is this project's own.
    """
    block = _sionna_bits(CRCEncoder("CRC24A", device="cpu"), np.unpackbits(payload, axis=1))
    block ^= gold_sequence(SCRAMBLING_STATE, block.shape[1])
    parts = np.split(block, code.num_code_blocks, axis=1)
    if code.num_code_blocks == 1:
        return parts
    return [_sionna_bits(CRCEncoder("CRC24B", device="cpu"), part) for part in parts]


def _coded_by_sionna(code: TransportBlockCode, payload: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sent = [
        _sionna_bits(_sionna_encoder(bits.shape[1], num_bits, code.base_graph, code.bits_per_symbol), bits)
        for bits, num_bits in zip(_code_blocks(code, payload), code.code_block_coded_bits, strict=True)
    ]
    return np.concatenate(sent, axis=1)


def _payload(code: TransportBlockCode, num_blocks: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_blocks, code.num_info_bytes), dtype=np.uint8)


@pytest.mark.parametrize("length", CLASSES)
@pytest.mark.parametrize("mcs", SCHEMES, ids=[mcs.name.replace(" ", "-") for mcs in SCHEMES])
def test_coded_bits_are_those_of_sionna(mcs: Any, length: int) -> None:
    """Segmentation, graph, lifting, parity, rate matching and interleaver of every MCS and class."""
    code = transport_block_code(length * int(mcs.modulation), int(mcs.modulation), mcs.code_rate)
    payload = _payload(code, 3, mcs.index)
    np.testing.assert_array_equal(encode(code, payload), _coded_by_sionna(code, payload))


@pytest.mark.parametrize(
    ("graph", "num_info_bits", "rate"),
    [
        (BaseGraph.BG1, 320, 0.34),
        (BaseGraph.BG1, 2000, 0.5),
        (BaseGraph.BG1, 8448, 0.9),
        (BaseGraph.BG2, 24, 0.25),
        (BaseGraph.BG2, 192, 0.3),
        (BaseGraph.BG2, 568, 0.2),
        (BaseGraph.BG2, 648, 0.5),
        (BaseGraph.BG2, 3840, 0.2),
    ],
)
def test_whole_code_words_are_those_of_sionna(graph: BaseGraph, num_info_bits: int, rate: float) -> None:
    """Both graphs over their range of sizes, before anything is left out or interleaved."""
    size = select_lifting_size(graph, num_info_bits, num_info_bits)
    lifted = lifted_code(graph, size, graph.num_layers, -(-num_info_bits // size))
    bits = np.random.default_rng(num_info_bits).integers(0, 2, num_info_bits, dtype=np.uint8)
    word = encode_word(lifted, bits)
    sent = np.concatenate([word[2 * size : num_info_bits], word[graph.num_systematic_columns * size :]])
    num_coded_bits = int(num_info_bits / rate)
    encoder = _sionna_encoder(num_info_bits, num_coded_bits, graph, None)
    assert encoder.z == size
    np.testing.assert_array_equal(_sionna_bits(encoder, bits[None])[0], sent[:num_coded_bits])


@pytest.mark.parametrize(("mcs_index", "length"), [(2, 520), (6, 1040), (14, 1040), (20, 2080), (30, 1040)])
def test_words_coded_by_sionna_are_decoded_from_noise(mcs_index: int, length: int) -> None:
    mcs = SCHEMES[mcs_index]
    code = transport_block_code(length * int(mcs.modulation), int(mcs.modulation), mcs.code_rate)
    payload = _payload(code, 8, 5)
    symbols = modulate(mcs.modulation, _coded_by_sionna(code, payload))
    row = mcs_table().block_resource_elements.tolist().index(length)
    variance = 10 ** (-(mcs_table().threshold_1_percent_db[mcs_index, row] + 1.5) / 10)
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((2, *symbols.shape)) * np.sqrt(variance / 2)
    llr = demodulate_llr_reference(
        mcs.modulation, symbols + noise[0] + 1j * noise[1], np.full(symbols.shape, variance)
    )
    found = decode(code, np.clip(np.rint(llr), -LLR_MAX, LLR_MAX).astype(np.int8))
    assert found.ok.all()
    np.testing.assert_array_equal(found.payload, payload)


@pytest.mark.parametrize(("num_coded_bits", "rate"), [(2080, 1 / 3), (2080, 1 / 2), (4160, 5 / 6)])
def test_decoder_is_within_a_decibel_of_sionnas_sum_product(num_coded_bits: int, rate: float) -> None:
    """Eight iterations of int8 min-sum against forty of the exact rule, 1 dB lower, same words.

    Nearly the most that the code can give: what remains is paid for min-sum and for eight iterations.
    """
    code = transport_block_code(num_coded_bits, 2, rate)
    payload = _payload(code, 120, 7)
    (bits,) = _code_blocks(code, payload)
    sent = encode(code, payload)
    start_db = {1 / 3: -3.3, 1 / 2: -1.2, 5 / 6: 2.6}[rate]
    errors = {}
    for name, snr_db in (("ours", start_db), ("sionna", start_db - 1.0)):
        variance = 10 ** (-snr_db / 10) / 2
        noise = np.random.default_rng(8).standard_normal(sent.shape) * np.sqrt(variance)
        llr = 2 * (1.0 - 2.0 * sent + noise) / variance
        if name == "ours":
            steps = np.clip(np.rint(llr * LLR_SCALE), -LLR_MAX, LLR_MAX).astype(np.int8)
            errors[name] = 1 - decode(code, steps).ok.mean()
        else:
            encoder = _sionna_encoder(bits.shape[1], num_coded_bits, code.base_graph, 2)
            decoder = LDPC5GDecoder(encoder, cn_update="boxplus", num_iter=40, device="cpu")
            found = decoder(torch.tensor(-llr, dtype=torch.float32)).numpy()  # ln P(1) / P(0) there
            errors[name] = (found != bits).any(axis=1).mean()
    assert 0.0 < errors["ours"] < 0.5
    assert errors["ours"] < errors["sionna"]


@pytest.mark.parametrize("kind", list(Crc))
def test_checks_are_those_of_sionna(kind: Crc) -> None:
    bits = np.random.default_rng(9).integers(0, 2, (20, 1003), dtype=np.uint8)
    theirs = _sionna_bits(CRCEncoder(kind.name, device="cpu"), bits)[:, bits.shape[1] :]
    weights = 1 << np.arange(kind.num_bits - 1, -1, -1)
    np.testing.assert_array_equal(crc_bits(kind, bits), theirs.astype(np.int64) @ weights)


@pytest.mark.parametrize("state", [1, 0x12345, SCRAMBLING_STATE])
def test_gold_sequence_is_that_of_sionna(state: int) -> None:
    np.testing.assert_array_equal(gold_sequence(state, 5000), np.asarray(generate_prng_seq(5000, state)))


@pytest.mark.parametrize("modulation", SQUARE)
def test_constellation_and_labels_are_those_of_sionna(modulation: Modulation) -> None:
    theirs = Constellation("qam", int(modulation), device="cpu")().numpy()
    np.testing.assert_allclose(constellation(modulation), theirs, atol=2e-7)


def test_bpsk_is_sionnas_on_the_diagonal() -> None:
    """TS 38.211 puts BPSK on the diagonal, Sionna on the real axis."""
    theirs = Constellation("pam", 1, device="cpu")().numpy()
    np.testing.assert_allclose(constellation(Modulation.BPSK), theirs * np.exp(0.25j * np.pi), atol=2e-7)


@pytest.mark.parametrize("modulation", SQUARE)
def test_soft_bits_are_those_of_sionna(modulation: Modulation) -> None:
    rng = np.random.default_rng(10)
    received = (rng.standard_normal((1, 2000)) + 1j * rng.standard_normal((1, 2000))).astype(np.complex64)
    variance = rng.uniform(0.01, 1.0, (1, 2000)).astype(np.float32)
    demapper = Demapper("maxlog", "qam", int(modulation), device="cpu")
    theirs = -demapper(torch.tensor(received), torch.tensor(variance)).numpy() * LLR_SCALE
    ours = demodulate_llr_reference(modulation, received, variance)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-3)
