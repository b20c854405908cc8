"""Pictures of a fit and of a latent space.

Each function takes arrays or tensors and returns a :class:`matplotlib.figure.Figure`; nothing goes
through pyplot, so no global state of matplotlib is read or changed but its style (``rcParams``).
"""

from .latents import latent
from .learning import history
from .observed import reconstructions, samples
from .planes import plane
from .png import save

__all__ = ["history", "latent", "plane", "reconstructions", "samples", "save"]
