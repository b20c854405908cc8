"""Whether the model describes the data."""
