"""What a learner does for its store by itself: retention, watching the disk, finishing what a stop interrupted."""
