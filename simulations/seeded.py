"""Repeatable randomness, for researchers and tests only.

The same algorithms as a site's secret generator, over a key stream that anyone who knows
the key can compute. Noise made with it protects nobody: ``is_secret`` is false, so that
whatever is made with it can be marked as such. A deployed worker cannot import this folder.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from medfed.client.noise import KeystreamRandomness, Purpose


class SeededRandomness(KeystreamRandomness):
    """Randomness that repeats: one key, one sequence of draws.

    Args:
        key: What tells this sequence from others, such as ``"seed=0 site=A round=3"``.
            Text counts as its UTF-8 bytes. Not empty.

    Raises:
        ValueError: the key is empty.

    Guarantee:
        Two generators with one key give the same draws for the same calls, on one machine
        and one version of torch; the last bit of a logarithm may differ between processors.
        Draws of noise do not shift draws of coins and choices, nor the other way round.

    Example:
        >>> SeededRandomness("seed=0 site=A").permutation(5).tolist()
        [0, 1, 3, 2, 4]
        >>> SeededRandomness("seed=0 site=A").permutation(5).tolist()
        [0, 1, 3, 2, 4]
    """

    is_secret: ClassVar[bool] = False

    def __init__(self, key: str | bytes) -> None:
        self._key = key.encode() if isinstance(key, str) else key
        if not self._key:
            raise ValueError("key must not be empty: name the seed, the site and the round")
        self._streams: dict[Purpose, CipherContext] = {}

    def _keystream(self, purpose: Purpose) -> CipherContext:
        if purpose not in self._streams:
            key = hashlib.sha256(purpose.encode() + b"\0" + self._key).digest()
            self._streams[purpose] = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        return self._streams[purpose]

    def __repr__(self) -> str:
        return f"SeededRandomness({self._key!r})"
