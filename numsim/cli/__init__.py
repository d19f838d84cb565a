"""The command line: each module parses, calls and prints for the commands that it is named after.

``entry`` starts it (signals, warnings, exit codes); ``options`` are what several commands share;
``screen`` and ``questions`` are tables on a terminal.
"""

from numsim.cli.entry import app, main

__all__ = ["app", "main"]
