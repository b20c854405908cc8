"""The aggregate posterior: what z tells of x, and which units do."""
