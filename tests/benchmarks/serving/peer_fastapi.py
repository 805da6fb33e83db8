"""A plain FastAPI handler: one inference a request, on FastAPI's threads."""

import sys

import uvicorn
from fastapi import FastAPI
from graph import Graph
from pydantic import BaseModel

app = FastAPI()
graph = Graph()


class Asked(BaseModel):
    text: str


@app.post("/predict")
def predict(asked: Asked) -> dict[str, str]:
    return {"label": graph.classify([asked.text])[0]}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
