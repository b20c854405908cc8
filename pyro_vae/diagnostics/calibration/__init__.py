"""Whether q(z|x) is calibrated on simulated data."""
