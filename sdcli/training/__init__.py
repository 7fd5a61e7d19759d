"""Training: data, objectives, the loop and its state. Yields events, prints nothing."""
