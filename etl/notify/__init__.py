"""After the commit: notifications about what a run found, and pings that show that the service still runs."""

from etl.notify.digest import Message
from etl.notify.notifier import LOOK_BACK, Alarm, Freshness, Notifier
from etl.notify.ping import Pinger
from etl.notify.receivers import Receiver, Subscription, Timing, UnusableReceiver, receivers

__all__ = [
    "LOOK_BACK",
    "Alarm",
    "Freshness",
    "Message",
    "Notifier",
    "Pinger",
    "Receiver",
    "Subscription",
    "Timing",
    "UnusableReceiver",
    "receivers",
]
