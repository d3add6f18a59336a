"""Run a model as fast as the machine can: folded batch norms, channels-last memory, bfloat16, int8, compilation."""
