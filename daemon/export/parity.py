"""Does the exported graph answer as the torch model did?"""

import numpy as np
from numpy.typing import NDArray

from daemon.core.types import ParityReport


def compare(torch_logits: NDArray[np.float32], onnx_logits: NDArray[np.float32]) -> ParityReport:
    """Both (texts, labels), for the same texts. Without texts, or with a logit that is no number, the report says NaN."""
    texts = len(torch_logits)
    if texts == 0 or not (np.isfinite(torch_logits).all() and np.isfinite(onnx_logits).all()):
        return ParityReport(texts=texts, max_abs_diff=float("nan"), agreement=float("nan"))
    return ParityReport(
        texts=texts,
        max_abs_diff=float(np.abs(torch_logits - onnx_logits).max()),
        agreement=float((torch_logits.argmax(axis=1) == onnx_logits.argmax(axis=1)).mean()),
    )
