"""`python -m inflate3d` is the command `inflate3d`."""

from inflate3d.cli import main

main()
