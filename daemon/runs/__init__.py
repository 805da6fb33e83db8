"""Training runs as the learner sees them: the folder that is handed over and the child process that works on it."""
