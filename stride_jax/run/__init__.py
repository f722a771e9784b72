"""A run: its settings, stages, products, plan and jobs."""
