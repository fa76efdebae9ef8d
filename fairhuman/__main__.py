"""`python -m fairhuman` is the command `fairhuman`."""

import sys

from fairhuman.cli import main

sys.exit(main())
