"""Log p(x): by importance sampling, annealing and quadrature."""
