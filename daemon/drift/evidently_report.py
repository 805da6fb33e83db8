"""The child: windows in, one Evidently report a column, scores out; a line of JSON each, until the input ends.

A report a column, so that one that Evidently cannot compute (constant, too small) stops no other.
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.metrics import ValueDrift

_NICE = 10  # serving and ingest come first
_KINDS = {
    "label": "categorical_columns",
    "prediction": "categorical_columns",
    "text": "text_columns",
    "confidence": "numerical_columns",
    "text_length": "numerical_columns",
    "word_count": "numerical_columns",
}


def answers(request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"score": float}` or `{"error": str}` by column."""
    return {test["column"]: _answer(test, request) for test in request["tests"]}


def _answer(test: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    column = test["column"]
    try:
        return {"score": _score(test, request["reference"][column], request["current"][column])}
    except Exception as error:  # whatever Evidently, pandas or scipy raise for a column is that column's matter
        return {"error": f"{type(error).__name__}: {error}"}


def _score(test: Mapping[str, Any], reference: list[Any], current: list[Any]) -> float:
    column = test["column"]
    definition = DataDefinition(**{_KINDS[column]: [column]})
    report = Report([ValueDrift(column=column, method=test["method"], threshold=test["threshold"])])
    snapshot = report.run(_dataset(column, current, definition), _dataset(column, reference, definition))
    return float(snapshot.dict()["metrics"][0]["value"])


def _dataset(column: str, values: list[Any], definition: DataDefinition) -> Dataset:
    return Dataset.from_pandas(pd.DataFrame({column: values}), data_definition=definition)


def main() -> None:
    os.nice(_NICE)
    warnings.simplefilter("ignore")
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not become part of an answer
        for line in sys.stdin:
            print(json.dumps(answers(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
