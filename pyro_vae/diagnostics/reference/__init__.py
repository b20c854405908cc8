"""Reference draws from p(z|x)."""
