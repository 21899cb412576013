"""Training: the loop, recipes, optimisers, checkpoints, several processes."""
