"""A clip and any model: plain results."""
