"""What Flowtrail costs, beside what else would do the job; ``benchmarks/README.md`` says how to ask."""
