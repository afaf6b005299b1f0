"""The ServerApp: the rounds of a study over Flower's public Grid API.

Flower's SuperLink starts ``app`` in a process of its own when the hub starts a run. The app
finds the study in the server's data root, by the run's name, runs its rounds, and writes every
change to the journal that ``medfed status`` reads.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from medfed.common.errors import ConfigError, TrustError
from medfed.common.files import write_atomically
from medfed.common.privacy.terms import Purpose
from medfed.common.refusals import words_of
from medfed.common.study import Study, study_from_canonical
from medfed.common.trust.ledger_head import Head, head_from
from medfed.server.heads import KnownHeads
from medfed.server.journal import Journal, RunStatus
from medfed.server.link import Answer
from medfed.server.result import result_json
from medfed.server.rounds import EXIT_CODES, RunState, headline
from medfed.server.run_study import RunResult, StudyRun, words_for

log = logging.getLogger(__name__)

_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, EOFError)
"""What Flower raises on a reply that is no reply."""

_LOST = frozenset({3, 4, 5, 8})
"""Flower's error codes for a message or a reply that is gone, a node that is not there any more
and a worker that died. Any other was made by a program that ran, and would come again."""

_WRONG_LEDGER = "its ledger is behind, or not the one it released from before"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one study, as the hub wrote it down.

    Raises:
        ConfigError: the data root is not known or the run's study is not there.
    """
    root = os.environ.get("MEDFED_SERVER_ROOT")
    if root is None:
        raise ConfigError("MEDFED_SERVER_ROOT is not set.", advice="start runs by `medfed launch`.")
    run = str(context.run_config["medfed-run"])
    folder = Path(root) / "runs" / run
    study = study_from_canonical((folder / "study.json").read_bytes())
    enrolled = Path(root) / "sites" / "nodes.json"  # read anew: a site may be enrolled later

    def node_of() -> dict[str, int]:
        return dict(json.loads(enrolled.read_text(encoding="utf-8")))

    run_deployed(grid, study, run=run, node_of=node_of, folder=folder, journal_at=Path(root))


def run_deployed(
    grid: Grid,
    study: Study,
    *,
    run: str,
    node_of: Callable[[], Mapping[str, int]],
    folder: Path,
    journal_at: Path,
) -> RunResult:
    """Run a study's rounds and keep the journal true to the end.

    Args:
        grid: Flower's grid.
        study: The study.
        run: The run's name.
        node_of: Gives site -> Flower node id, as registered with the site's public key, now.
        folder: The run's folder.
        journal_at: The server's data root.
    """
    journal = Journal(journal_at / "journal.db")

    def note(state: RunState) -> None:
        journal.write(status_of(study, run, state))

    link = GridLink(grid, study, run, node_of, heads=KnownHeads(journal_at / "sites"))
    study_run = StudyRun(
        study,
        link,
        folder=folder,
        on_change=note,
        stop_requested=lambda: journal.stop_requested(run),
    )
    result = study_run.run()
    write_atomically(folder / "result.json", result_json(study, run, result))
    return result


def status_of(study: Study, run: str, state: RunState) -> RunStatus:
    """A run's state in the words of the journal."""
    if state.outcome is not None:
        word: str = state.outcome
    else:
        word = "waiting" if state.phase == "waiting" and state.round == 1 else "running"
    return RunStatus(
        run=run,
        study=study.name,
        digest=study.digest,
        state=word,
        round=state.round,
        rounds=state.rounds,
        sites=dict(words_for(state)),
        headline=headline(state),
        exit_code=None if state.outcome is None else EXIT_CODES[state.outcome],
        updated_at=time.time(),
        pid=os.getpid(),
    )


class GridLink:
    """The rounds' link to the sites over a Flower Grid.

    Args:
        grid: Flower's grid, or one that behaves like it.
        study: The study.
        run: The run's name.
        node_of: Gives site -> Flower node id, of the sites that are enrolled now.
        heads: Where the heads of the sites' ledgers are kept; None: nowhere (simulation).
    """

    def __init__(
        self,
        grid: Grid,
        study: Study,
        run: str,
        node_of: Callable[[], Mapping[str, int]],
        *,
        heads: KnownHeads | None = None,
    ) -> None:
        self._grid, self._study, self._run = grid, study, run
        self._node_of, self._heads = node_of, heads
        self._waiting_for: dict[str, str] = {}  # site -> the message it owes an answer to
        self._asked: tuple[int, Purpose] = (0, "train")

    def present(self) -> frozenset[str]:
        """The study's sites whose node is connected."""
        online, nodes = set(self._grid.get_node_ids()), self._node_of()
        return frozenset(s.name for s in self._study.site if nodes.get(s.name) in online)

    def ask(
        self,
        round_: int,
        sites: tuple[str, ...],
        model: bytes,
        deadline_s: float,
        *,
        purpose: Purpose = "train",
    ) -> None:
        """Send a model to train from, or to judge."""
        if (round_, purpose) != self._asked:
            self._asked, self._waiting_for = (round_, purpose), {}
        nodes = self._node_of()
        weights = ArrayRecord({"bytes": Array(np.frombuffer(model, dtype=np.uint8))})
        config = ConfigRecord(
            {
                "digest": self._study.digest,
                "run": self._run,
                "round": round_,
                "purpose": purpose,
            }
        )
        messages = [
            Message(
                content=RecordDict({"round": config, "model": weights, **self._head_of(site)}),
                message_type=MessageType.TRAIN if purpose == "train" else MessageType.EVALUATE,
                dst_node_id=nodes[site],
                group_id=str(round_),
                ttl=deadline_s + 60.0,
            )
            for site in sites
        ]
        ids = list(self._grid.push_messages(messages)) if messages else []
        self._waiting_for |= dict(zip(sites, ids, strict=True))

    def next_answer(self) -> Answer | None:
        """Pull one answer, looking at the open messages in turn."""
        for site, message_id in list(self._waiting_for.items()):
            try:
                replies = list(self._grid.pull_messages([message_id]))
            except _UNREADABLE:  # a link that failed raises something else, and is not the site's
                replies = None
            if replies is None or replies:
                del self._waiting_for[site]
                return _unreadable(site) if not replies else _answer(site, replies[0], self._heads)
        return None

    def _head_of(self, site: str) -> dict[str, ConfigRecord]:
        """What the server remembers of a site's ledger, for the site to hold its own against."""
        head = None if self._heads is None else self._heads.of(site)
        return {} if head is None else {"head": ConfigRecord(head._asdict())}


def _answer(site: str, reply: Message, heads: KnownHeads | None) -> Answer:
    try:
        return _read(site, reply, heads)
    except TrustError as error:
        log.warning("reply.refused site=%s %s", site, error)
        return Answer(site, failure="rejected", reason=_WRONG_LEDGER)
    except Exception as error:  # a site's bytes may break Flower's decoders in any way
        log.warning("reply.unreadable site=%s error=%s", site, type(error).__name__)
        return _unreadable(site)


def _unreadable(site: str) -> Answer:
    return Answer(site, failure="rejected", reason="its reply could not be read")


def _read(site: str, reply: Message, heads: KnownHeads | None) -> Answer:
    if reply.has_error():
        failure: Literal["lost", "rejected"] = "lost" if reply.error.code in _LOST else "rejected"
        return Answer(site, failure=failure, reason=f"Flower error {reply.error.code}")
    content = reply.content
    if "release" in content.array_records:
        if heads is not None:
            heads.take(site, _head_in(content))
        return Answer(site, payload=content.array_records["release"]["bytes"].numpy().tobytes())
    code = str(content.config_records["fact"]["code"])
    return Answer(site, failure="refused", reason=words_of(code))


def _head_in(content: RecordDict) -> Head | None:
    """The ledger head that came with a release; any field may be anything."""
    if "head" not in content.config_records:
        return None
    return head_from(content.config_records["head"])
