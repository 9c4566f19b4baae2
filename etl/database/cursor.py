"""The cursor of a streamed read on PostgreSQL. Needs the driver: import it only where there is a connection."""

from __future__ import annotations

from typing import Any

import psycopg


class StreamCursor(psycopg.ServerCursor[Any]):
    """Closes silently when the connection is lost: the next statement or COMMIT reports that.

    The server keeps the cursor, so nothing is left to close. But SQLAlchemy never closes the cursor of a statement that
    loses the connection, and psycopg fails if the answer to its CLOSE is lost.
    """

    def close(self) -> None:
        """As psycopg's, but also succeeds if the connection is lost."""
        try:
            super().close()
        except psycopg.OperationalError:
            if not self.connection.closed:
                raise

    def __del__(self, *given: Any) -> None:
        if not self.connection.closed:
            super().__del__(*given)
