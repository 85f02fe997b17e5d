"""The metric exact_match_by_family, as `evaluate` loads it."""
