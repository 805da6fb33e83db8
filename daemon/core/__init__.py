"""What the words mean. Standard library only; everything else may import this, this imports nothing of ours."""
