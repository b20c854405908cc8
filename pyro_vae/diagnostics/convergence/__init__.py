"""Whether SVI has converged."""
