"""``python -m numsim.cli`` is ``numsim``."""

from numsim.cli.entry import main

main()
