"""A simulated organisation, whose truth is known, and what is told of it."""
