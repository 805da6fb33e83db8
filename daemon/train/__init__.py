"""Inside the worker: replay, fine-tuning, evaluation."""
