"""``python -m bitquant``."""

import os
import sys

# python -m looks for every module in the current directory first, and that may be a stranger's model
if sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(os.curdir):
    sys.path.append(sys.path.pop(0))

from bitquant.cli import main  # noqa: E402

main(prog_name="bitquant")
