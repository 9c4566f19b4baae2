"""A local EnOS gateway and a small deterministic world behind it, for ``flowtrail demo``; tests/support extends it."""
