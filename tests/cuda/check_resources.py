#!/usr/bin/env python3
"""Prints each kernel's registers, spills, stack and shared memory, and compares them with a table.

Fails for a kernel that spills or uses local memory, that uses more registers or shared memory than
its line in the table says, that has no line, and for a line without a kernel. Fewer is fine and is
printed. The numbers belong to one nvcc and one architecture, named in the table's first line; with
others there is nothing to compare (exit status 77, which ctest counts as skipped) but spills.

Usage: check_resources.py TABLE FOLDER "nvcc VERSION sm_ARCHITECTURE" [--update]
"""

import argparse
import pathlib
import re
import subprocess
import sys

ENTRY = re.compile(r"Compiling entry function '([^']+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
SKIPPED = 77
DTYPES = ["float32", "float16", "bfloat16", "e4m3"]  # semkv::DType


def demangle(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return text.stdout.splitlines()


def readable(name):
    """WriteKvKernel<float32, float16, WriteKvUnit 1> of c++filt's name; instances stay apart."""
    name = re.sub(r"^void |\([^()]*\)$", "", name)
    for number, dtype in enumerate(DTYPES):
        name = name.replace(f"(semkv::DType){number}", dtype)
    name = re.sub(r"\((\w+::)*(\w+)\)(\d+)", r"\2 \3", name)
    return re.sub(r"^(\w+::)*", "", name)


def read_logs(folder):
    """{kernel: (registers, shared bytes, local bytes)} of every .ptxas file below `folder`."""
    found = {}
    for path in sorted(folder.rglob("*.ptxas")):
        name, local = None, 0
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := ENTRY.search(line):
                name, local = match[1], 0
            elif match := FRAME.search(line):
                local = sum(int(x) for x in match.groups())
            elif (match := USED.search(line)) and name is not None:
                shared = SHARED.search(line)
                found[name] = (int(match[1]), int(shared[1]) if shared else 0, local)
                name = None
    return dict(zip((readable(name) for name in demangle(found)), found.values()))


def read_table(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    table = {}
    for line in lines[1:]:
        registers, shared, name = line.split(maxsplit=2)
        if registers.isdigit():
            table[name] = (int(registers), int(shared))
    return lines[0], table


def write_table(path, toolchain, kernels):
    lines = [toolchain, "registers  shared  kernel"]
    lines += [f"{r:9}  {s:6}  {name}" for name, (r, s, _) in sorted(kernels.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare(kernels, table):
    problems = []
    for name, (registers, shared, _) in kernels.items():
        if name not in table:
            problems.append(f"{name}: not in the table")
        elif registers > table[name][0] or shared > table[name][1]:
            problems.append(f"{name}: {registers} registers and {shared} bytes of shared memory, "
                            f"{table[name][0]} and {table[name][1]} in the table")
        elif (registers, shared) != table[name]:
            print(f"{name}: less than in the table ({table[name][0]}, {table[name][1]})")
    problems += [f"{name}: in the table, but no such kernel" for name in table if name not in kernels]
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("toolchain")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    kernels = read_logs(arguments.folder)
    for name, (registers, shared, local) in sorted(kernels.items()):
        print(f"{registers:4} registers {shared:6} bytes shared {local:4} bytes local  {name}")
    problems = [f"{name}: {local} bytes of spills and local memory"
                for name, (_, _, local) in kernels.items() if local != 0]
    if not kernels:
        problems.append(f"no kernel in {arguments.folder}: is semkv_cuda built?")
    if arguments.update and not problems:
        write_table(arguments.table, arguments.toolchain, kernels)
        return 0
    toolchain, table = read_table(arguments.table)
    if toolchain == arguments.toolchain:
        problems += compare(kernels, table)
    for problem in problems:
        print(f"FAILED {problem}")
    if problems:
        print(f"If that is meant: {' '.join(sys.argv[:3])} '{arguments.toolchain}' --update, and say why "
              "in the kernel's page.")
        return 1
    if toolchain != arguments.toolchain:
        print(f"the table is of {toolchain}, this build of {arguments.toolchain}: not compared")
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
