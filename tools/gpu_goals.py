"""The project's goals on a GPU as a table: what each asks for, and what semkv_bench --gpu and
gpu_peers.py measured; "not run" in every cell where nothing was. Standard library only.
"""

# Weights of a layer of Llama-3-8B in bfloat16, which a step reads beside keys and values.
LAYER_WEIGHT_BYTES = 7.5e9 * 2 / 32
# Prefill of 131,072 tokens: products with the weights, and causal attention of 32 heads of 128.
PREFILL_FLOPS = 2 * 7.5e9 * 131072 + 2 * 32 * 32 * 128 * 131072**2
ASSUMED_PREFILL_FLOPS_PER_SECOND = 600e12
FLASH_KMEANS_US = 1600  # an iteration, as its authors say

ATTEND = "decode_attention/slots:{}/rows:{}/tokens:{}"
DENSE = "decode_attention/dense/rows:{}/tokens:{}"
STEP = "retrieve+attend/{}/budget:{}/rows:{}/tokens:{}"
KMEANS = "kmeans/tokens:131072/segment:{}/lists:{}/iterations:10"


class Measurements:
    """Microseconds by name of a case; None, which every goal passes on, where there are none."""

    def __init__(self, results):
        bench = results.get("benchmark") or {}
        self.cases = {case["name"]: case for case in bench.get("cases", [])}
        self.memory_gbs = bench.get("memory_gbs")
        self.peers = results.get("peer_times", [])
        self.tests = {test["name"]: test["verdict"] for test in results.get("tests", [])}

    def us(self, name):
        case = self.cases.get(name)
        return case and case["median_us"]

    def of_floor(self, name):
        us = self.us(name)
        return us and us / self.cases[name]["floor_us"]

    def peer(self, rows, tokens):
        return min((p["us"] for p in self.peers if (p["rows"], p["tokens"]) == (rows, tokens)),
                   default=None)

    def dense(self, rows, tokens):
        """The best of everybody's."""
        times = [self.us(DENSE.format(rows, tokens)), self.peer(rows, tokens)]
        return min((us for us in times if us), default=None)

    def weights_us(self):
        return self.memory_gbs and 1e-3 * LAYER_WEIGHT_BYTES / self.memory_gbs

    def test(self, name):
        return self.tests.get(name)


def combine(function, *values):
    return None if any(value is None for value in values) else function(*values)


def ratio(a, b):
    return combine(lambda x, y: x / y, a, b)


def step_of_dense(m, lists, budget, rows, tokens):
    return ratio(m.us(STEP.format(lists, budget, rows, tokens)), m.dense(rows, tokens))


def select_of_attend(m, budget, rows, tokens):
    """What a step takes beyond its attention."""
    return combine(lambda step, attend: step / attend - 1,
                   m.us(STEP.format("clusters64", budget, rows, tokens)),
                   m.us(ATTEND.format(budget, rows, tokens)))


def tier_us(m, work):
    """Of one step."""
    return combine(lambda us: us / 2, m.us(f"tier/{work}/pages:128/steps:2"))


def index_of_prefill(m):
    """All layers' lists of 131,072 tokens; stage_keys' case has 8,192 tokens of all layers."""
    return combine(lambda stage, kmeans, append: 1e-6 * (16 * stage + 32 * (kmeans + append)) *
                   ASSUMED_PREFILL_FLOPS_PER_SECOND / PREFILL_FLOPS,
                   m.us("stage_keys/tokens:8192/layers:32"), m.us(KMEANS.format(8192, 512)),
                   m.us("append_lists/cells:128/tokens:8192/lists:512"))


def speed_goals(m):
    """(goal, what, "<=" or ">=", limit, measured)"""
    attend = m.us(ATTEND.format(2048, 1, 131072))
    retrieve = m.us("retrieve/clusters64/tokens:131072")
    weights = m.weights_us()
    yield "G1", "attention over 2,048 slots / its bytes at copy speed", "<=", 4.0, m.of_floor(
        ATTEND.format(2048, 1, 131072))
    yield "G2", "share of copy speed, 67 MB of slots", ">=", 0.60, ratio(
        1, m.of_floor(ATTEND.format(2048, 8, 131072)))
    yield "G2", "share of copy speed, 537 MB dense", ">=", 0.90, ratio(
        1, m.of_floor(DENSE.format(1, 131072)))
    for tokens, limit, hybrid_floor in ((32768, 0.30, 0.078), (131072, 0.12, 0.031),
                                        (1048576, 0.04, 0.017)):
        what = f"select + attend / best dense, {tokens:,} tokens"
        yield "G3", f"{what}, lists of 64", "<=", limit, step_of_dense(m, "clusters64", 2048, 1,
                                                                      tokens)
        yield "G3", f"{what}, hybrid (floor {hybrid_floor})", None, None, step_of_dense(
            m, "hybrid", 2048, 1, tokens)
    yield "G4", "the same, 8 rows of 131,072 tokens", "<=", 0.05, step_of_dense(
        m, "clusters64", 2048, 8, 131072)
    yield "G5", "select / attend, 131,072 tokens", "<=", 1.3, ratio(retrieve, attend)
    for tokens in (32768, 131072):
        yield "G6", f"own dense / best peer's, {tokens:,} tokens", "<=", 1.10, ratio(
            m.us(DENSE.format(1, tokens)), m.peer(1, tokens))
    for kib, limit in ((8, 0.60), (32, 0.80)):
        yield "G7", f"recall in pieces of {kib} KiB, share of one large copy", ">=", limit, ratio(
            1, m.of_floor(f"gather_pages/page_kib:{kib}"))
    yield "G8", "cudaMemcpyAsync in a graph, 8 KiB each / recall", ">=", 10, ratio(
        m.us("cudaMemcpyAsync/page_kib:8"), m.us("gather_pages/page_kib:8"))
    tier = tier_us(m, "resolve+gather+attend/misses:13")
    yield "G9", "token with a home tier, 10 % misses / all on the GPU; weights by arithmetic", \
        "<=", 1.15, combine(lambda w, r, t, a: (w + r + t) / (w + r + a), weights, retrieve, tier,
                            attend)
    yield "G9", "attention alone", None, None, ratio(tier, attend)
    yield "G11", "resolve of 8 x 128 pages / attend", "<=", 0.8, ratio(
        tier_us(m, "resolve/misses:13"), attend)
    yield "G12", "k-means, 8 x 131,072 x 1,024, an iteration / flash-kmeans' published", "<=", 1.0, \
        combine(lambda us: us / 10 / FLASH_KMEANS_US, m.us(KMEANS.format(131072, 1024)))
    yield "G12", "index of 131,072 tokens / prefill at an assumed 600 TFLOP/s", "<=", 0.05, \
        index_of_prefill(m)
    yield "A23", "select / attend, 8 rows of 32,768 tokens, budget 1,024", "<=", 0.15, \
        select_of_attend(m, 1024, 8, 32768)
    yield "A24", "select + attend / best dense, the same rows", "<=", 0.20, step_of_dense(
        m, "clusters64", 1024, 8, 32768)
    yield "A24", "a layer with dense / with sparse attention; weights by arithmetic", ">=", 2.0, \
        combine(lambda w, dense, step: (w + dense) / (w + step), weights, m.dense(8, 32768),
                m.us(STEP.format("clusters64", 1024, 8, 32768)))


def test_goals(m):
    """(goal, what, verdict)"""
    contexts = m.test("device_context_cuda_test")
    yield "G10", "no wait, allocation or host plan in a step; one graph", contexts
    yield "A19", "a producer's stream that is late", contexts
    yield "A21", "a mixed batch as its rows alone", contexts
    yield "A22", "one graph over growing lengths as without", contexts


def table(results):
    m = Measurements(results)
    lines = ["| goal | what | asked | measured | |", "|---|---|--:|--:|---|"]
    for goal, what, relation, limit, value in speed_goals(m):
        asked = f"{relation} {limit:g}" if relation else ""
        verdict = ""
        if relation and value is not None:
            holds = value <= limit if relation == "<=" else value >= limit
            verdict = "holds" if holds else "missed"
        measured = "not run" if value is None else f"{value:.3g}"
        lines.append(f"| {goal} | {what} | {asked} | {measured} | {verdict} |")
    for goal, what, verdict in test_goals(m):
        lines.append(f"| {goal} | {what} | | {verdict or 'not run'} | |")
    lines += ["| G13 | search and build against FAISS on the GPU | >= 20 | not built | |",
              "| G14 | GPU bytes of a request of 131,072 tokens / its KV | <= 0.1 | not built: "
              "no tiers | |"]
    return lines

