"""Runs a program that gets a signal when the process that started it dies.

A script of its own (`python -I -S die_with_parent.py PARENT_PID SIGNAL PROGRAM [ARGUMENT...]`), since `prctl` must be
called in the child, and Python code between fork and exec can deadlock where the parent has threads. It costs 20 ms.
Linux only; elsewhere what is left over is found and ended at the next start.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sys.argv[2])) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the line above, so no signal will come
        sys.exit("the parent is gone")
    os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
