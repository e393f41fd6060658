"""Runs the commands: `python -m bitzoo`."""

from bitzoo.cli.main import main

if __name__ == "__main__":
    main()
