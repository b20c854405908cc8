"""The inference gap and its two parts."""
