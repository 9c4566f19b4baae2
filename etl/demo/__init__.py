"""A local EnOS gateway and a small deterministic world behind it, for the demo, the tests and the benchmarks."""
