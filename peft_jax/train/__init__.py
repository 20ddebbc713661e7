"""Training: the loop, its data, evaluation and what a run writes down."""
