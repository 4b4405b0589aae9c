"""Photos and the rows of a training step."""
