"""Counter-based randomness: a draw depends on its key alone, never on what was drawn before.

Keys are (seed, purpose, names, counters).  The order in which bursts, links or processes arrive
therefore cannot change a run.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_key(seed: int, *labels: str | int) -> int:
    """128-bit key of a seed and labels, equal on every machine and every Python."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (seed, *labels):
        text = f"{type(part).__name__}:{part};"
        digest.update(text.encode())
    return int.from_bytes(digest.digest(), "little")


def generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A Philox generator for this key.

    Parameters
    ----------
    seed
        The experiment's seed.
    labels
        What the draw is for, for example ``("noise", "server", slot_index)``.
    """
    return np.random.Generator(np.random.Philox(key=derive_key(seed, *labels)))
