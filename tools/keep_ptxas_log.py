#!/usr/bin/env python3
"""Runs nvcc and puts what ptxas says about its kernels into OBJECT.ptxas, not onto the screen.

CMake calls it as the compiler's launcher (cmake/Cuda.cmake). Everything else nvcc says is passed on.
Usage: keep_ptxas_log.py nvcc ... -o OBJECT
"""

import pathlib
import re
import subprocess
import sys

# Lines of `ptxas -v`; "bytes stack frame" is its only line without a prefix.
PTXAS = re.compile(r"^ptxas info|^\s+\d+ bytes stack frame")


def main():
    command = sys.argv[1:]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = run.stdout.splitlines(keepends=True)
    sys.stdout.writelines(line for line in lines if not PTXAS.match(line))
    if run.returncode == 0 and "-o" in command:
        target = command[command.index("-o") + 1]
        pathlib.Path(target + ".ptxas").write_text("".join(line for line in lines if PTXAS.match(line)),
                                                   encoding="utf-8")
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
