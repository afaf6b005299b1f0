"""Which sites may join: their public keys on disk, and Flower's nodes that stand for them.

Flower admits a node by its public key, under an id that Flower chooses. The data root says
which site a key belongs to (``sites/<SITE>.pub``) and which node it became (``nodes.json``).
A key is written as pending before Flower is told of it, so that a kill in between is seen
at the next start: Flower never takes the same key twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from medfed.common.errors import TrustError
from medfed.common.trust.identities import check_site_name
from medfed.common.trust.keys import fingerprint, parse_public_key
from medfed.common.trust.private_files import write_private
from medfed.server.data_root import DataRoot
from medfed.server.heads import KnownHeads
from medfed.server.superlink import SuperLink

log = logging.getLogger(__name__)


class Enrolment:
    """The enrolled sites of one server. Safe to share between threads.

    Args:
        root: The data root, prepared.
        superlink: A SuperLink that answers.
    """

    def __init__(self, root: DataRoot, superlink: SuperLink) -> None:
        self._root, self._superlink = root, superlink
        self._one_at_a_time = threading.Lock()

    def approve(self, site: str, public_key: bytes, *, replace: bool) -> tuple[str, bool]:
        """Let a site in.

        Args:
            site: Its name in the study files.
            public_key: Its ``node_key.pub``.
            replace: Whether another key of this site is thrown out, and what is remembered of
                its ledger forgotten: the hospital has said that it goes on with an older one.

        Returns:
            The key's fingerprint, and whether the site was enrolled with it already.

        Raises:
            ConfigError: the name is not allowed.
            TrustError: no P-384 key; another site's key; a key that was thrown out before;
                or another key is enrolled and ``replace`` is false.
            TransportError: Flower does not answer.

        Guarantee:
            When this raises, the site's earlier key is enrolled as before.
        """
        check_site_name(site)
        key = parse_public_key(public_key, source=f"the key of site {site!r}")
        with self._one_at_a_time:
            enrolled, nodes = self._root.enrolled(), self._root.nodes()
            _check_key(site, key, enrolled, replace=replace)
            if replace:
                KnownHeads(self._root.sites).forget(site)
            if enrolled.get(site) == key and site in nodes:
                return fingerprint(key), True
            pending = write_private(self._root.pending_key_file(site), key, replace=True)
            self._keep(site, self._superlink.register(site, pending))
            if site in nodes and site in enrolled:
                self._superlink.unregister(nodes[site])
        log.info("enrol.approved site=%s key=%s", site, fingerprint(key))
        return fingerprint(key), False

    def throw_out(self, site: str) -> None:
        """Take a site's key back, for ever: Flower takes no key twice.

        Nothing happens where it is not enrolled.

        Raises:
            TransportError: Flower does not answer. The site counts as thrown out; ``take_up``
                tells Flower again.
        """
        with self._one_at_a_time:
            key, node = self._root.enrolled().get(site), self._root.nodes().get(site)
            if key is None:
                return
            self._root.throw_out(site, key)
            log.warning("enrol.thrown_out site=%s key=%s", site, fingerprint(key))
            if node is not None:
                self._superlink.unregister(node)

    def take_up(self) -> None:
        """Bring Flower to what the data root says, after a start.

        Sites that Flower does not know (its database is gone) are registered again; nodes
        that belong to no enrolled site are thrown out, also those of a ``throw_out`` cut off.

        Raises:
            TransportError: Flower does not answer.
        """
        with self._one_at_a_time:
            known = self._superlink.nodes()
            strangers = known.keys() - set(self._root.nodes().values())
            for site in self._root.pending():
                if len(strangers) == 1:  # killed after Flower was told and before we wrote it down
                    self._keep(site, strangers.pop())
            for stranger in strangers:
                log.warning("enrol.stranger_removed node=%d", stranger)
                self._superlink.unregister(stranger)
            nodes, enrolled = self._root.nodes(), self._root.enrolled()
            for site in nodes.keys() - enrolled.keys():
                if nodes[site] in known and self._root.thrown_out(site):
                    self._superlink.unregister(nodes[site])
            for site in enrolled:
                if nodes.get(site) not in known:
                    nodes[site] = self._superlink.register(site, self._root.key_file(site))
            self._root.write_nodes(nodes)

    def _keep(self, site: str, node: int) -> None:
        """Write down that a pending key has become this node."""
        self._root.write_nodes(self._root.nodes() | {site: node})
        self._root.pending_key_file(site).replace(self._root.key_file(site))


def _check_key(site: str, key: bytes, enrolled: Mapping[str, bytes], *, replace: bool) -> None:
    for other, theirs in enrolled.items():
        if theirs == key and other != site:
            raise TrustError(
                f"site {site!r}: this key is already enrolled, for site {other!r}; a key belongs "
                "to one site.",
                advice="ask the site for the node_key.pub of its own data root.",
            )
    if enrolled.get(site, key) != key and not replace:
        raise TrustError(
            f"site {site!r} is enrolled with another key, {fingerprint(enrolled[site])}; the new "
            f"one is {fingerprint(key)}.",
            advice="ask the site by phone which is right, and whether a new key means a new ledger "
            "for the same patients; `--replace` throws the old key out.",
        )
