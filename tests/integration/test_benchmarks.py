"""The Python benchmarks still run, with little to do; of what they print the last line is looked at."""
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent.parent / "benchmarks"
pytest.importorskip("vllm")


@pytest.mark.parametrize("command, says", [
    ("hf_decode.py --context 600 --budget 256 --steps 2", "semkv / stock"),
    ("hf_misses.py --kind facts4 --tokens 1000 --documents 1", "hybrid"),
    ("vllm_decode.py --contexts 4096", "4096"),
    ("vllm_prompt.py --context 3000 --chunk 1024", "first decode step"),
    ("vllm_overhead.py --context 2000 --steps 5", "1 row(s): per layer"),
])
def test_a_benchmark_runs(command, says):
    name, *arguments = command.split()
    done = subprocess.run([sys.executable, str(FOLDER / name), *arguments], text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert says in done.stdout.splitlines()[-1], done.stdout
