"""The values that are recorded, and the rules for them: pure, without an import from elsewhere in Flowtrail."""
