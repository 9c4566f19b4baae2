"""A simulated organisation whose true history is known, and the events that are derived for it."""
