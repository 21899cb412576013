"""`python -m service.cli`: the program `convoy`."""

from service.cli import main

main()
