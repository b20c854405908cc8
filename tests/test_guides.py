"""Guides over a family: where the parameters come from, and how one family starts from another."""

import copy

import pyro.distributions as dist
import pytest
import torch
from helpers import linear_vae, small_vae
from torch import nn
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae import families, guides, likelihoods, networks, priors
from pyro_vae.datasets import linear_gaussian
from pyro_vae.diagnostics import elbo_summary, elbo_terms
from pyro_vae.objectives import ImportanceWeighted_ELBO

ISOTROPIC, DIAGONAL, FULL = (
    families.IsotropicNormal,
    families.DiagonalNormal,
    families.FullCovarianceNormal,
)
QUIET = {"progress": False}


def amortized(family, network):
    return guides.AmortizedGuide(family, network)


def perturbed(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


@pytest.mark.parametrize(
    ("small", "large"),
    [(ISOTROPIC, DIAGONAL), (ISOTROPIC, FULL), (DIAGONAL, FULL), (FULL, FULL)],
)
def test_embedding_gives_the_same_distribution(small, large):
    old, new = small(4), large(4)
    matrix, shift = new.embedding(old)
    assert matrix.shape == (new.num_params, old.num_params)
    params = torch.randn(7, old.num_params)
    p, q = old(params), new(params @ matrix.mT + shift)
    z = torch.randn(7, 4)
    torch.testing.assert_close(q.log_prob(z), p.log_prob(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (FULL(3), DIAGONAL(3)),
        (DIAGONAL(4), FULL(3)),
        (DIAGONAL(3, min_scale=0.1), FULL(3)),
        (DIAGONAL(3, max_scale=10.0), FULL(3)),
        (ISOTROPIC(3, max_scale=10.0), FULL(3)),
        (FULL(3), families.Flow(3)),
        (families.Flow(3), families.Flow(3)),
    ],
)
def test_family_that_does_not_contain_the_other_raises(small, large):
    with pytest.raises(ValueError, match="family must contain"):
        large.embedding(small)


def test_low_rank_family_says_why_it_cannot_start_from_the_diagonal():
    with pytest.raises(ValueError, match="At F = 0 its gradient vanishes"):
        families.LowRankNormal(3, 1).embedding(DIAGONAL(3))


def test_flow_contains_the_diagonal_only_while_it_is_new():
    flow = families.Flow(3, num_steps=2)
    params, z = torch.randn(5, 6), torch.randn(5, 3)
    for small, matrix_for in ((DIAGONAL(3), params), (ISOTROPIC(3), params[:, :4])):
        matrix, shift = flow.embedding(small)
        q, p = flow(matrix_for @ matrix.mT + shift), small(matrix_for)
        torch.testing.assert_close(q.log_prob(z), p.log_prob(z), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="family must be a new flow"):
        perturbed(flow).embedding(DIAGONAL(3))


class Wrapped(nn.Module):
    """A network of the user's own, whose last layer nobody can see."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).tanh()


NETWORKS = {
    "linear": lambda m: nn.Linear(6, m),
    "no bias": lambda m: nn.Linear(6, m, bias=False),
    "mlp": lambda m: networks.MLP(6, (8,), m),
    "sequential": lambda m: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, m)),
    "own": lambda m: Wrapped(nn.Linear(6, m)),
    "convolutions": lambda m: nn.Sequential(
        nn.Unflatten(-1, (1, 2, 3)), networks.ConvEncoder((1, 2, 3), m, channels=(2,), hidden=5)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_guide_in_a_larger_family_starts_where_the_smaller_one_is(name):
    guide = amortized(DIAGONAL(3), NETWORKS[name](6))
    before = copy.deepcopy(guide.state_dict())
    full = guide.with_family(FULL(3))
    x, z = torch.randn(5, 6), torch.randn(5, 3)
    torch.testing.assert_close(full(x).log_prob(z), guide(x).log_prob(z), rtol=0, atol=1e-12)
    # Every entry of the factor can be learned as a function of x, and nothing is shared.
    full(x).log_prob(z).sum().backward()
    last = [p for p in full.encoder.parameters() if p.dim() == 2][-1]
    assert last.shape[0] == 9
    assert (last.grad != 0).any(dim=1).all()
    for key, value in guide.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in guide.parameters())


def test_wider_encoder_is_free_in_every_new_output():
    # M y + b folded into the last layer: the new outputs see the hidden layer.
    guide = amortized(DIAGONAL(2), networks.MLP(6, (8,), 4))
    assert guide.with_family(FULL(2)).encoder.layers[-1].weight.shape == (5, 8)


def test_full_covariance_guide_starts_with_the_elbo_of_the_diagonal_one_and_gains_its_gap():
    data = linear_gaussian(50, features=6, latent_dim=3, variance=0.2, seed=3)
    family = DIAGONAL(3)
    vae = linear_vae(data.truth, guide=amortized(family, nn.Linear(6, family.num_params)))
    options = {
        "epochs": 500,
        "batch_size": 50,
        "learning_rate": 0.1,
        "elbo": ImportanceWeighted_ELBO(1, gradient="sticking_the_landing"),
        "train": "guide",
    }
    pv.fit(vae, data.x, **options, **QUIET)
    full = vae.with_guide(vae.q_z_given_x.with_family(FULL(3)))
    ledgers = [elbo_terms(v, data.x, num_samples=8)["elbo"].to_numpy() for v in (vae, full)]
    assert abs(ledgers[0] - ledgers[1]).max() < 1e-10
    pv.fit(full, data.x, **options, **QUIET)
    gap = float(data.truth.best_diagonal_gap())
    assert gap > 0.1
    assert abs(mean_gap(vae, data) - gap) < 0.02
    assert mean_gap(full, data) < 0.02


GAPS = {
    "isotropic": lambda precision: (
        0.5 * (3 * torch.log(precision.trace() / 3) - torch.logdet(precision))
    ),
    "diagonal": lambda precision: (
        0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    ),
    "low rank": lambda precision: torch.zeros(()),
    "full": lambda precision: torch.zeros(()),
    "affine flow": lambda precision: torch.zeros(()),
}
FAMILIES = {
    "isotropic": ISOTROPIC,
    "diagonal": DIAGONAL,
    "low rank": lambda k: families.LowRankNormal(k, k),
    "full": FULL,
    "affine flow": lambda k: families.Flow(k, num_steps=1, context_dim=1),
}


@pytest.mark.parametrize("amortizes", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_fitted_guide_misses_log_p_by_the_gap_of_its_family(name, amortizes):
    # FORMULAS (a): with the model held, the gap is the family's alone, since an affine encoder is
    # enough; a guide with parameters for each datum must come out the same.
    data = linear_gaussian(50, features=5, latent_dim=3, variance=0.3, seed=7)
    family = FAMILIES[name](3)
    if amortizes:
        guide = amortized(family, nn.Linear(5, family.num_params))
    else:
        guide = guides.PerDatumGuide(family, len(data.x))
    vae = linear_vae(data.truth, guide=guide)
    pv.fit(
        vae,
        data.x,
        epochs=500,
        batch_size=50,
        learning_rate=0.05 if name == "affine flow" else 0.1,
        elbo=ImportanceWeighted_ELBO(1, gradient="sticking_the_landing"),
        train="guide",
        **QUIET,
    )
    expected = GAPS[name](data.posterior.precision_matrix[0]).item()
    assert (expected > 0.1) == (name in {"isotropic", "diagonal"})
    tolerance = 0.02 if name != "affine flow" else 0.03  # its gap is known by draws, to 0.008
    assert abs(mean_gap(vae, data) - expected) < tolerance


def mean_gap(vae, data):
    """log p(x) - ELBO, which is KL(q || posterior): in closed form, or to 0.008 by draws."""
    q = vae.encode(data.x)
    if isinstance(q, dist.TransformedDistribution):
        elbo = elbo_summary(elbo_terms(vae, data.x, num_samples=200)).loc["elbo"]
        assert elbo["mcse"] < 2e-3
        return data.log_evidence.mean().item() - elbo["mean"]
    covariance = getattr(q, "covariance_matrix", None)
    covariance = q.variance.diag_embed() if covariance is None else covariance
    return kl_divergence(dist.MultivariateNormal(q.mean, covariance), data.posterior).mean().item()


def per_datum_vae(num_data=7, family=DIAGONAL):
    guide = perturbed(guides.PerDatumGuide(family(2), num_data))
    likelihood = likelihoods.Gaussian(networks.MLP(2, (4,), 3), event_shape=(3,))
    return pv.VAE(prior=priors.StandardNormal(2), likelihood=likelihood, guide=guide)


def test_per_datum_guide_gives_each_row_its_own_parameters():
    vae, x = per_datum_vae(), torch.randn(7, 3)
    guide = vae.q_z_given_x
    means = guide.table[:, :2]
    assert torch.equal(vae.encode(x).mean, means)
    with guide.at_rows(torch.tensor([5, 1, 5])):
        assert torch.equal(vae.encode(x[[5, 1, 5]]).mean, means[[5, 1, 5]])
        with guide.at_rows([2, 0]):
            assert torch.equal(vae.encode(x[:2]).mean, means[[5, 5]])
    assert torch.equal(vae.encode(x).mean, means)


def test_per_datum_guide_forgets_its_rows_when_a_block_raises():
    guide = per_datum_vae().q_z_given_x
    with pytest.raises(RuntimeError, match="boom"), guide.at_rows([1]):
        raise RuntimeError("boom")
    assert guide.num_rows == 7


def test_diagnostics_in_pieces_tell_a_per_datum_guide_its_rows(monkeypatch):
    from pyro_vae.diagnostics import elbo

    vae, x = per_datum_vae(), torch.randn(7, 3)
    expected = elbo_terms(vae, x)["kl"].to_numpy()
    monkeypatch.setattr(elbo, "ROWS_AT_A_TIME", 3)
    assert abs(elbo_terms(vae, x)["kl"].to_numpy() - expected).max() < 1e-14
    with vae.q_z_given_x.at_rows([6, 2, 3, 0]):
        some = elbo_terms(vae, x[[6, 2, 3, 0]])["kl"].to_numpy()
    assert abs(some - expected[[6, 2, 3, 0]]).max() < 1e-14


def test_per_datum_guide_is_trained_row_by_row_in_batches():
    # In batches of two, in an order that changes: each row must find its own posterior.
    data = linear_gaussian(6, features=4, latent_dim=2, variance=0.5, seed=3)
    guide = guides.PerDatumGuide(FULL(2), 6)
    vae = linear_vae(data.truth, guide=guide)
    elbo = ImportanceWeighted_ELBO(1, gradient="sticking_the_landing")
    pv.fit(vae, data.x, epochs=400, batch_size=2, learning_rate=0.05, elbo=elbo, train="guide",
           **QUIET)  # fmt: skip
    torch.testing.assert_close(vae.encode(data.x).mean, data.posterior.mean, rtol=0, atol=0.02)


def test_per_datum_guide_starts_from_an_encoders_answer():
    vae, x = small_vae(family=FULL), torch.randn(5, 6)
    guide = guides.PerDatumGuide.from_amortized(vae.q_z_given_x, x)
    assert torch.equal(guide(x).loc, vae.q_z_given_x(x).loc)
    assert torch.equal(guide(x).scale_tril, vae.q_z_given_x(x).scale_tril)
    assert guide.table.requires_grad


def test_per_datum_guide_has_a_flow_of_its_own():
    flow = perturbed(families.Flow(2, hidden=(4,), context_dim=2))
    amortized_guide, x = amortized(flow, nn.Linear(3, flow.num_params)), torch.randn(5, 3)
    guide = guides.PerDatumGuide.from_amortized(amortized_guide, x)
    z = torch.randn(5, 2)
    torch.testing.assert_close(guide(x).log_prob(z), amortized_guide(x).log_prob(z))
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in amortized_guide.parameters()}


def test_per_datum_guide_starts_from_an_encoder_in_evaluation_mode():
    family = DIAGONAL(2)
    encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, family.num_params))
    guide, x = amortized(family, encoder), torch.randn(5, 3)
    made = guides.PerDatumGuide.from_amortized(guide, x)
    assert encoder[0].num_batches_tracked == 0
    assert torch.equal(made.table, guide.eval().params(x))


def test_per_datum_guide_starts_in_a_larger_family():
    guide = perturbed(guides.PerDatumGuide(DIAGONAL(3), 5))
    x, z = torch.zeros(5, 2), torch.randn(5, 3)
    full = guide.with_family(FULL(3))
    torch.testing.assert_close(full(x).log_prob(z), guide(x).log_prob(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae, x: vae.encode(x[:3]), "x must be the 7 rows whose parameters"),
        (lambda vae, x: elbo_terms(vae, x[:3]), "x must be the 7 rows whose parameters"),
        (
            lambda vae, x: pv.fit(vae, x, validation=x, **QUIET),
            "validation must be None for a guide with parameters for each datum",
        ),
        (
            lambda vae, x: vae.q_z_given_x.at_rows([7]).__enter__(),
            r"index must hold row numbers from 0 to 6; got 7",
        ),
        (
            lambda vae, x: vae.q_z_given_x.at_rows([-1]).__enter__(),
            r"index must hold row numbers from 0 to 6; got -1",
        ),
        (
            lambda vae, x: guides.PerDatumGuide(DIAGONAL(2), 0),
            "num_data must be a positive integer; got 0",
        ),
    ],
)
def test_per_datum_guide_refuses_other_rows(call, message):
    with pytest.raises(ValueError, match=message):
        call(per_datum_vae(), torch.randn(7, 3))


def test_data_loader_with_a_per_datum_guide_is_refused():
    x = torch.randn(7, 3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2)
    with pytest.raises(ValueError, match="x must be an array or a Dataset for a guide"):
        pv.fit(per_datum_vae(), loader, epochs=1, **QUIET)


def test_other_number_of_rows_is_refused_before_the_first_step():
    vae = per_datum_vae()
    before = vae.q_z_given_x.table.detach().clone()
    with pytest.raises(ValueError, match="x must be the 7 rows that PerDatumGuide has"):
        pv.fit(vae, torch.randn(6, 3), epochs=1, **QUIET)
    assert torch.equal(vae.q_z_given_x.table, before)


@pytest.mark.parametrize("guide", [guides.AmortizedGuide, guides.PerDatumGuide])
def test_guide_rejects_a_family_that_is_only_a_class(guide):
    with pytest.raises(TypeError, match="family must be an instance"):
        guide(DIAGONAL, nn.Linear(3, 4))
