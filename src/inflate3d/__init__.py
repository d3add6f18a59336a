"""Inflate any 2D image network into a 3D one, provably; and I3D to the last digit."""
