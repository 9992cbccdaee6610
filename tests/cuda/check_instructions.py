#!/usr/bin/env python3
"""Looks in the machine code of every kernel for the instructions that it is meant to use.

Each line of the table is a kernel's name without its template arguments, then what every instance
must have. The instructions are found by their opcodes (cuobjdump is not part of every toolkit), which
are those of sm_80 to sm_90a. Device code must not be compressed (nvcc -no-compress).

ACQBULK is WaitForPreviousKernel() of csrc/ops/cuda/dependent_launch.cuh, from sm_90 on: where a kernel
has it, no access to global memory may come before it, wherever the compiler would like to have it.

Usage: check_instructions.py TABLE FOLDER ARCHITECTURE
"""

import argparse
import pathlib
import struct
import sys

from check_resources import demangle, readable

EM_CUDA = 190
INSTRUCTION_BYTES = 16
OPCODES = {0x23c: "HMMA", 0x237: "IMMA", 0x83b: "LDSM", 0xfae: "LDGSTS", 0x981: "LDG", 0x986: "STG",
           0x980: "LD", 0x985: "ST", 0x9a8: "ATOMG", 0x98e: "RED", 0x82e: "ACQBULK", 0x82d: "PREEXIT"}
SIZED = {"LDG", "STG", "LDGSTS"}
GLOBAL = {"LDG", "STG", "LDGSTS", "LD", "ST", "ATOMG", "RED"}
FROM_SM_90 = {"ACQBULK", "PREEXIT"}
WIDEST = 6  # of the three bits that give an access's size: 16 bytes


def instructions(code):
    """{name: how many} of one kernel's machine code; accesses of 16 bytes have names of their own.

    EARLY: accesses to global memory before the first ACQBULK of a kernel that has one.
    """
    found = {}
    accesses = 0
    for low, high in struct.iter_unpack("<QQ", code):
        name = OPCODES.get(low & 0xfff)
        accesses += name in GLOBAL
        if name == "ACQBULK" and name not in found and accesses > 0:
            found["EARLY"] = accesses
        if name in SIZED and high >> 9 & 7 == WIDEST:
            name += ".128"
        if name is not None:
            found[name] = found.get(name, 0) + 1
    return found


def kernels_of_elf(elf):
    """Yields (mangled name, machine code) of a CUDA ELF image that begins at the first byte."""
    table, = struct.unpack_from("<Q", elf, 0x28)
    entry_bytes, count, names_index = struct.unpack_from("<HHH", elf, 0x3a)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_bytes) for i in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, size in headers:
        begin = names + name
        text = elf[begin:elf.index(0, begin)].decode()
        if text.startswith(".text."):
            yield text[len(".text."):], elf[offset:offset + size // INSTRUCTION_BYTES * INSTRUCTION_BYTES]


def kernels_of_object(path):
    data = path.read_bytes()
    at = data.find(b"\x7fELF", 1)  # the first is the host's object file itself
    while at >= 0:
        if struct.unpack_from("<H", data, at + 18)[0] == EM_CUDA:
            yield from kernels_of_elf(data[at:])
        at = data.find(b"\x7fELF", at + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("architecture", type=int, help="80, 90")
    arguments = parser.parse_args()
    found = {name: instructions(code) for path in sorted(arguments.folder.rglob("*.cu.o"))
             for name, code in kernels_of_object(path)}
    kernels = dict(zip(map(readable, demangle(found)), found.values()))
    wanted = {}
    for line in arguments.table.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, *needed = line.split()
            wanted[name] = [n for n in needed
                            if n not in FROM_SM_90 or arguments.architecture >= 90]
    problems = [f"{name}: in the table, but no such kernel" for name in wanted
                if name not in {kernel.partition("<")[0] for kernel in kernels}]
    for kernel, counts in sorted(kernels.items()):
        print(kernel, *(f"{name} {count}" for name, count in sorted(counts.items())), sep="  ")
        problems += [f"{kernel}: no {name}" for name in wanted.get(kernel.partition("<")[0], [])
                     if name not in counts]
        if "EARLY" in counts:
            problems.append(f"{kernel}: {counts['EARLY']} global accesses before ACQBULK")
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
