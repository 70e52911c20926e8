"""`python -m lensmith.fleet.child PARENT COMMAND…` becomes COMMAND, which gets TERM when PARENT dies.

It is a program of its own because code between fork and exec can hang in a process with threads, as Ray's workers are.
"""

import os
import sys

from lensmith.process import stopping

if __name__ == "__main__":
    stopping.follow(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606, no shell is wanted
