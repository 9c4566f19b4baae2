"""Settings and schedules: what files and the environment say, as values. The only reader of both."""

from etl.config.loading import (
    another_database,
    load,
    load_all,
    load_schedules,
    may_colour,
    schedule_names,
    shell_name,
    supervisor,
)
from etl.config.policy import Policy, policy_of, with_policy
from etl.config.schedules import Configured, Schedule
from etl.config.secret import Secret
from etl.config.settings import (
    ApiVersion,
    DatabaseSettings,
    GatewaySettings,
    GuardSettings,
    LogSettings,
    NotifySettings,
    RetentionSettings,
    ScaleSettings,
    ServiceSettings,
    Settings,
    VerifySettings,
)
from etl.config.target_list import TargetList
from etl.config.targets import RosterOf
from etl.config.units import retention_period

__all__ = [
    "ApiVersion",
    "Configured",
    "DatabaseSettings",
    "GatewaySettings",
    "GuardSettings",
    "LogSettings",
    "NotifySettings",
    "Policy",
    "RetentionSettings",
    "RosterOf",
    "ScaleSettings",
    "Schedule",
    "Secret",
    "ServiceSettings",
    "Settings",
    "TargetList",
    "VerifySettings",
    "another_database",
    "load",
    "load_all",
    "load_schedules",
    "may_colour",
    "policy_of",
    "retention_period",
    "schedule_names",
    "shell_name",
    "supervisor",
    "with_policy",
]
