"""Whether a latent space is continuous and complete."""
