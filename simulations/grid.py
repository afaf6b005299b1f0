"""A Flower Grid without a network: messages go to the sites' real ClientApps in this process.

The rounds at the server and the work at a site are the deployed code; only the transport is
replaced. No Ray, no socket, no serialisation twice. A reply is made when it is pulled (or on a
thread, with more than one worker), so that one update is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1


class InProcessGrid(Grid):
    """Many sites behind one Grid, in one process.

    Args:
        apps: Site -> its ClientApp, as ``medfed.client.flower_app.build_app`` makes it.
        workers: Sites that train at the same time, on threads.
    """

    def __init__(self, apps: Mapping[str, ClientApp], *, workers: int = 1) -> None:
        # A Message asks who it is from; outside Flower's own processes nobody has said so.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, _SERVER_NODE
        self.node_of = {site: _SERVER_NODE + 1 + index for index, site in enumerate(apps)}
        self._apps = {self.node_of[site]: app for site, app in apps.items()}
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in self._apps
        }
        self._pool = ThreadPoolExecutor(workers, "site") if workers > 1 else None
        self._open: dict[str, partial[Message] | Future[Message]] = {}

    def close(self) -> None:
        """End the threads, after the sites that are training have finished."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """Ignored: there is one run."""

    @property
    def run(self) -> Run:
        """Not known in a simulation.

        Raises:
            LookupError: always.
        """
        raise LookupError("an in-process grid has no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All nodes; none is ever away."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to the sites."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Give the replies, waiting for each."""
        jobs = [self._open.pop(i) for i in list(message_ids) if i in self._open]
        return [job.result() if isinstance(job, Future) else job() for job in jobs]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Sequence[Message]:
        """Push, then pull all."""
        return self.pull_messages(self.push_messages(messages))

    def _push(self, message: Message) -> str:
        fields = message.metadata.__dict__
        fields["_run_id"], fields["_src_node_id"] = 1, _SERVER_NODE
        message_id = f"{message.metadata.dst_node_id}-{message.metadata.group_id}"
        fields["_message_id"] = message_id
        job = partial(self._reply, message)
        self._open[message_id] = self._pool.submit(job) if self._pool else job
        return message_id

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        return self._apps[node](message, self._contexts[node])
