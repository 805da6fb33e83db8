"""Has the stream changed? Two windows, compared by Evidently in a child that goes when it is not needed."""
