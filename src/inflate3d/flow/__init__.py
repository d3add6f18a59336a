"""Frames to optical flow: TV-L1 and other methods, quantizers, files."""
