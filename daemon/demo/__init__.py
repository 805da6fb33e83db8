"""The main job on one machine: broker, stream, traffic, live view, report."""
