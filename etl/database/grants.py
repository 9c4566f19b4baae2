"""The SQL for three roles on PostgreSQL, so that the role that writes the trail cannot rewrite it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from etl.errors import UsageError

_TRAIL: Final = (
    "change_set, workflow_change, target_membership, hold_event, workflow_detail, org_event, org_step, pruned_issues, "
    "run_seal, seal_timestamp, trail, answer, acknowledgement"
)
_HEAD: Final = "last_seal, head, sealed_at, acknowledged_at"
"""Of `trail`, what moves with each seal and each acknowledgement."""
_LISTS: Final = (
    "workflow, target, observation, sync_run, sync_issue, organisation, org_turnover, org_flow, org_loss, org_state, "
    "roster, roster_user, overdue_notice, condition, webhook, webhook_notice, verification, rule, finding, lease"
)
_ROLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def grants(owner: str, writer: str, reader: str) -> Iterator[str]:
    """Statements for a superuser, to be run in the schema of Flowtrail after every `db upgrade`.

    ``owner`` owns everything and runs the migrations. ``writer`` is the service: it may read and append the trail, but
    not change or empty it or touch its triggers (a trigger makes partitions, with the owner's rights). ``reader`` only
    reads. Both may back up everything, so they read sequences and each partition, also new ones (their trigger passes
    the rights on). Missing roles are created, without the right to log in. Raises UsageError for a name that needs
    quoting.
    """
    for role in (owner, writer, reader):
        if not _ROLE.fullmatch(role):
            raise UsageError(f"{role!r} is not a valid role name here: use letters, digits and underscores.")
        yield (
            f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') "
            f'THEN CREATE ROLE "{role}"; END IF; END $$;'
        )
    for kind in ("table", "view"):
        yield (
            f"DO $$ DECLARE found name; BEGIN FOR found IN SELECT {kind}name FROM pg_{kind}s "  # noqa: S608
            f"WHERE schemaname = current_schema() "
            f"LOOP EXECUTE format('ALTER {kind.upper()} %I OWNER TO \"{owner}\"', found); END LOOP; END $$;"
        )
    for function in ("flowtrail_append_only", "flowtrail_make_partitions"):
        yield f'ALTER FUNCTION {function}() OWNER TO "{owner}";'
    yield from _in_schema(f'GRANT USAGE, CREATE ON SCHEMA %I TO "{owner}"')
    yield from _in_schema(f'REVOKE CREATE ON SCHEMA %I FROM PUBLIC, "{writer}", "{reader}"')
    yield from _in_schema(f'REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM PUBLIC, "{writer}", "{reader}"')
    yield from _in_schema(f'GRANT USAGE ON SCHEMA %I TO "{writer}", "{reader}"')
    yield from _in_schema(f'GRANT SELECT ON ALL TABLES IN SCHEMA %I TO "{writer}", "{reader}"')
    yield from _in_schema(f'REVOKE ALL ON ALL SEQUENCES IN SCHEMA %I FROM PUBLIC, "{writer}", "{reader}"')
    yield from _in_schema(f'GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO "{writer}", "{reader}"')
    yield from _in_schema(f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA %I TO "{writer}"')
    yield f'GRANT INSERT ON {_TRAIL} TO "{writer}";'
    yield f'GRANT UPDATE ({_HEAD}) ON trail TO "{writer}";'
    yield f'GRANT INSERT, UPDATE, DELETE ON {_LISTS} TO "{writer}";'


def _in_schema(statement: str) -> Iterator[str]:
    yield f"DO $$ BEGIN EXECUTE format('{statement}', current_schema()); END $$;"
