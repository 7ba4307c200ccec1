"""After the warm-up nothing compiles: a run's first frame costs what its thousandth does."""

import gc

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from signals import LAPTOP, PLUTO_LAB, random_blocks, slots_of

from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, WindowRequest
from radio.estimation import estimate_sounding, sounding_grid
from radio.memory import keep_freed_memory
from radio.numerology import Numerology
from radio.ofdm import grid_to_samples, samples_to_grid
from radio.phy import demodulate_slots
from radio.rotation import rotate
from radio.warmup import KERNEL_MODULES, warm_up


def _signatures() -> dict[str, int]:
    return {
        f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}": len(kernel.signatures)
        for kernel in gc.get_objects()
        # By type: asking an instance also asks dead weak proxies, which raise.
        if issubclass(type(kernel), Dispatcher) and kernel.py_func.__module__.startswith("radio.")
    }


@pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])
@pytest.mark.parametrize("num_taps", [1, 6])
def test_a_frame_through_the_air_compiles_nothing(numerology: Numerology, num_taps: int) -> None:
    warm_up()
    gc.unfreeze()  # what an earlier test froze would not be found
    before = _signatures()
    assert any("fill_noise" in name for name in before)

    rng = np.random.default_rng(1)
    mcs = np.arange(20) + 5
    blocks = random_blocks(rng, numerology, numerology.slots_per_frame, mcs)
    samples = slots_of(numerology, numerology.slots_per_frame, blocks, mcs) * np.float32(0.1)
    samples = rotate(samples, 0, 1e-5, out=samples)
    fading = FadingProfile(2e-6, num_taps, 5.0, 3.0)
    link = LinkParameters("a", "b", 60.0, cfo_hz=-1e-5 * numerology.sample_rate_hz, fading=fading)
    ports = (PortParameters("a", 30.0), PortParameters("b", 30.0))
    core = AirCore(AirParameters(1, numerology.sample_rate_hz, numerology.slot_samples, ports, (link,)))
    core.set_rx_gain("b", 55.0)
    sent = np.frombuffer(samples.tobytes(), np.complex64)  # read only, as out of a message
    core.burst("a", 0, sent)
    windows = core.request(WindowRequest("b", 1, 0, len(sent), frozenset()))
    heard = windows[0].samples[None, :]
    received = demodulate_slots(numerology, heard[0], mcs, np.arange(20) // 4)
    assert received.blocks
    assert all(blocks[place] == block for place, block in received.blocks.items())
    grid = samples_to_grid(numerology, grid_to_samples(numerology, sounding_grid(numerology, 0.1)))
    assert estimate_sounding(numerology, grid, 0.1).detected
    rotate(heard[0], 7, -1e-5)

    after = _signatures()
    assert after == before


def test_progress_names_every_module() -> None:
    named: list[str] = []
    warm_up(named.append)
    assert set(KERNEL_MODULES) <= set(named)


def test_memory_is_kept_where_the_allocator_is_glibc() -> None:
    import platform

    assert keep_freed_memory() or platform.libc_ver()[0] != "glibc"
