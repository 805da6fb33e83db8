"""BentoML with its own batching: `bentoml serve peer_bentoml:Classifier`. A batched endpoint takes lists."""

import bentoml
from graph import MOST, Graph


@bentoml.service(workers=1, traffic={"timeout": 60})
class Classifier:
    def __init__(self) -> None:
        self.graph = Graph()

    @bentoml.api(batchable=True, max_batch_size=MOST, max_latency_ms=10_000, route="/predict")
    def predict(self, texts: list[str]) -> list[str]:
        return self.graph.classify(texts)
