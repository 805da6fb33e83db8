"""The main job on one machine: broker, stream, traffic, live view, report.

In which order to read it:

1. plan.py       what is promised, in numbers, and the order of the sources
2. stream.py     each tweet is asked of the live server first and produced afterwards; traffic.py is the client
3. watch.py      the learner's control API, looked at twice a second; readings.py is what it says, as values
4. rounds.py     what happened to one source, from drift to the accuracy afterwards; scores.py is the arithmetic
5. journal.py    everything that was seen, written by two threads; story.py is how it is read
6. view.py, report.py, page.py   the screen, demo.json, demo.html; display.py is where the screen goes
7. scenario.py   who is started and stopped; brokers.py, workspace.py and service.py are what it starts
"""
