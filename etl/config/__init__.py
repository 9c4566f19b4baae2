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
from etl.config.schedules import Configured, Schedule, directories
from etl.config.secret import Secret
from etl.config.settings import (
    ApiVersion,
    GatewaySettings,
    NotifySettings,
    Policy,
    Settings,
    WebhookSettings,
    policy_of,
    with_policy,
)
from etl.config.targets import TargetList
from etl.config.units import retention_period

__all__ = [
    "ApiVersion",
    "Configured",
    "GatewaySettings",
    "NotifySettings",
    "Policy",
    "Schedule",
    "Secret",
    "Settings",
    "TargetList",
    "WebhookSettings",
    "another_database",
    "directories",
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
