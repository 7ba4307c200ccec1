"""GNU Radio's OFDM transmitter and receiver over a payload in a file; prints one JSON object.

Run by `peers.py` with the interpreter that has GNU Radio; imports nothing of this project.

    python gnuradio_ofdm.py PAYLOAD_FILE SNR_DB
"""

import json
import resource
import sys

import numpy as np
from gnuradio import blocks, digital, gr

PACKET_BYTES = 96  # the length in GNU Radio's own OFDM examples
BITS_PER_SYMBOL = 2  # QPSK; its blocks know nothing denser than 8PSK
TAG = "packet_length"


def cpu_s():
    """CPU time of this process, all threads: GNU Radio runs one for each block."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run(*chain):
    """Run blocks in a row; returns the CPU time that it took."""
    top = gr.top_block()
    top.connect(*chain)
    started = cpu_s()
    top.run()
    return cpu_s() - started


def transmitter():
    return digital.ofdm_tx(
        packet_length_tag_key=TAG, bps_header=1, bps_payload=BITS_PER_SYMBOL, scramble_bits=True
    )


def main():
    payload = np.fromfile(sys.argv[1], np.uint8)
    num_packets = len(payload) // PACKET_BYTES
    payload = payload[: num_packets * PACKET_BYTES]
    tagger = lambda: blocks.stream_to_tagged_stream(gr.sizeof_char, 1, PACKET_BYTES, TAG)  # noqa: E731

    sink = blocks.vector_sink_c(1, 1 << 22)
    run(blocks.vector_source_b(payload.tolist()), tagger(), transmitter(), sink)
    samples = np.array(sink.data(), np.complex64)
    nothing = blocks.null_sink(gr.sizeof_gr_complex)
    tx_cpu_s = run(blocks.vector_source_b(payload.tolist()), tagger(), transmitter(), nothing)

    rng = np.random.default_rng(1)
    scale = np.sqrt(np.mean(np.abs(samples) ** 2) / 2) * 10 ** (-float(sys.argv[2]) / 20)
    noise = rng.standard_normal(2 * len(samples), np.float32).view(np.complex64)
    noisy = samples + np.complex64(scale) * noise
    # What follows the last packet lets it through the receiver's buffers.
    noisy = np.concatenate([noisy, noise[:8000] * np.complex64(scale)])
    receiver = digital.ofdm_rx(
        packet_length_tag_key=TAG, bps_header=1, bps_payload=BITS_PER_SYMBOL, scramble_bits=True
    )
    received = blocks.vector_sink_b(1, 1 << 20)
    rx_cpu_s = run(blocks.vector_source_c(noisy.tolist()), receiver, received)
    # Only packets whose CRC-32 holds come out.
    decoded_bytes = len(received.data())
    print(
        json.dumps(
            {
                "version": gr.version(),
                "what": f"digital.ofdm_tx / ofdm_rx, FFT 64, prefix 16, QPSK, packets of {PACKET_BYTES} bytes",
                "num_samples": len(samples),
                "payload_bytes": len(payload),
                "tx_cpu_s": tx_cpu_s,
                "rx_cpu_s": rx_cpu_s,
                "decoded_share": decoded_bytes / len(payload),
            }
        )
    )


if __name__ == "__main__":
    main()
