"""Does the exported graph answer as the torch model did?"""

import numpy as np
from numpy.typing import NDArray

from daemon.core.types import ParityReport, QuantizationReport


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


def compare_int8(
    truth: NDArray[np.int64], fp32_logits: NDArray[np.float32], int8_logits: NDArray[np.float32]
) -> QuantizationReport:
    """Logits (texts, labels) for the same texts; `truth` is where each text's label stands. NaN as above."""
    texts = len(truth)
    if texts == 0 or not (np.isfinite(fp32_logits).all() and np.isfinite(int8_logits).all()):
        return QuantizationReport(texts, float("nan"), float("nan"), float("nan"))
    fp32, int8 = fp32_logits.argmax(axis=1), int8_logits.argmax(axis=1)
    return QuantizationReport(
        examples=texts,
        agreement=float((fp32 == int8).mean()),
        accuracy=float((int8 == truth).mean()),
        fp32_accuracy=float((fp32 == truth).mean()),
    )
