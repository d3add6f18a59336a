"""2D model -> plan -> 3D model -> proof."""
