"""`python -m lensmith.fleet.child PARENT COMMAND…` becomes COMMAND, which gets TERM when PARENT dies.

A program of its own: code between fork and exec could hang in a process that has threads, as Ray's workers do.
"""

import os
import sys

from lensmith.process import stopping

if __name__ == "__main__":
    stopping.follow(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606, no shell is wanted
