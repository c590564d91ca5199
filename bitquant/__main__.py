"""``python -m bitquant``."""

from bitquant.cli import main

main(prog_name="bitquant")
