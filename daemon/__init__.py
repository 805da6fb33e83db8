"""relearnd keeps a served model fresh: ingest, observe, decide, train, judge, promote.

The loop in ten lines; `cycle.py` is the same in code:

    records  = source.poll()                        ingest   Kafka -> example or dead letter
    store.commit(examples, dead_letters, offsets)   store    one DuckDB transaction
    drift    = detector.detect(reference, current)  drift    Evidently, in a child of its own
    decision = decide(facts, policy)                policy   stored with its reasons, before it is acted on
    result   = trainer.train(run_folder)            worker   replay, LoRA from the champion, ONNX, parity, holdout
    verdict  = judge(result, policy)                policy   pass, fail or inconclusive
    version  = registry.add(result)                 registry immutable, content-addressed
    registry.move(champion=version)                 registry one atomic rename
    manager.switch(servable)                        serve    load, verify, warm up, switch, drain
    answer   = servable.predict(texts)              serve    names its version

In which order to read the package:

 1. core/       what the words mean: types, states, facts, ports, errors, the files of a version
 2. cycle.py    one learning cycle, top to bottom; observation.py is its first step
 3. policy/     the judgement, pure: schema (what an operator may say), windows, retrain, gates, rollout
 4. ingest/, store/   from a Kafka record to a durable row: decode, curate, consume, one transaction
 5. drift/      two windows, one Evidently report, in a child that ends when it has nothing to do
 6. runs/, worker.py, train/, export/   the run folder, the child that works on it, and what it does there
 7. registry/, serve/   versions and aliases on disk; the server that loads, proves, swaps and answers, and says what it refuses
 8. learner.py (with intake.py), server.py, supervisor.py   composition roots: which adapters, which threads, how they stop
 9. control/, commands/, cli.py   what operators type, and the unix socket it goes through
10. upkeep/   retention and the room on the disk
11. testing/    every port in memory; demo/ the whole loop on one machine

Three processes: the learner (never loads torch), the server (never loads torch, duckdb, kafka, evidently) and a worker,
the learner's child, with whom all training memory dies. They meet in two folders only: the run folder and the registry. There the
learner writes versions and aliases, and each server, where it may, what it makes of them: `<its name>.json` among the `servers`.
"""

import os

# Before any vendor is imported, in every process of ours: nothing phones home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
