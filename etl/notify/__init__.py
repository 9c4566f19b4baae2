"""After the commit: notifications about what happened, for people and for programs, and pings of a running service."""

from etl.notify.cloudevents import test_batch
from etl.notify.digest import Message
from etl.notify.notifier import LOOK_BACK, Alarm, Freshness, Notifier
from etl.notify.ping import Pinger
from etl.notify.receivers import Receiver, Subscription, Timing, UnusableReceiver, receivers
from etl.notify.webhooks import Endpoint, WebhookSender, WebhookStatus, flush

__all__ = [
    "LOOK_BACK",
    "Alarm",
    "Endpoint",
    "Freshness",
    "Message",
    "Notifier",
    "Pinger",
    "Receiver",
    "Subscription",
    "Timing",
    "UnusableReceiver",
    "WebhookSender",
    "WebhookStatus",
    "flush",
    "receivers",
    "test_batch",
]
