"""Data that come with the package's dependencies and need neither files nor a network."""

from __future__ import annotations

import torch

from .arrays import as_tensor
from .dataset import Dataset
from .scaling import Scaling

__all__ = ["digits"]


def digits(*, dtype: torch.dtype | None = None) -> Dataset:
    """Handwritten digits on 8 x 8 pixels, 1797 of them, as scikit-learn embeds them.

    The gray values 0 to 16 are divided by 16. Three pixels are 0 in every picture, so a variance
    learned per pixel has no lower bound there.

    Args:
        dtype: Floating type of ``x``; by default torch's default type.

    Returns:
        ``x`` of shape ``(1797, 64)`` in [0, 1], labels 0 to 9, image shape (8, 8).

    Raises:
        TypeError: If ``dtype`` is not a floating type.

    Example:
        >>> digits()
        digits: 1797 rows of (64,), x = raw / 16, labels 10 classes
        >>> int(digits().raw[0, :8].sum())  # first row of pixels: 0 0 5 13 9 1 0 0
        28

    References:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository. https://doi.org/10.24432/C50P49
    """
    # scikit-learn takes a second to import, which "import pyro_vae" should not.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    scaling = Scaling.divide(16)
    raw = as_tensor(bunch.data, dtype=dtype or torch.get_default_dtype()).tensor
    return Dataset(
        "digits", scaling.apply(raw), labels=bunch.target, scaling=scaling, image_shape=(8, 8)
    )
