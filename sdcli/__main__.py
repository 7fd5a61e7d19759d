"""`python -m sdcli` is `sdcli`."""

from sdcli.cli import main

main()
