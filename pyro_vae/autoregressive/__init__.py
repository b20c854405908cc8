"""The steps of a flow: autoregressive transforms of Pyro, each of which starts as the identity."""

from .steps import AffineStep as AffineStep
from .steps import FlowStep as FlowStep
from .steps import SplineStep as SplineStep
from .steps import affine_steps as affine_steps
from .steps import spline_steps as spline_steps

__all__ = ["AffineStep", "FlowStep", "SplineStep", "affine_steps", "spline_steps"]
