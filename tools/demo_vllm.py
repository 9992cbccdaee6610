#!/usr/bin/env python3
"""Asks one long document questions through vLLM's OpenAI API, without semkv and with it.

Starts vLLM's server twice on the CPU, sends the document of models/demo with each question, and
prints the answers, how long a token took, and what semkv read. `make demo-vllm` runs it in a
virtual environment that has vLLM and the semkv wheel.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "semkv-tiny"
DEMO = ROOT / "models" / "demo"


class Server:
    """A context manager: vLLM's server; `switch` is the value of SEMKV_VLLM, None for stock."""

    def __init__(self, port, switch, log):
        env = dict(os.environ, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
                   VLLM_NO_USAGE_STATS="1")
        env.pop("SEMKV_VLLM", None)
        if switch is not None:
            env["SEMKV_VLLM"] = switch
        self._url = f"http://127.0.0.1:{port}"
        self._log = log
        self._process = subprocess.Popen(
            # As `vllm serve` does; the command of the package vllm-cpu looks for a package vllm.
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL),
             "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16",
             "--max-model-len", "16384", "--enforce-eager"],
            env=env, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self):
        for _ in range(300):
            if self._process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self._url + "/health", timeout=2).close()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        self.__exit__()
        raise SystemExit(f"vLLM's server did not start; its output is in {self._log.name}")

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def complete(self, prompt, max_tokens):
        """(text, seconds to the first token, seconds per token after it)."""
        body = json.dumps({"model": str(MODEL), "prompt": prompt, "max_tokens": max_tokens,
                           "temperature": 0, "stream": True, "ignore_eos": True}).encode()
        request = urllib.request.Request(self._url + "/v1/completions", body,
                                         {"Content-Type": "application/json"})
        start, times, text = time.monotonic(), [], ""
        with urllib.request.urlopen(request, timeout=600) as reply:
            for line in reply:
                if not line.startswith(b"data: {"):
                    continue
                times.append(time.monotonic())
                text += json.loads(line[6:])["choices"][0]["text"]
        return text, times[0] - start, (times[-1] - times[0]) / max(1, len(times) - 1)


def ask(server, document, questions, max_tokens):
    """[(answer, first, each)]; the first question also pays for the document."""
    results = []
    for question in questions:
        text, first, each = server.complete(document + question["question"], max_tokens)
        # The model goes on with questions of its own.
        results.append((text.split("\n")[0], first, each))
    return results


def show(name, questions, results, report):
    right = sum(r[0].startswith(q["answer"]) for q, r in zip(questions, results))
    each = sorted(r[2] for r in results)[len(results) // 2]
    print(f"\n{name}: {right} of {len(questions)} answers right, document and first token "
          f"{results[0][1]:.2f} s, {1 / each:.0f} tokens per second (median)")
    for question, result in zip(questions, results):
        asked = question["question"].split("?")[0].replace("\nQuestion: ", "")
        print(f"  {asked + '?':60s} {result[0].strip()}")
    for line in report.splitlines():
        if line.startswith(("rows of", "sequences", "read by")):
            print(f"  {line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--semkv", default="hybrid,budget=1024", help="value of SEMKV_VLLM")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--port", type=int, default=8321)
    arguments = parser.parse_args()
    document = (DEMO / "harbour_report.txt").read_text()
    questions = json.loads((DEMO / "questions.json").read_text())["questions"]
    questions = questions[:arguments.questions]
    with tempfile.TemporaryDirectory() as folder, \
            open(os.path.join(tempfile.gettempdir(), "semkv-demo-vllm.log"), "w") as log:
        report = os.path.join(folder, "report.txt")
        for name, switch in [("stock vLLM", None),
                             ("with semkv", f"{arguments.semkv},report={report}")]:
            print(f"starting {name} ...", flush=True)
            with Server(arguments.port, switch, log) as server:
                results = ask(server, document, questions, arguments.max_tokens)
                if switch is not None:
                    time.sleep(1.1)  # the report is written once a second, by a step
                    server.complete(document[-4000:], 2)
            text = pathlib.Path(report).read_text() if switch is not None else ""
            show(name, questions, results, text)


if __name__ == "__main__":
    main()
