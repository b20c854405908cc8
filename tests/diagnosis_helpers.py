"""Linear models whose answers are known, and one question of a diagnosis alone."""

import math

import torch
from helpers import linear_vae
from torch import nn

from pyro_vae import families, guides
from pyro_vae.datasets import LinearGaussian
from pyro_vae.diagnosis import diagnose, diagnosing

ASKED = {
    "ledger": "What is the ELBO made of?",
    "distance": "How far is it from log p(x)?",
    "gap": "Whose fault is the distance?",
    "units": "Does the latent space use its units?",
    "prior": "Do the codes follow the prior?",
    "calibration": "Is q(z|x) calibrated?",
    "nuts": "Is q(z|x) the posterior?",
    "regularity": "Is the latent space regular?",
    "statistics": "Does the model describe the data?",
    "features": "Does it describe each feature?",
    "convergence": "Has training converged?",
}

WEIGHT = torch.tensor([[2.0, 1.2], [1.2, 2.0], [1.6, 1.4], [1.0, 1.0]], dtype=torch.float64)


def truth():
    """Its posterior's coordinates are correlated: a diagonal guide cannot be right."""
    return LinearGaussian(WEIGHT, torch.zeros(4), variance=0.5)


def simulated(count):
    return torch.randn(count, 2) @ WEIGHT.T + math.sqrt(0.5) * torch.randn(count, 4)


def best_diagonal():
    """Guide with the posterior's mean and the best diagonal variances, 1 / L_jj."""
    model = truth()
    precision = (torch.eye(2) + WEIGHT.T @ WEIGHT / 0.5).to(WEIGHT)
    encoder = nn.Linear(4, 4)
    family = families.DiagonalNormal(2)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.bias.zero_()
        encoder.weight[:2] = torch.linalg.solve(precision, WEIGHT.T) / 0.5
        encoder.bias[2:] = _unconstrained(family, precision.diagonal().rsqrt())
    return linear_vae(model, guide=guides.AmortizedGuide(family, encoder))


def _unconstrained(family, scale):
    """Parameters at which the family has this scale, by bisection on its own map."""
    low, high = torch.full((2,), -30.0), torch.full((2,), 30.0)
    for _ in range(80):
        middle = (low + high) / 2
        found = family(torch.cat([torch.zeros(2), middle])).variance.sqrt()
        low, high = (
            torch.where(found < scale, middle, low),
            torch.where(found < scale, high, middle),
        )
    return middle


def answers(diagnosis):
    """Sections by their short names."""
    return {
        name: next((s for s in diagnosis.sections if s.question == question), None)
        for name, question in ASKED.items()
    }


def figure(section, start):
    return next(m for m in section.measures if m.name.startswith(start))


def ask(name, vae, x, *, train=None, history=None):
    """One question alone, as a quick diagnosis asks it."""
    study = diagnosing.Study(vae, x, train, history, 200, 0, is_quick=True)
    return diagnosing.QUESTIONS[ASKED[name]](study, ASKED[name])


def quick(vae, x, **options):
    return diagnose(vae, x, quick=True, num_samples=options.pop("num_samples", 200), **options)
