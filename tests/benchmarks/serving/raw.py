"""The limit: texts through the graph in a loop, with no server around it. Prints JSON: texts a second, and CPU seconds a 1,000.

    python raw.py SECONDS [OPTIMISER ...]

As onnxruntime is when nothing is set, and `tuned`: without those optimisers.
"""

import json
import sys
import time

from graph import PLAN, Graph


def measure(graph: Graph, texts: list[str], batch: int, seconds: float, *, encoded: bool) -> tuple[float, float]:
    batches = [texts[start : start + batch] for start in range(0, len(texts) - batch + 1, batch)]
    feeds = [graph.encode(each) for each in batches]
    done, started, cpu = 0, time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - started) < seconds:
        place = done % len(batches)
        graph.run(feeds[place]) if encoded else graph.classify(batches[place])
        done += 1
    return done * batch / passed, 1000 * (time.process_time() - cpu) / (done * batch)


if __name__ == "__main__":
    seconds = float(sys.argv[1])
    plain, tuned = Graph(), Graph(left_out=sys.argv[2:])
    for graph in (plain, tuned):
        measure(graph, PLAN["texts"], 8, 0.5, encoded=False)
    found = {}
    for name, graph, batch, encoded in (
        ("b1", plain, 1, False),
        ("b8", plain, 8, False),
        ("b8_encoded", plain, 8, True),
        ("b1_tuned", tuned, 1, False),
        ("b8_tuned", tuned, 8, False),
    ):
        found[name], found[f"{name}_cpu_s_per_1000"] = measure(graph, PLAN["texts"], batch, seconds, encoded=encoded)
    print(json.dumps(found))
