"""What only the serving process knows to be wrong: its database, schedules, cluster, receivers and clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from etl.cli.application import Application
from etl.cli.notify import Notifications
from etl.config import Schedule
from etl.printable import counted
from etl.report.conditions import DetectedCondition
from etl.service.replica import Service
from etl.service.verification import TimeStamps, Verification
from etl.sync import RemoteExecutor, RunReport
from etl.system.clock import utc_now


class OwnConditions:
    """Gathers these conditions on request; from any thread."""

    def __init__(self, app: Application, notifications: Notifications) -> None:
        self.service: Service | None = None
        """Set once the service exists."""
        self.verification: Verification | None = None
        """Set if the service checks its trail."""
        self.timestamps: TimeStamps | None = None
        """Set where the service has seals stamped."""
        self._app = app
        self._notifications = notifications
        self._cluster_lost_at: dt.datetime | None = None
        self._details: dict[str, DetectedCondition] = {}
        """By schedule."""

    def finished(self, report: RunReport, schedule: Schedule) -> None:
        """Note whether a run could fetch the details that it asked for; a run that asked for none changes nothing."""
        done = report.details
        if done is None or not done.asked:
            return
        if not done.failed:
            self._details.pop(schedule.name, None)
            return
        codes = ", ".join(f"{code} ({count})" for code, count in done.codes.items())
        summary = (
            f"Details of {counted(done.failed, 'changed workflow')} could not be fetched: {codes or 'see the log'}"
        )
        since = self._details[schedule.name].since if schedule.name in self._details else utc_now()
        self._details[schedule.name] = DetectedCondition("details_failing", summary, schedule.name, since, done.failed)

    def __call__(self) -> list[DetectedCondition]:
        return list(self._found())

    def _found(self) -> Iterator[DetectedCondition]:
        if self.service is not None:
            yield from filter(None, (self.service.database_condition, self.service.broken_schedules))
        if self._cluster_lost_at is not None:
            address = self._app.settings.scale.dask
            yield DetectedCondition("cluster_lost", f"No worker of {address} answers", since=self._cluster_lost_at)
        yield from self._notifications.failing()
        yield from list(self._details.values())
        for each in (self.verification, self.timestamps):
            condition = each.condition() if each is not None else None
            if condition is not None:
                yield condition
        yield from self._clock()

    def _clock(self) -> Iterator[DetectedCondition]:
        skew, limit = self._app.gateway.clock_skew, self._app.settings.gateway.max_clock_skew
        if skew is not None and limit and abs(skew) > limit:
            ahead = "ahead of" if skew > dt.timedelta(0) else "behind"
            yield DetectedCondition(
                "clock_off", f"The gateway's clock is {abs(skew).total_seconds():.0f} s {ahead} ours", "gateway"
            )

    def remote(self) -> RemoteExecutor | None:
        """The cluster, where there is one that can be reached."""
        if self._app.cluster is None:
            return None
        found = self._app.cluster.connect_if_reachable()
        self._cluster_lost_at = None if found is not None else self._cluster_lost_at or utc_now()
        return found
