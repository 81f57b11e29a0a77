"""`python -m tapeseal` is the command `tapeseal`."""

from tapeseal.cli import main

main()
