"""Messages are claimed for a time, and a sender whose claim ran out writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import sqlalchemy as sa

from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.webhooks import subscriptions
from sarto.control.webhooks.sender import WebhookSender
from sarto.storage.database.tables import webhook_delivery
from tests.control.homes import PARENT, create, member
from tests.served import served


@contextmanager
def receiver(act: Callable[[], None]) -> Iterator[str]:
    """The address of a server that acts and then takes the message."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            act()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with served(server):
        yield f"http://127.0.0.1:{server.server_port}/"


def sender_of_a_message(control: Control, uri: str) -> WebhookSender:
    control = replace(control, limits=replace(control.limits, webhook_private_addresses=True))
    subscriptions.create(control, member(control), PARENT, uri, "")
    tuning_jobs.cancel(control, member(control), create(control))
    return WebhookSender(control)


def delivery(control: Control) -> sa.Row[tuple[str, int, float]]:
    columns = webhook_delivery.c
    with control.database.reading() as connection:
        return connection.execute(sa.select(columns.state, columns.attempts, columns.not_before)).one()


def test_a_message_is_claimed_while_it_is_sent_and_delivered_once(any_control: Control) -> None:
    other_found = []
    with receiver(lambda: other_found.append(other.tell_next())) as uri:
        sender = sender_of_a_message(any_control, uri)
        other = WebhookSender(any_control)
        assert sender.tell_next() and not sender.tell_next()
    assert other_found == [False]
    assert delivery(any_control)[:2] == ("DELIVERED", 1)


def test_a_sender_whose_claim_ran_out_writes_nothing(any_control: Control) -> None:
    def claim_again() -> None:
        with any_control.database.transaction() as connection:
            connection.execute(webhook_delivery.update().values(not_before=12345.0))

    with receiver(claim_again) as uri:
        assert sender_of_a_message(any_control, uri).tell_next()
    assert delivery(any_control) == ("PENDING", 0, 12345.0)
