#!/usr/bin/env python3
"""The table of GPU goals (tools/gpu_goals.py) against the benchmark's cases and by hand.

Usage: check_goals.py BENCHMARK REPOSITORY
"""
import pathlib
import subprocess
import sys
import tempfile

BENCHMARK, ROOT = sys.argv[1], pathlib.Path(sys.argv[2])
sys.path.insert(0, str(ROOT / "tools"))
import gpu_goals  # noqa: E402


def cells(results):
    """{(goal, what): (measured, verdict)}"""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in gpu_goals.table(results)]
    return {(row[0], row[1]): (row[3], row[4]) for row in rows[2:]}


def measured(names, us=10.0, floor_us=5.0):
    """As if every case had taken as long, the peers twice that, and all tests had passed."""
    return {"benchmark": {"memory_gbs": 4000.0, "bus_gbs": 50.0,
                          "cases": [{"name": name, "median_us": us, "floor_us": floor_us}
                                    for name in names]},
            "peer_times": [{"rows": rows, "tokens": tokens, "us": 2 * us}
                           for rows in (1, 8) for tokens in (32768, 131072, 1048576)],
            "tests": [{"name": "device_context_cuda_test", "verdict": "passed"}]}


def main():
    listed = subprocess.run([BENCHMARK, "--list"], check=True, capture_output=True, text=True)
    names = listed.stdout.split()
    not_run = cells({})
    full = cells(measured(names))
    assert not_run.keys() == full.keys() and len(full) >= 30, len(full)
    for key, (value, verdict) in not_run.items():
        assert value.startswith("not ") and not verdict, (key, value)
    for key, (value, _) in full.items():
        # A goal whose case is not in the benchmark would stay so for ever.
        assert value != "not run", key
    by_goal = {}
    for (goal, _), cell in full.items():
        by_goal.setdefault(goal, []).append(cell)
    assert by_goal["G1"] == [("2", "holds")], by_goal["G1"]
    assert by_goal["G2"] == [("0.5", "missed")] * 2, by_goal["G2"]
    assert by_goal["G6"] == [("0.5", "holds")] * 2, by_goal["G6"]
    assert by_goal["G8"] == [("1", "missed")], by_goal["G8"]
    assert by_goal["G11"] == [("0.5", "holds")], by_goal["G11"]
    assert by_goal["A23"] == [("0", "holds")], by_goal["A23"]
    assert by_goal["A22"] == [("passed", "")], by_goal["A22"]
    # 469 MB of weights are 117 us here: (117 + 10 + 5) / (117 + 10 + 10).
    assert by_goal["G9"] == [("0.964", "holds"), ("0.5", "")], by_goal["G9"]

    page = (ROOT / "docs/results/gpu.md").read_text()
    if "Not run on a GPU so far" in page:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, ROOT / "tools/gpu_check.py", "none", folder,
                            "--not-run"], check=True)
            assert (pathlib.Path(folder) / "gpu.md").read_text() == page, \
                "docs/results/gpu.md: run tools/gpu_check.py build/gpu docs/results --not-run"


if __name__ == "__main__":
    main()
