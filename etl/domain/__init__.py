"""Values and rules of what is recorded: pure, and importing nothing else of Flowtrail."""
