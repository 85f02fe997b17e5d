"""Which plan meets a limit: costs are predicted, the few plans that come into question are tried, the best is kept."""
