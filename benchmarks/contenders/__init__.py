"""Who is measured. A module has ``set_up(job)``, ``prepare(job)``, which gives the work to measure, and ``HOLDS``."""

from typing import NamedTuple


class Holds(NamedTuple):
    """What a contender's database must hold after each phase."""

    current: str
    """Gives org_id, user_id, flow_id, flow_name, cycle and editable of every workflow that it thinks exists."""
    trail: str = ""
    """Counts the rows of its history, where it keeps one."""
    closes_rows: bool = False
    """A removal ends a row of the history, and makes none."""
    quiet_writes: bool = True
    """False: in the phase *quiet* it only fetches and hashes."""
    leaves_removed_on: tuple[str, ...] = ()
    """Databases on which it takes removed workflows for existing ones."""
    quiet_statements: tuple[int, int] | None = None
    """The most that it may send in the phase *quiet*: in a run, and for each 500 targets."""
    quiet_rows: tuple[int, int] | None = None
    """The most rows that it may read then: in a run, and for each target."""
