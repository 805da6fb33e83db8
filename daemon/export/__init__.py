"""Inside the worker: torch to ONNX, and the proof that both answer alike."""
