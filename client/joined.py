"""Which pseudonyms are one person: now, and at every earlier time.

Two record numbers of one person have two pseudonyms. From a merge on they have one *name*, the
least of them, and are one privacy unit. What was released before was made from two units, and
costs the person more; so it must stay known what was one when. Pure, and private.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from types import MappingProxyType

from medfed.client.exposure import Pseudonym

Pair = tuple[Pseudonym, Pseudonym]
"""Two pseudonyms that are one person. Private."""


class Joined:
    """The merges of a ledger, in order.

    Attributes:
        times: How many merges there were; a time *t* is after the first t of them.
    """

    def __init__(self) -> None:
        self.times = 0
        self._names: dict[Pseudonym, list[tuple[int, Pseudonym]]] = {}
        self._persons: dict[Pseudonym, frozenset[Pseudonym]] = {}

    def join(self, pairs: Iterable[Pair]) -> frozenset[Pseudonym]:
        """Merge pairs, all at once: the next time begins.

        Returns:
            The names, from now on, of the persons who are more than they were.
        """
        self.times += 1
        changed: set[Pseudonym] = set()
        for one, other in pairs:
            names = {self.name(one), self.name(other)}
            if len(names) == 1:
                continue
            ids = frozenset().union(*(self._persons.pop(name, {name}) for name in names))
            person = min(ids)
            self._persons[person] = ids
            for each in ids:
                self._names.setdefault(each, []).append((self.times, person))
            changed = (changed - names) | {person}
        return frozenset(changed)

    def name(self, patient: Pseudonym, time: int | None = None) -> Pseudonym:
        """By which name a pseudonym goes, now or at a time."""
        for since, name in reversed(self._names.get(patient, ())):
            if time is None or since <= time:
                return name
        return patient

    @property
    def persons(self) -> Mapping[Pseudonym, frozenset[Pseudonym]]:
        """Name -> pseudonyms, of those who have more than one."""
        return MappingProxyType(self._persons)

    @property
    def ids(self) -> Collection[Pseudonym]:
        """Every pseudonym of a person who has more than one."""
        return self._names.keys()

    def new_among(self, pairs: Iterable[Pair]) -> frozenset[Pair]:
        """Those pairs that are not one person yet."""
        return frozenset(pair for pair in pairs if self.name(pair[0]) != self.name(pair[1]))

    def copy(self) -> Joined:
        """Another, to try a merge on."""
        return deepcopy(self)
