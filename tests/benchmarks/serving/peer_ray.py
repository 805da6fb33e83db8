"""Ray Serve with its own batching."""

import sys
import threading

import ray
from graph import MOST, Graph
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=64)
class Classifier:
    def __init__(self) -> None:
        self.graph = Graph()

    @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=0.0)
    async def classify(self, texts: list[str]) -> list[str]:
        return self.graph.classify(texts)

    async def __call__(self, request: Request) -> dict[str, str]:
        return {"label": await self.classify((await request.json())["text"])}


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Classifier.bind(), route_prefix="/predict")
threading.Event().wait()
