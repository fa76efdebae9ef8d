"""`python -m fairhuman` is the command `fairhuman`; alone, it is `fairhuman doctor`."""

import sys

from fairhuman.cli import main

sys.exit(main(sys.argv[1:] or ["doctor"]))
