"""What a model costs in its three budgets, and plans that spend less."""
