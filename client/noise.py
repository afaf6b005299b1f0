"""Draw the secret randomness that privacy rests on: noise, coins, and the choice of scans.

Whoever can guess these numbers can subtract the noise, or learn who was sampled.
So a site draws them from AES-256 in counter mode, keyed from the operating system,
and the keys never leave the process. Noise and sampling have a stream each: what is
learned about one says nothing about the other. This module adds no noise to anything
(``private_gradients.py``) and keeps no account of it.

The algorithms are written once, over a key stream that a subclass supplies. The only
subclass here is `SecretRandomness`, which takes no argument: nothing in a study, file,
flag or variable can seed it.

Source:
    Holohan, Braghin. Secure Random Sampling in Differential Privacy. ESORICS 2021.
    https://arxiv.org/abs/2107.10138 (several Gaussian samples are added into one, so
    that the low bits of a float do not give the noise away; four, as in Opacus).
    Box, Muller. A Note on the Generation of Random Normal Deviates. 1958.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NoReturn, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from medfed.common.errors import PrivacyError

Purpose = Literal["noise", "sampling"]

_SUMMANDS = 4  # Gaussian samples per released one; their sum is divided by sqrt(4)
_BLOCK = 1 << 13  # pairs of normals made at a time: 512 KiB of key stream stays in the cache
_UNIT = 2.0**-53  # step of the uniform numbers


class Randomness(Protocol):
    """Where noise, coins and choices come from."""

    @property
    def is_secret(self) -> bool:
        """Whether nobody can predict the draws. A model made without is for research only."""

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """Draw ``count`` independent standard normal numbers, float64, shape ``(count,)``."""

    def coins(self, count: int, probability: float) -> npt.NDArray[np.bool_]:
        """Toss ``count`` independent coins, true with ``probability``, shape ``(count,)``."""

    def choose(self, count: int, at_most: int) -> npt.NDArray[np.int64]:
        """Choose ``min(count, at_most)`` of ``range(count)`` without replacement, sorted."""

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """Put ``range(count)`` into a uniformly random order."""

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Draw ``count`` independent numbers, uniform in [0, 1)."""


class KeystreamRandomness(ABC):
    """Every algorithm of `Randomness`, over the key stream that ``_keystream`` hands out.

    Not for use by several threads at once.
    """

    is_secret: ClassVar[bool] = False

    @abstractmethod
    def _keystream(self, purpose: Purpose) -> CipherContext:
        """Return the running stream cipher of that purpose. Called before every draw."""

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """Draw standard normal numbers.

        Args:
            count: How many; >= 0.

        Returns:
            float64, shape ``(count,)``. Independent. Private until added to a sum.

        Guarantee:
            Each is the sum of four Box-Muller normals over two. The four come from four
            different pairs of 53-bit uniform numbers, so 424 bits of key stream stand
            behind each value. Magnitudes end at 17.2, which a true normal number
            passes with probability below 1e-65.
        """
        _check_count(count)
        out = np.empty(count + count % 2)
        for start in range(0, len(out), 2 * _BLOCK):
            block = out[start : start + 2 * _BLOCK]
            block[:] = _normals(self._words("noise", _SUMMANDS * len(block)))
        return out[:count]

    def coins(self, count: int, probability: float) -> npt.NDArray[np.bool_]:
        """Toss independent coins.

        Args:
            count: How many; >= 0.
            probability: Of true, in [0, 1].

        Returns:
            bool, shape ``(count,)``. Private: they say who was sampled.

        Raises:
            ValueError: the probability is outside [0, 1] or not a number.

        Guarantee:
            The chance of true lies in [probability, probability + 2**-53); it is exactly
            0 or 1 where the probability is.
        """
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must be in [0, 1], got {probability!r}")
        _check_count(count)
        uniform = self._words("sampling", count) >> np.uint64(11)
        return uniform.astype(np.float64) < probability * 2.0**53  # both sides are exact

    def choose(self, count: int, at_most: int) -> npt.NDArray[np.int64]:
        """Choose uniformly among all subsets of ``min(count, at_most)`` numbers.

        Args:
            count: The numbers are ``range(count)``; >= 0.
            at_most: How many to take; >= 0. If it covers all, nothing is drawn.

        Returns:
            int64, sorted, shape ``(min(count, at_most),)``. Private.
        """
        _check_count(count)
        _check_count(at_most)
        if count <= at_most:
            return np.arange(count, dtype=np.int64)
        return np.sort(self._shuffled(count, at_most))

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """Put ``range(count)`` into an order, each of the ``count!`` equally likely. Private."""
        _check_count(count)
        return self._shuffled(count, count)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Draw independent numbers, uniform in [0, 1) in steps of 2**-53; count >= 0."""
        _check_count(count)
        return (self._words("sampling", count) >> np.uint64(11)).astype(np.float64) * _UNIT

    def _shuffled(self, count: int, steps: int) -> npt.NDArray[np.int64]:
        """Do the first steps of a Fisher-Yates shuffle; return the places that are settled."""
        order = list(range(count))
        offsets = self._below(np.arange(count, count - steps, -1, dtype=np.uint64))
        for place, offset in enumerate(offsets.tolist()):
            other = place + offset
            order[place], order[other] = order[other], order[place]
        return np.array(order[:steps], dtype=np.int64)

    def _below(self, bounds: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Draw for each bound a uniform number in ``[0, bound)``, without modulo bias.

        Words below ``2**64 mod bound`` are drawn again: the rest is a whole number of laps.
        """
        least = (np.uint64(0) - bounds) % bounds  # wraps around: 2**64 mod bound
        words = self._words("sampling", len(bounds))
        while (again := np.flatnonzero(words < least)).size:
            words[again] = self._words("sampling", again.size)
        return words % bounds

    def _words(self, purpose: Purpose, count: int) -> npt.NDArray[np.uint64]:
        """Take the next 64-bit words of a stream."""
        words = np.empty(count, dtype="<u8")
        if count:
            self._keystream(purpose).update_into(bytes(8 * count), words.view(np.uint8).data)
        return words.astype(np.uint64, copy=False)


@final
class SecretRandomness(KeystreamRandomness):
    """The site's own generator: AES-256-CTR, keyed by the operating system.

    Takes no argument, so it cannot be seeded; holds no key that Python code can read; shows
    nothing in its repr; cannot be pickled, copied or derived from. A forked child shares the
    parent's stream and would repeat its noise, so there it refuses. Make a new one for each
    round: that also covers a machine that is restored from a snapshot between rounds.

    Raises:
        PrivacyError: (at a draw) the process was forked since it was made.

    Example:
        >>> randomness = SecretRandomness()
        >>> randomness
        SecretRandomness()
        >>> randomness.coins(3, probability=1.0).tolist()
        [True, True, True]
    """

    is_secret: ClassVar[bool] = True

    def __init__(self) -> None:
        self._process = os.getpid()
        self._streams = {"noise": _fresh_stream(), "sampling": _fresh_stream()}

    def _keystream(self, purpose: Purpose) -> CipherContext:
        if os.getpid() != self._process:
            raise PrivacyError(
                f"process {os.getpid()}: the secret generator was made in process "
                f"{self._process} and would repeat that process's noise here",
                advice="make a new SecretRandomness() in each process.",
            )
        return self._streams[purpose]

    def __repr__(self) -> str:
        return "SecretRandomness()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("SecretRandomness cannot be pickled or copied: its draws would repeat")

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("SecretRandomness cannot be derived from: that could seed it")


def _fresh_stream() -> CipherContext:
    """Start AES-256-CTR under a new key from the operating system."""
    return Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()


def _normals(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Turn ``8 n`` words into ``2 n`` normal numbers: cosines first, then sines.

    torch takes the cosines: its vectorised float64 cosine is 4 times as fast as numpy's, while
    for the logarithm it is the other way round.
    """
    words >>= np.uint64(11)  # in place throughout: fresh memory would cost as much as the sums
    radius, turn = words.reshape(2, _SUMMANDS, -1).astype(np.float64)
    radius += 1  # in (0, 2**53], so that the logarithm is finite
    radius *= _UNIT
    np.log(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    turn *= 2 * math.pi * _UNIT
    length, angle = torch.from_numpy(radius), torch.from_numpy(turn)
    both = torch.stack([(angle.cos().mul_(length)).sum(0), (angle.sin_().mul_(length)).sum(0)])
    return both.div_(math.sqrt(_SUMMANDS)).view(-1).numpy()


def _check_count(count: int) -> None:
    """Refuse a negative count."""
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count!r}")
