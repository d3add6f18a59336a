"""From a file to a Clip: reading, sampling, transforming."""
