"""From a checkpoint file to our state dict: catalogue, fetching, formats, names."""
