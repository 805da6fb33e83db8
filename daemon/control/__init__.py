"""What operators talk to: the learner's control API and its client."""
