"""One vLLM engine in a process of its own, driven by JSON lines: its backend is chosen when it is
imported, so stock and semkv cannot live in one process.

As a program: reads {"engine": LLM arguments} and then requests, writes one line per request.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

REPLY = "REPLY "
MODEL = str(pathlib.Path(__file__).resolve().parents[3] / "models" / "semkv-tiny")


class EngineProcess:
    """A context manager around the program. `switch`: the value of SEMKV_VLLM, or None for stock.
    What SEMKV_TEST_SETUP is in `environment`, Python, is run before the engine is made."""

    def __init__(self, switch=None, environment=None, **engine):
        env = dict(os.environ)
        env.pop("SEMKV_VLLM", None)
        env.update({"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}, **(environment or {}))
        if switch is not None:
            env["SEMKV_VLLM"] = switch
        self._errors, self._output = tempfile.TemporaryFile(), []
        self._process = subprocess.Popen([sys.executable, os.path.abspath(__file__)], env=env,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._errors, text=True)
        try:
            self._ask(engine)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def end(self):
        """Lets the process end, which takes a while; close() waits for it."""
        self._process.stdin.close()

    def close(self):
        self.end()
        self._process.wait(60)
        self._process.stdout.close()

    def log(self):
        """What the process has printed, vLLM's log with it."""
        self._errors.seek(0)
        return "".join(self._output) + self._errors.read().decode(errors="replace")

    def _ask(self, message):
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self._process.stdout:
            if line.startswith(REPLY):
                return json.loads(line[len(REPLY):])
            self._output.append(line)
        raise RuntimeError(f"the engine ended:\n{self.log()[-6000:]}")

    def generate(self, prompts, max_tokens, logprobs=0, lora=None, salts=None, **sampling):
        """Continuations, all prompts (lists of ids) at once: [{"ids", "logprobs"}]; greedy, if
        `sampling` is not of another mind. `lora`: folder of an adapter that the requests ask for;
        `salts`: a cache_salt or None for each prompt."""
        return self._ask({"prompts": prompts, "lora": lora, "salts": salts, "sampling": {
            "temperature": 0, "max_tokens": max_tokens, "logprobs": logprobs, **sampling}})

    def schedule(self, requests):
        """Requests that arrive at given steps: [{"arrives", "prompt", "max_tokens", "aborts"}].
        Returns {"ids": per request, "preempted": how many}; the prefix cache is empty at the start."""
        return self._ask({"requests": requests})

    def break_selection(self):
        """From now on the library's semkv_run_layer fails."""
        return self._ask({"break": True})

    def report(self):
        """{"text": explain(), "rss": bytes, "kernels": vLLM's for attention, "groups": [{"counts",
        "stats", ...}]} of the engine's process."""
        return self._ask({"report": True})


def _generate(llm, message):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    params = SamplingParams(ignore_eos=True, **message["sampling"])
    prompts = [{"prompt_token_ids": ids} for ids in message["prompts"]]
    for prompt, salt in zip(prompts, message["salts"] or []):
        if salt is not None:
            prompt["cache_salt"] = salt
    lora = message["lora"] and LoRARequest("adapter", 1, message["lora"])
    return [{"ids": list(o.outputs[0].token_ids),
             "logprobs": [step[token].logprob for step, token in
                          zip(o.outputs[0].logprobs, o.outputs[0].token_ids)]}
            for o in llm.generate(prompts, params, use_tqdm=False, lora_request=lora)]


def _schedule(llm, requests):
    """Drives the engine step by step; ids of aborted requests are those they had by then."""
    from vllm import SamplingParams
    engine = llm.llm_engine
    llm.reset_prefix_cache()
    scheduler = engine.engine_core.engine_core.scheduler
    preempted = set()
    ids = {str(i): [] for i in range(len(requests))}
    step, waiting, running = 0, dict(enumerate(requests)), {}
    while waiting or engine.has_unfinished_requests():
        for i in [i for i, r in waiting.items() if r["arrives"] <= step]:
            r = running[str(i)] = waiting.pop(i)
            engine.add_request(str(i), {"prompt_token_ids": r["prompt"]}, SamplingParams(
                temperature=0, max_tokens=r["max_tokens"], ignore_eos=True))
        for output in engine.step():
            ids[output.request_id] = list(output.outputs[0].token_ids)
            if output.finished:
                running.pop(output.request_id, None)
        preempted |= {request.request_id for request in scheduler.requests.values()
                      if request.num_preemptions > 0}
        for name in [n for n, r in running.items() if len(ids[n]) >= r.get("aborts", 1 << 30)]:
            running.pop(name)
            engine.abort_request([name])
        step += 1
    return {"ids": [ids[str(i)] for i in range(len(requests))], "preempted": len(preempted)}


def _break_selection():
    from semkv.vllm import group

    class Broken:
        def __getattr__(self, name):
            return getattr(library, name)

        def semkv_run_layer(self, *_):
            return library.SEMKV_INTERNAL

    library, group.lib = group.lib, Broken()
    return {}


def _resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _watch_kernels():
    """The set of vLLM's attention kernels ("amx", "vec", ...) that layers are given from now on."""
    from vllm.v1.attention.backends import cpu_attn
    chosen, choose = set(), cpu_attn._get_attn_isa

    def watched(*args, **kwargs):
        chosen.add(kernel := choose(*args, **kwargs))
        return kernel

    cpu_attn._get_attn_isa = watched
    return chosen


def _report(kernels):
    import semkv.vllm
    text = semkv.vllm.explain()
    groups = []
    if semkv.vllm.is_switched_on() and not text.startswith("semkv: off"):
        from semkv.vllm import group
        groups = [{"counts": dict(g._counts), "stats": g.stats(), "off": g.off,
                   "refused": dict(g._tracker.refused) if g._tracker else {},
                   "shared": g._tracker.shared_tokens if g._tracker else 0,
                   "prompt": g._tracker.prompt_tokens if g._tracker else 0}
                  for g in group._groups]
    return {"text": text, "rss": _resident_bytes(), "groups": groups, "kernels": sorted(kernels)}


def main():
    exec(os.environ.get("SEMKV_TEST_SETUP", ""), {})
    kernels = _watch_kernels()
    from vllm import LLM
    llm = LLM(**json.loads(sys.stdin.readline()))
    print(REPLY + "{}", flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        if "prompts" in message:
            reply = _generate(llm, message)
        elif "requests" in message:
            reply = _schedule(llm, message["requests"])
        elif "break" in message:
            reply = _break_selection()
        else:
            reply = _report(kernels)
        print(REPLY + json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
