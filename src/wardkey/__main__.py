"""`python -m wardkey` is the command line."""

from wardkey.cli import main

main()
