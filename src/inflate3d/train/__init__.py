"""Training: recipes, data, the Lightning module; needs the extra `train`."""
