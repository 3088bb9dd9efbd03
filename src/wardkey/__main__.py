"""The entry point of `python -m wardkey`."""

from wardkey.cli import main

main()
