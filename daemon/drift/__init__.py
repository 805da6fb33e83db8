"""Has the stream changed? Windows over the store, compared by Evidently in a short-lived child."""
