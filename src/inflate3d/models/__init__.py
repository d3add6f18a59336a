"""I3D and the architectures of its paper."""
