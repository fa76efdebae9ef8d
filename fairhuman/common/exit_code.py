"""From a rank's work to the exit code of its process, and to one line for what went wrong."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from tqdm import tqdm

from fairhuman.common.distributed import PeerError, peer_lost, rank, rank_count, timed_out
from fairhuman.common.error_text import first_line, located
from fairhuman.common.errors import OutputError, StoppedError, UserError
from fairhuman.common.last_words import heard, spoken


def exit_code(work: Callable[[], int], output: str) -> int:
    """Do a rank's work and return the process's exit code: the work's, or that of its error.

    That of a UserError, which is printed as it is; 1: another rank ended, in one line. A
    bug keeps its traceback, on the rank where it happened.

    Args:
        work: the whole of it.
        output: what an error of the disk is about if it does not say.
    """
    try:
        return work()
    except StoppedError as error:
        if rank() == 0:
            _complain(str(error))
        return error.exit_code
    except UserError as error:
        # What all ranks know of is said once; what only one met, such as a lost file, by that one.
        speaks = rank() == 0 or (isinstance(error, OutputError) and not error.shared)
        if speaks or not heard():
            _say(str(error))
        return error.exit_code
    except OSError as error:  # of a disk, wherever it was met; never worth a traceback
        _say(located(error, output if error.errno else None))
        return 2
    except PeerError as error:
        heard()
        _complain(str(error))
        return 1
    except Exception as error:
        if timed_out(error):
            _say(
                f"rank {rank()}: another rank took longer than train.timeout allows; raise it if "
                f"that rank was at work ({first_line(error)})"
            )
            return 1
        if peer_lost(error):
            why = f"another rank has ended, and says why itself ({first_line(error)})"
            _complain(f"rank {rank()}: {why}")
            return 1
        if rank_count() == 1:
            raise
        _say(traceback.format_exc().rstrip())
        return 1


def _say(message: str) -> None:
    """Print why the run ends, and let the ranks end that wait for it."""
    _complain(message)
    spoken()


def _complain(message: str) -> None:
    """Print to stderr, on a line of its own where there is a progress bar."""
    tqdm.write(message, file=sys.stderr)
