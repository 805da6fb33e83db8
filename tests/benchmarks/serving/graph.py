"""Text in, label out, without any server: the same graph, adapter and tokenizer for everybody. PLAN: see serve_model.py."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

PLAN = json.loads(Path(os.environ["BENCH_PLAN"]).read_text())
LABELS = PLAN["labels"]
MOST = 32  # texts in one inference, for everybody


class Graph:
    def __init__(self, left_out: Sequence[str] = ()) -> None:
        """`left_out`: optimisers of onnxruntime."""
        ort.set_default_logger_severity(3)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            PLAN["graph"], options, providers=["CPUExecutionProvider"], disabled_optimizers=list(left_out)
        )
        self._adapter = ort.LoraAdapter()
        self._adapter.Load(PLAN["adapter"])
        self.options = ort.RunOptions()
        self.options.add_active_adapter(self._adapter)
        self._tokenizer = Tokenizer.from_file(PLAN["tokenizer"])
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(PLAN["max_tokens"])

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """As the session is fed; padded to the longest."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run(["logits"], feed, self.options)[0]

    def classify(self, texts: Sequence[str]) -> list[str]:
        return [LABELS[place] for place in self.run(self.encode(texts)).argmax(axis=1).tolist()]
