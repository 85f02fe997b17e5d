"""Models that are pruned already: training them with their zeros kept, fully or by LoRA."""
