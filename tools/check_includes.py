#!/usr/bin/env python3
"""Includes go one way (docs/design.md, section 3).

    include <- csrc/ops <- {block_manager, faiss_index} <- csrc/api <- integration

Checks every #include of the tree against the table below, that CUDA's headers stay in files that nvcc
compiles and in *_cuda.h and *_cuda.cc, and that Python imports torch and engines only where ENGINE_FOLDERS says, and
prints each line that breaks it.
Usage: check_includes.py [ROOT]
"""

import pathlib
import re
import sys

# room -> (project folders it may include, libraries it may include)
ROOMS = {
    "include/semkv": (["include/semkv"], []),
    "csrc/ops": (["include/semkv", "csrc/ops"], ["hwy", "cuda_runtime.h", "cuda_runtime_api.h"]),
    "block_manager": (["include/semkv", "csrc/ops", "csrc/status_macros.h", "block_manager"], ["absl"]),
    "faiss_index": (["include/semkv", "csrc/ops", "csrc/status_macros.h", "faiss_index"], ["absl", "faiss"]),
    "csrc/status_macros.h": ([], ["absl"]),
    "csrc/api": (
        ["include/semkv", "csrc/ops", "csrc/status_macros.h", "csrc/api", "block_manager", "faiss_index"],
        ["absl", "cuda_runtime_api.h"],
    ),
    "integration": (
        ["include/semkv/semkv.h", "integration"],
        ["absl", "nlohmann", "CLI", "cblas.h", "pcre2.h"],
    ),
    "tests": (None, None),
    "benchmarks": (None, None),
}
LIBRARIES = ["absl", "hwy", "faiss", "nlohmann", "CLI", "cblas.h", "pcre2.h", "torch", "benchmark", "gtest",
             "cuda_runtime.h", "cuda_runtime_api.h", "boost"]
# Top-level folders, each with its one reason to exist; a new one needs a line here.
FOLDERS = {
    "block_manager", "benchmarks", "cmake", "csrc", "docs", "faiss_index", "include", "integration",
    "models", "tests", "tools",
}
# Packages of engines, and where Python may import them: the adapters, their tests and benchmarks,
# and tools that make fixtures or train the model.
ENGINES = re.compile(r"^\s*(?:import|from)\s+(torch|vllm|sglang|transformers)\b")
ENGINE_FOLDERS = ("integration/semkv/", "integration/examples/", "tests/integration/",
                  "benchmarks/vllm_", "benchmarks/hf_", "benchmarks/gpu_peers", "tools/")
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')
SOURCE = {".h", ".cc", ".c", ".cu", ".cuh"}
# Words that say nothing as the name of a file or folder: a function lives with its noun.
VAGUE = re.compile(r"(^|/)(utils?|common|helpers?|misc|base)(\.[a-z]+)?(/|$)")


def room_of(path):
    best = None
    for room in ROOMS:
        if path == room or path.startswith(room + "/"):
            best = room if best is None or len(room) > len(best) else best
    return best


def check_include(path, room, bracket, target):
    """The rule an include breaks, or None."""
    folders, libraries = ROOMS[room]
    if folders is None:
        return None
    if target.startswith("cuda_") and not path.endswith((".cu", ".cuh", "_cuda.h", "_cuda.cc")):
        return "only .cu, .cuh, _cuda.h and _cuda.cc files may include CUDA's headers"
    library = next((name for name in LIBRARIES if target == name or target.startswith(name + "/")), None)
    if library is not None:
        return None if library in libraries else f"{room} may not include {library}"
    project = target if bracket == '"' or target.startswith("semkv/") else None
    if project is None:
        return None  # standard library or CUDA
    full = "include/" + project if project.startswith("semkv/") else project
    if any(full == folder or full.startswith(folder + "/") for folder in folders):
        return None
    return f"{room} may not include {full}"


def check_imports(path, text):
    """Lines of the Python file `path` that import an engine where none may be."""
    if path.startswith(ENGINE_FOLDERS):
        return []
    found = [(number, ENGINES.match(line)) for number, line in enumerate(text.splitlines(), 1)]
    return [f"{path}:{number}: only {', '.join(ENGINE_FOLDERS)} may import {match[1]}"
            for number, match in found if match is not None]


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    problems, count = [], 0
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        top = relative.split("/")[0]
        if top.startswith(".") or top == "build" or "__pycache__" in relative:
            continue
        if path.is_dir() and "/" not in relative and relative not in FOLDERS:
            problems.append(f"{relative}/: no such room; see FOLDERS in tools/check_includes.py")
        if VAGUE.search(relative):
            problems.append(f"{relative}: a name that says nothing")
        if path.suffix == ".py":
            problems += check_imports(relative, path.read_text(encoding="utf-8"))
        if path.suffix not in SOURCE:
            continue
        room = room_of(relative)
        if room is None:
            problems.append(f"{relative}: in no room")
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if match is None:
                continue
            count += 1
            problem = check_include(relative, room, match[1], match[2])
            if problem is not None:
                problems.append(f"{relative}:{number}: {problem}")
    for problem in problems:
        print(problem)
    print(f"{count} includes, {len(problems)} problems")
    return 1 if problems or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
