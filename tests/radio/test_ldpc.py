"""The transport block code: facts of TS 38.212, zero syndromes, round trips, kernels = NumPy."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.coding.base_graph import (
    LIFTING_SIZES,
    BaseGraph,
    base_graph_entries,
    lifted_code,
    select_base_graph,
    select_lifting_size,
)
from radio.coding.reference import (
    decode_float,
    decode_reference,
    encode_reference,
    encode_word,
    parity_check_matrix,
    syndrome,
)
from radio.coding.scrambling import gold_sequence
from radio.coding.transport_block import (
    LLR_MAX,
    LLR_SCALE,
    TransportBlockCode,
    decode,
    encode,
    transport_block_code,
)

RATES = (1 / 5, 1 / 4, 1 / 3, 2 / 5, 1 / 2, 0.6, 2 / 3, 3 / 4, 5 / 6, 8 / 9)


def _payload(code: TransportBlockCode, num_blocks: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_blocks, code.num_info_bytes), dtype=np.uint8)


def _noisy_llr(bits: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """LLRs of antipodal signalling with Es/N0 per real symbol, in natural units."""
    noise_variance = 10 ** (-snr_db / 10) / 2
    received = 1.0 - 2.0 * bits
    received += np.random.default_rng(seed).standard_normal(bits.shape) * np.sqrt(noise_variance)
    return 2 * received / noise_variance


def _quantised(llr: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(llr * LLR_SCALE), -LLR_MAX, LLR_MAX).astype(np.int8)


def test_base_graphs_have_the_standard_sizes() -> None:
    first, second = (base_graph_entries(graph) for graph in BaseGraph)
    assert (len(first), len(second)) == (316, 197)
    assert (first[:, 0].max() + 1, first[:, 1].max() + 1) == (46, 68)
    assert (second[:, 0].max() + 1, second[:, 1].max() + 1) == (42, 52)
    assert len(LIFTING_SIZES) == 51
    assert (LIFTING_SIZES[0], LIFTING_SIZES[-1]) == (2, 384)


@pytest.mark.parametrize(
    ("num_payload_bits", "code_rate", "expected"),
    [
        (292, 0.9, BaseGraph.BG2),
        (293, 0.9, BaseGraph.BG1),
        (3824, 0.67, BaseGraph.BG2),
        (3824, 0.68, BaseGraph.BG1),
        (3825, 0.5, BaseGraph.BG1),
        (20000, 0.25, BaseGraph.BG2),
        (20000, 0.26, BaseGraph.BG1),
    ],
)
def test_base_graph_selection(num_payload_bits: int, code_rate: float, expected: BaseGraph) -> None:
    assert select_base_graph(num_payload_bits, code_rate) is expected


@pytest.mark.parametrize(
    ("graph", "num_bits", "expected"),
    [
        (BaseGraph.BG1, 8448, 384),
        (BaseGraph.BG1, 22 * 208 + 1, 224),
        (BaseGraph.BG2, 3840, 384),
        (BaseGraph.BG2, 641, 72),  # ten columns: 64 * 10 < 641
        (BaseGraph.BG2, 640, 72),  # nine columns
        (BaseGraph.BG2, 576, 64),
        (BaseGraph.BG2, 560, 72),  # eight columns: 64 * 8 < 560
        (BaseGraph.BG2, 192, 32),  # six columns
        (BaseGraph.BG2, 193, 26),
    ],
)
def test_lifting_size_selection(graph: BaseGraph, num_bits: int, expected: int) -> None:
    assert select_lifting_size(graph, num_bits, num_bits) == expected


def test_gold_sequence_is_the_bitwise_recursion() -> None:
    initial, length = 0x12345, 200
    first = [1] + [0] * 30
    second = [(initial >> bit) & 1 for bit in range(31)]
    for n in range(1600 + length):
        first.append(first[n + 3] ^ first[n])
        second.append(second[n + 3] ^ second[n + 2] ^ second[n + 1] ^ second[n])
    expected = [first[n + 1600] ^ second[n + 1600] for n in range(length)]
    assert gold_sequence(initial, length).tolist() == expected


@pytest.mark.parametrize("graph", list(BaseGraph))
def test_every_code_word_of_every_lifting_size_has_zero_syndrome(graph: BaseGraph) -> None:
    rng = np.random.default_rng(3)
    for size in LIFTING_SIZES:
        code = lifted_code(graph, size, graph.num_layers, graph.num_systematic_columns)
        bits = rng.integers(0, 2, graph.num_systematic_columns * size, dtype=np.uint8)
        assert not syndrome(code, encode_word(code, bits)).any(), f"{graph.name}, Z = {size}"


def test_syndrome_is_that_of_the_parity_check_matrix() -> None:
    code = lifted_code(BaseGraph.BG2, 13, 20, 10)
    word = np.random.default_rng(1).integers(0, 2, 30 * 13, dtype=np.uint8)
    expected = parity_check_matrix(code).astype(int) @ word % 2
    np.testing.assert_array_equal(syndrome(code, word).reshape(-1), expected)


def test_encoder_kernel_over_all_code_shapes_that_block_sizes_need() -> None:
    """One block per (graph, Z, rows): equal to NumPy's, whose whole word has zero syndrome."""
    seen = set()
    rng = np.random.default_rng(4)
    for num_coded_bits in np.geomspace(260, 20800, 40).astype(int) // 2 * 2:
        for code_rate in RATES:
            code = transport_block_code(int(num_coded_bits), 2, code_rate)
            key = (code.base_graph, code.lifting_size)
            if key in seen or code.num_code_blocks > 1:
                continue
            seen.add(key)
            payload = _payload(code, 1, 7)
            np.testing.assert_array_equal(encode(code, payload), encode_reference(code, payload))
            bits = rng.integers(0, 2, code.num_code_block_bits, dtype=np.uint8)
            assert not syndrome(code.lifted, encode_word(code.lifted, bits)).any()
    assert len(seen) > 50


CASES = [
    (260, 1, 1 / 4),
    (520, 1, 1 / 4),
    (1040, 2, 1 / 5),
    (2080, 4, 1 / 2),
    (1560, 6, 2 / 3),
    (4160, 8, 5 / 6),
    (5200, 10, 8 / 9),
    (9360, 6, 3 / 4),
    (20800, 10, 8 / 9),
    (20800, 2, 1 / 5),
]


@pytest.mark.parametrize(("num_coded_bits", "bits_per_symbol", "code_rate"), CASES)
def test_encoder_kernel_is_the_numpy_encoder(
    num_coded_bits: int, bits_per_symbol: int, code_rate: float
) -> None:
    code = transport_block_code(num_coded_bits, bits_per_symbol, code_rate)
    payload = _payload(code, 3, 1)
    np.testing.assert_array_equal(encode(code, payload), encode_reference(code, payload))


@pytest.mark.parametrize(("num_coded_bits", "bits_per_symbol", "code_rate"), CASES)
def test_decoder_kernel_is_the_numpy_decoder(
    num_coded_bits: int, bits_per_symbol: int, code_rate: float
) -> None:
    """Same payloads, verdicts and iteration counts: noise near the threshold, garbage, extremes."""
    code = transport_block_code(num_coded_bits, bits_per_symbol, code_rate)
    bits = encode(code, _payload(code, 4, 2))
    # Near the waterfall, so that some blocks need many iterations and some fail.
    snr_db = 10 * np.log10(2 ** (2 * code_rate) - 1) - 3.01 + 2.2
    llr = _quantised(_noisy_llr(bits, snr_db, 3))
    garbage = np.random.default_rng(4).integers(-128, 128, (1, num_coded_bits)).astype(np.int8)
    llr = np.concatenate((llr, np.zeros((1, num_coded_bits), np.int8), garbage))
    for max_iterations in (1, 4):
        found = decode(code, llr, max_iterations)
        expected = decode_reference(code, llr, max_iterations)
        for name in found._fields:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert not found.ok[-2:].any()


@settings(deadline=None, max_examples=60)
@given(
    num_symbols=st.integers(60, 2500),
    bits_per_symbol=st.sampled_from([1, 2, 4, 6, 8, 10]),
    code_rate=st.sampled_from(RATES),
    num_blocks=st.integers(1, 3),
    amplitude=st.integers(1, LLR_MAX),
    seed=st.integers(0, 1000),
)
def test_round_trip_without_noise(
    num_symbols: int, bits_per_symbol: int, code_rate: float, num_blocks: int, amplitude: int, seed: int
) -> None:
    num_coded_bits = num_symbols * bits_per_symbol
    if num_coded_bits * code_rate < 32:
        return
    code = transport_block_code(num_coded_bits, bits_per_symbol, code_rate)
    assert (code.num_info_bytes + 3) * 8 <= num_coded_bits * code_rate + 1e-6
    assert sum(code.code_block_coded_bits) == num_coded_bits
    payload = _payload(code, num_blocks, seed)
    bits = encode(code, payload)
    assert bits.shape == (num_blocks, num_coded_bits)
    assert bits.max() <= 1
    result = decode(code, (amplitude * (1 - 2 * bits.astype(np.int16))).astype(np.int8))
    assert result.ok.all()
    np.testing.assert_array_equal(result.payload, payload)


@functools.cache
def _loss_of_quantisation() -> tuple[float, float]:
    """Block error rates of int8 and, 0.1 dB lower, of floating point, same noise."""
    code = transport_block_code(2000, 2, 1 / 2)
    payload = _payload(code, 250, 11)
    bits = encode(code, payload)
    found = decode(code, _quantised(_noisy_llr(bits, -1.2, 12)))
    floating = decode_float(code, _noisy_llr(bits, -1.3, 12))
    return 1 - float(found.ok.mean()), float((floating != payload).any(axis=1).mean())


def test_int8_is_within_a_tenth_of_a_decibel_of_floating_point() -> None:
    fixed, floating = _loss_of_quantisation()
    assert 0.05 < floating < 0.9
    # Both rates have a standard deviation of 0.03 at most, and share payload and noise pattern.
    assert fixed <= floating + 0.06


@pytest.mark.parametrize(("code_rate", "snr_db"), [(1 / 3, 0.0), (1 / 3, 6.0), (1 / 2, 4.0), (5 / 6, 8.0)])
def test_no_error_floor_far_above_the_threshold(code_rate: float, snr_db: float) -> None:
    """Saturated posteriors must not turn round; with messages of up to 63 blocks are lost here."""
    code = transport_block_code(8000, 2, code_rate)
    payload = _payload(code, 120, 21)
    for amplification in (1.0, 2.0):
        llr = _quantised(amplification * _noisy_llr(encode(code, payload), snr_db, 22))
        assert decode(code, llr).ok.all()


def test_adding_a_retransmission_gains_about_three_decibels() -> None:
    code = transport_block_code(2080, 2, 1 / 2)
    bits = encode(code, _payload(code, 60, 31))
    first, second = (_quantised(_noisy_llr(bits, -3.0, seed)).astype(np.int16) for seed in (32, 33))
    assert decode(code, first.astype(np.int8)).ok.mean() < 0.05
    combined = np.clip(first + second, -LLR_MAX, LLR_MAX).astype(np.int8)
    assert decode(code, combined).ok.mean() > 0.95


def test_constant_input_is_not_accepted() -> None:
    for num_coded_bits, code_rate in ((1040, 1 / 4), (20800, 8 / 9)):
        code = transport_block_code(num_coded_bits, 1, code_rate)
        rows = np.stack([np.full(num_coded_bits, value, dtype=np.int8) for value in (-127, 0, 127)])
        assert not decode(code, rows).ok.any()
        zeros = encode(code, np.zeros((1, code.num_info_bytes), dtype=np.uint8))
        assert 0.4 < zeros.mean() < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 3, 0.5), "bits per symbol"),
        ((1001, 2, 0.5), "whole symbols"),
        ((1000, 2, 0.95), "1/5..8/9"),
        ((40, 2, 0.5), "no payload"),
    ],
)
def test_impossible_plans_are_refused_in_words(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transport_block_code(*arguments)


def test_wrong_batches_are_refused_in_words() -> None:
    code = transport_block_code(1040, 2, 0.5)
    with pytest.raises(ValueError, match="expected uint8"):
        encode(code, np.zeros((1, code.num_info_bytes + 1), dtype=np.uint8))
    with pytest.raises(ValueError, match="expected int8"):
        decode(code, np.zeros((1, 1040), dtype=np.float32))
