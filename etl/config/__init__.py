"""Settings and schedules: what people wrote in files and in the environment, as values. The only reader of both."""

from etl.config.loading import another_database, load, load_all, load_schedules, schedule_names
from etl.config.measures import keeping
from etl.config.policy import Policy, policy_of, under
from etl.config.roster import Roster
from etl.config.schedules import Schedule
from etl.config.secret import Secret
from etl.config.settings import (
    DatabaseSettings,
    GatewaySettings,
    GuardSettings,
    LogSettings,
    NotifySettings,
    RetentionSettings,
    ScaleSettings,
    ServiceSettings,
    Settings,
)

__all__ = [
    "DatabaseSettings",
    "GatewaySettings",
    "GuardSettings",
    "LogSettings",
    "NotifySettings",
    "Policy",
    "RetentionSettings",
    "Roster",
    "ScaleSettings",
    "Schedule",
    "Secret",
    "ServiceSettings",
    "Settings",
    "another_database",
    "keeping",
    "load",
    "load_all",
    "load_schedules",
    "policy_of",
    "schedule_names",
    "under",
]
