#!/usr/bin/env python3
"""Runs what `make gpu-build` made on this machine's GPU: the tests, the tests under
compute-sanitizer's tools, the benchmark, and other libraries' kernels beside it where torch can be
imported. Writes gpu.md, the goals beside what was measured first, and gpu.json into the folder of
results; ends with status 1 if anything failed, 2 without a GPU. --not-run writes the goals alone.
Standard library only.
"""
import argparse
import concurrent.futures
import datetime
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

import gpu_goals

SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TEST_SECONDS, SANITIZER_SECONDS, BENCH_SECONDS, PEER_SECONDS = 60, 40, 180, 90
# What is measured once more with launches that do not overlap.
IN_TURN = "attend"


def run(command, seconds, environment=None):
    """(what it came to, seconds, output): "passed", "failed" or "timed out"."""
    start = time.monotonic()
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                              timeout=seconds, env=environment)
        verdict = "passed" if done.returncode == 0 else "failed"
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as expired:
        verdict, output = "timed out", (expired.stdout or b"").decode(errors="replace")
    return verdict, time.monotonic() - start, output


def unpack_programs(folder):
    """Beside their archive; their libraries in the search path of what runs after this. Returns the
    environment before, for programs of the machine's own, which may need newer libraries."""
    environment = dict(os.environ)
    libraries = folder / "lib"
    if not libraries.is_dir():
        with tarfile.open(folder / "programs.tar.xz") as packed:
            packed.extractall(folder)
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return environment


def gpu_name():
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                               "--format=csv,noheader"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def run_tests(folder, results):
    commands = {test.name: [test, "--gtest_brief=1"] for test in sorted(folder.glob("*_cuda_test"))}
    # What is timed later, at a 64th of its size, against the references.
    commands["semkv_bench --gpu --check"] = [folder / "semkv_bench", "--gpu", "--check"]
    for name, command in commands.items():
        verdict, seconds, output = run(command, TEST_SECONDS)
        print(f"{name:32} {verdict:10} {seconds:6.1f} s", flush=True)
        if verdict != "passed":
            print(output[-4000:])
        results["tests"].append({"name": name, "verdict": verdict, "seconds": seconds})


def run_sanitizers(folder, results):
    """Every test under every tool, four at a time: they wait for the host most of the time."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(tool):
        print("compute-sanitizer: not found")
        return
    jobs = [(test, name) for name in SANITIZERS for test in sorted(folder.glob("*_cuda_test"))]

    def sanitize(job):
        test, name = job
        return job, run([tool, "--tool", name, "--error-exitcode", "1", test, "--gtest_brief=1"],
                        SANITIZER_SECONDS)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for (test, name), (verdict, seconds, output) in pool.map(sanitize, jobs):
            print(f"{name:10} {test.name:32} {verdict:10} {seconds:6.1f} s", flush=True)
            if verdict == "failed":
                print(output[-2000:])
            results["sanitizers"].append({"tool": name, "name": test.name, "verdict": verdict,
                                          "seconds": seconds})


def run_benchmark(folder, results, environment):
    path = folder / "bench.json"
    verdict, seconds, output = run([folder / "semkv_bench", "--gpu", "--json", path], BENCH_SECONDS)
    print(output, f"semkv_bench --gpu: {verdict}, {seconds:.0f} s", flush=True)
    results["benchmark"] = json.loads(path.read_text()) if path.exists() else {}
    results["benchmark_verdict"] = verdict
    run_in_turn(folder, results)
    times = folder / "peers.json"
    verdict, _, output = run([sys.executable, folder / "gpu_peers.py", times], PEER_SECONDS,
                             environment)
    print(output, flush=True)
    results["peers"] = output.splitlines()
    if verdict != "passed":
        results["peers"].append(f"gpu_peers.py {verdict}")
    results["peer_times"] = json.loads(times.read_text()) if times.exists() else []


def run_in_turn(folder, results):
    path = folder / "bench_in_turn.json"
    path.unlink(missing_ok=True)
    os.environ["SEMKV_CUDA_OVERLAP"] = "0"
    verdict, seconds, _ = run([folder / "semkv_bench", "--gpu", "--filter", IN_TURN, "--json", path],
                              BENCH_SECONDS)
    del os.environ["SEMKV_CUDA_OVERLAP"]
    print(f"semkv_bench --gpu --filter {IN_TURN}, launches in turn: {verdict}, {seconds:.0f} s",
          flush=True)
    cases = json.loads(path.read_text())["cases"] if path.exists() else []
    results["in_turn_verdict"] = verdict
    results["us_in_turn"] = {case["name"]: case["median_us"] for case in cases}


def times(results):
    bench, in_turn = results["benchmark"], results.get("us_in_turn", {})
    lines = ["", "## Times", "",
             f"A copy within the GPU: {bench['memory_gbs']:.0f} GB/s, read and written; from the "
             f"host: {bench['bus_gbs']:.1f} GB/s. benchmarks/cuda says what is measured. A kernel of "
             "a decode step is set up while the one before it runs, which here is also the last one "
             "of the layer before; \"in turn\": without that (SEMKV_CUDA_OVERLAP=0).", "",
             "| case | layers | us | in turn | floor us | ratio |", "|---|--:|--:|--:|--:|--:|"]
    for c in bench.get("cases", []):
        turn = in_turn.get(c["name"])
        lines.append(f"| {c['name']} | {c['layers']} | {c['median_us']:.2f} | "
                     f"{'' if turn is None else f'{turn:.2f}'} | {c['floor_us']:.2f} | "
                     f"{c['median_us'] / c['floor_us']:.2f} |")
    return lines


def write_table(results, path):
    lines = ["# CUDA kernels on a GPU", "", results["heading"], "", "## Goals", "",
             "Llama-3-8B's layer in bfloat16; the cases are in benchmarks/cuda, the formulas in "
             "tools/gpu_goals.py.", "", *gpu_goals.table(results)]
    if not results["gpu"]:
        path.write_text("\n".join(lines) + "\n")
        return
    lines += ["", "## Tests", "",
              *(f"- {t['name']}: {t['verdict']}, {t['seconds']:.1f} s" for t in results["tests"]),
              "", "## compute-sanitizer", "",
              *(f"- {t['tool']} {t['name']}: {t['verdict']}" for t in results["sanitizers"])]
    if results["benchmark"]:
        lines += times(results)
    lines += ["", "## Beside it", "", *(f"- {line}" for line in results["peers"])]
    path.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="what make gpu-build made")
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--not-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.not_run:
        write_table({"gpu": None, "heading": "Not run on a GPU so far. `make gpu-check` on a machine "
                     "with one writes this page."}, arguments.results / "gpu.md")
        return 0
    gpu = gpu_name()
    if gpu is None:
        print("gpu_check: nvidia-smi finds no GPU here", file=sys.stderr)
        return 2
    folder = arguments.folder.resolve()
    environment = unpack_programs(folder)
    date, commit = datetime.date.today().isoformat(), (folder / "COMMIT").read_text().strip()
    results = {"gpu": gpu, "date": date, "commit": commit,
               "heading": f"`make gpu-check` wrote this on {date}: {gpu}, commit {commit}.",
               "tests": [], "sanitizers": [], "benchmark": {}, "peers": [], "peer_times": []}
    print(gpu, commit)
    arguments.results.mkdir(parents=True, exist_ok=True)
    for stage in (run_tests, functools.partial(run_benchmark, environment=environment),
                  run_sanitizers):
        stage(folder, results)
        # After each: a lent machine may be taken back before the last.
        (arguments.results / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
        write_table(results, arguments.results / "gpu.md")
    verdicts = [item["verdict"] for item in results["tests"] + results["sanitizers"]]
    failed = verdicts.count("failed") + sum(
        results[run] != "passed" for run in ("benchmark_verdict", "in_turn_verdict"))
    print(f"gpu_check: {verdicts.count('passed')} passed, {failed} failed, "
          f"{verdicts.count('timed out')} timed out; {arguments.results}/gpu.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
