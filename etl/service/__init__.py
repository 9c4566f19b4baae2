"""The background service: the replica, its scheduler, its maintenance and its metrics."""
