"""The cursor of a streamed read on PostgreSQL. Needs the driver: import it where a connection is there."""

from __future__ import annotations

from typing import Any

import psycopg


class StreamCursor(psycopg.ServerCursor[Any]):
    """Ends with its connection, in silence: the statement or the COMMIT that misses the connection says it.

    The server keeps the cursor, so nothing of it is left to close. But SQLAlchemy never closes the cursor of a
    statement that loses the connection, and psycopg fails where the answer to its CLOSE is lost.
    """

    def close(self) -> None:
        """As psycopg's, and done too when the connection is lost on the way."""
        try:
            super().close()
        except psycopg.OperationalError:
            if not self.connection.closed:
                raise

    def __del__(self, *given: Any) -> None:
        if not self.connection.closed:
            super().__del__(*given)
