"""LitServe with its own batching."""

import sys

import litserve
from graph import MOST, Graph


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.graph = Graph()

    def decode_request(self, request: dict[str, str], **_: object) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, texts: list[str], **_: object) -> list[str]:
        return self.graph.classify(texts)

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str, **_: object) -> dict[str, str]:
        return {"label": output}


if __name__ == "__main__":
    api = Classifier(max_batch_size=MOST, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="error", generate_client_file=False
    )
