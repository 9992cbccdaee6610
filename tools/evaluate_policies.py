#!/usr/bin/env python3
"""Measures every retrieval policy on the shipped model and writes docs/results/model_quality.md.

Makes the documents (make_documents.py: 4 and 16 facts in filler, and documents where every sentence
is a competing fact), runs `semkv evaluate` on each at 1/8 and 1/16 of the context, every step
forced sparse, and writes one table with the checks above it. With every policy it takes about an hour on
two cores. What is in the work folder's JSON already, cell by cell and policy by policy, is not run
again.

Single questions make the mean of a KL: --questions asks more of them, and --policy and --cell less
of the rest. What follows `--` goes to `semkv evaluate`, as `-- --centroids int8`. Give a run with
other policies or options a work folder of its own: cells are known by documents and questions.

Needs Python, a release build, and the tokenizers package for exact token counts.
"""
import argparse
import concurrent.futures
import json
import os
import random
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
MODEL = os.path.join(ROOT, "models", "semkv-tiny")
POLICIES = ("dense hybrid sentence cluster pages quest window sentencekv clusterkv").split()
FRACTIONS = ("0.125", "0.0625")
SEED = 7
QUESTIONS_OF_A_DOCUMENT = {"facts4": 4, "facts16": 16, "dense": 5}
QUESTIONS_OF_A_CELL = {2000: 600, 4000: 600, 8000: 300, 16000: 200}
CELLS = [(kind, tokens) for kind, contexts in (("facts4", (2000, 4000, 8000, 16000)),
                                               ("facts16", (2000, 4000, 8000, 16000)),
                                               ("dense", (2000, 4000, 8000)))
         for tokens in contexts]


def questions(arguments, tokens):
    return arguments.questions or QUESTIONS_OF_A_CELL[tokens]


def cell_file(arguments, kind, tokens, suffix):
    name = f"{kind}-{tokens}-{questions(arguments, tokens)}.{suffix}"
    return os.path.join(arguments.work, name)


def read_cell(path):
    if not os.path.exists(path):
        return {"cells": []}
    with open(path) as file:
        return json.load(file)


def run_cell(arguments, kind, tokens):
    """Adds the policies that the cell's JSON does not have; KL needs dense in every run."""
    out = cell_file(arguments, kind, tokens, "json")
    before = read_cell(out)
    known = {cell["policy"] for cell in before["cells"]}
    missing = [policy for policy in arguments.policy if policy not in known]
    if not missing:
        return
    documents = cell_file(arguments, kind, tokens, "jsonl")
    count = -(-questions(arguments, tokens) // QUESTIONS_OF_A_DOCUMENT[kind])
    subprocess.run([sys.executable, os.path.join(ROOT, "tools", "make_documents.py"),
                    "--kind", kind, "--tokens", str(tokens), "--documents", str(count),
                    "--seed", str(SEED), "--out", documents], check=True)
    command = [arguments.semkv, "evaluate", "--model", MODEL, "--documents", documents,
               "--threads", "1", "--json", out + ".new"]
    for fraction in FRACTIONS:
        command += ["--budget-fraction", fraction]
    for policy in dict.fromkeys(["dense", *missing]):
        command += ["--policy", policy]
    subprocess.run(command + arguments.evaluate, check=True, stdout=subprocess.DEVNULL)
    after = read_cell(out + ".new")
    after["cells"] = before["cells"] + [c for c in after["cells"] if c["policy"] not in known]
    with open(out, "w") as file:
        json.dump(after, file)
    os.remove(out + ".new")
    print(f"{kind} {tokens} done", flush=True)


def read_cells(arguments):
    """{(kind, tokens, budget fraction): {policy: cell}}; dense is in every group."""
    groups = {}
    for kind, tokens in arguments.cell:
        cells = read_cell(cell_file(arguments, kind, tokens, "json"))["cells"]
        dense = next(cell for cell in cells if cell["policy"] == "dense")
        for fraction in FRACTIONS:
            of_policy = {cell["policy"]: cell for cell in cells
                         if cell["budget_fraction"] == float(fraction)}
            groups[kind, tokens, float(fraction)] = {"dense": dense} | {
                policy: of_policy[policy] for policy in arguments.policy if policy != "dense"}
    return groups


def median(values):
    return sorted(values)[len(values) // 2]


def table(groups):
    lines = ["| documents | tokens | budget | policy | kept of dense's right | mean KL | median KL "
             "| attended | mass | mass p5 |", "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|"]
    for (kind, tokens, fraction), cells in groups.items():
        for policy, c in cells.items():
            if policy == "dense":
                continue
            lines.append(
                f"| {kind} | {tokens} | 1/{round(1 / fraction)} | {policy} | {c['kept']} of "
                f"{c['dense_right']} = {c['kept_share']:.3f} | {c['mean_kl_to_dense']:.5f} | "
                f"{median(c['kl_by_question']):.6f} | {c['attended_tokens_mean']:.0f} | "
                f"{c['captured_mass_mean']:.3f} | {c['captured_mass_p5']:.3f} |")
    return lines


def share_above_twice(ours, other, rng, rounds=2000):
    """Share of paired resamples of the questions in which our mean KL is above twice the other's."""
    n = len(ours)
    above = 0
    for _ in range(rounds):
        picks = [rng.randrange(n) for _ in range(n)]
        above += sum(ours[i] for i in picks) > 2 * sum(other[i] for i in picks)
    return above / rounds


def checks(groups):
    """Lines that say which checks hold, and for each miss by how much and how surely."""
    rng = random.Random(SEED)
    misses = {"fallbacks": [], "budget": [], "kept": [], "kl": [], "twice": [], "window": []}
    for (kind, tokens, fraction), cells in groups.items():
        where = f"{kind} {tokens} at 1/{round(1 / fraction)}"
        hybrid = cells["hybrid"]
        kl = hybrid["mean_kl_to_dense"]
        for policy, cell in cells.items():
            if policy != "dense" and cell["fallbacks"]:
                misses["fallbacks"].append(f"{where} {policy}: {cell['fallbacks']}")
            if policy not in ("dense", "sentencekv", "clusterkv") and (
                    cell["most_attended_of_budget"] > 1):
                misses["budget"].append(f"{where} {policy}: {cell['most_attended_of_budget']}")
            if policy not in ("dense", "hybrid") and kl > 2 * cell["mean_kl_to_dense"]:
                sure = share_above_twice(hybrid["kl_by_question"], cell["kl_by_question"], rng)
                misses["twice"].append(
                    f"{where}: {kl:.5f} against {cell['mean_kl_to_dense']:.5f} of {policy}, by "
                    f"question above twice in {100 * sure:.0f} % of 2,000 resamples")
        if kind != "dense" and hybrid["kept_share"] < 0.98:
            misses["kept"].append(f"{where}: {hybrid['kept_share']:.3f}")
        if kind != "dense" and kl > 0.005:
            misses["kl"].append(f"{where}: {kl:.5f}")
        if "window" in cells and cells["window"]["kept_share"] > 0.2:
            misses["window"].append(f"{where}: {cells['window']['kept_share']:.3f}")
    names = {"fallbacks": "no step fell back to dense attention",
             "budget": "attended <= budget (the papers' modes exceed it by design)",
             "kept": "hybrid keeps >= 98 % of dense's right answers on facts in filler",
             "kl": "hybrid's mean KL <= 0.005 there",
             "twice": "hybrid's mean KL <= twice any other policy's, in every cell",
             "window": "the window control keeps <= 20 %"}
    if not any("window" in cells for cells in groups.values()):
        del misses["window"]
    return [f"- {names[key]}: " + ("holds." if not found else "missed in " + "; ".join(found) + ".")
            for key, found in misses.items()]


def shell(command):
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def cell_name(text):
    kind, _, tokens = text.partition("-")
    if (kind, int(tokens or 0)) not in CELLS:
        names = ", ".join(f"{kind}-{tokens}" for kind, tokens in CELLS)
        raise argparse.ArgumentTypeError(f"must be one of {names}")
    return kind, int(tokens)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--semkv", default=os.path.join(ROOT, "build", "release", "semkv"))
    parser.add_argument("--work", default=os.path.join(ROOT, "build", "evaluation"))
    parser.add_argument("--out", default=os.path.join(ROOT, "docs", "results", "model_quality.md"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--questions", type=int,
                        help="of a cell, at least [600; of 8,000 tokens 300, of 16,000 200]")
    parser.add_argument("--policy", action="append", choices=POLICIES,
                        help="beside dense and hybrid, may be repeated [all]")
    parser.add_argument("--cell", action="append", type=cell_name,
                        help="as facts4-2000, may be repeated [all]")
    parser.add_argument("evaluate", nargs="*", help="options of semkv evaluate, after --")
    arguments = parser.parse_args()
    wanted = ["dense", "hybrid", *arguments.policy] if arguments.policy else POLICIES
    arguments.policy = [policy for policy in POLICIES if policy in wanted]
    arguments.cell = arguments.cell or CELLS
    return arguments


def main():
    arguments = parse_arguments()
    os.makedirs(arguments.work, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for done in [pool.submit(run_cell, arguments, *cell) for cell in arguments.cell]:
            done.result()
    groups = read_cells(arguments)
    commit = shell(["git", "describe", "--always", "--dirty"])
    right = {(kind, tokens): cells["dense"] for (kind, tokens, _), cells in groups.items()}
    lines = ["# Policies on the shipped model", "",
             f"`{' '.join(['tools/evaluate_policies.py', *sys.argv[1:]])}` wrote this, at commit "
             f"{commit}. Model models/semkv-tiny; documents of seed {SEED}: 4 or",
             "16 facts in filler, or every sentence a competing fact (`dense`); every step forced "
             "sparse, f32 KV.",
             "`semkv evaluate --help` says how an answer is judged.", "",
             "| | " + " | ".join(f"{kind} {tokens}" for kind, tokens in right) + " |",
             "|---|" + "--:|" * len(right),
             "| questions | " + " | ".join(str(c["questions"]) for c in right.values()) + " |",
             "| right with dense attention | " +
             " | ".join(str(cell["dense_right"]) for cell in right.values()) + " |",
             "", "## Checks", "", *checks(groups), "", "## All cells", "", *table(groups)]
    with open(arguments.out, "w") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
