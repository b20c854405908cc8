import copy
import gc
import weakref

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import autoregressive
from pyro_vae.autoregressive import AffineStep, SplineStep, affine_steps, spline_steps
from pyro_vae.autoregressive.transforms import BoundedSpline

STEPS = [AffineStep, SplineStep]
MAKERS = [affine_steps, spline_steps]


def perturbed(module, size=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module


def make(step, latent_dim, context_dim=0, **options):
    return perturbed(step(latent_dim, hidden=(8, 7), context_dim=context_dim, **options))


def context_of(length, *batch):
    return torch.randn(*batch, length) if length else None


def pushed_forward(transform, latent_dim, batch=()):
    base = dist.Normal(torch.zeros(latent_dim), torch.ones(latent_dim)).to_event(1).expand(batch)
    return dist.TransformedDistribution(base, [transform])


def test_every_public_name_is_under_test():
    assert set(autoregressive.__all__) == {
        "FlowStep",
        *(item.__name__ for item in STEPS + MAKERS),
    }


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_a_new_step_is_the_identity(step, latent_dim, context_dim):
    transform = step(latent_dim, hidden=(8,), context_dim=context_dim).condition(
        context_of(context_dim, 40)
    )
    x = 4 * torch.randn(40, latent_dim)
    tolerance = 0 if step is AffineStep else 4e-15
    torch.testing.assert_close(transform(x), x, rtol=0, atol=tolerance)
    log_det = transform.log_abs_det_jacobian(x, transform(x))
    assert log_det.shape == (40,)
    assert log_det.abs().max() <= tolerance


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("latent_dim", [1, 2, 4])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_log_det_is_that_of_the_jacobian_which_is_triangular(step, latent_dim, context_dim):
    order = list(range(latent_dim))[::-1]
    made = make(step, latent_dim, context_dim, order=order)
    for scale in (1.0, 6.0):  # in the middle and outside the splines' box
        x, context = scale * torch.randn(latent_dim), context_of(context_dim)
        jacobian = torch.autograd.functional.jacobian(made.condition(context), x)
        transform = made.condition(context)
        log_det = transform.log_abs_det_jacobian(x, transform(x))
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-10)
        # Taken from last to first, the Jacobian is upper triangular.
        assert (jacobian.tril(-1) == 0).all()
        if latent_dim > 1 and scale == 1:
            assert (jacobian.triu(1) != 0).any()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_inverse_undoes_the_step_and_knows_its_log_det(step, latent_dim, context_dim):
    made = make(step, latent_dim, context_dim)
    x, context = 2 * torch.randn(6, 4, latent_dim), context_of(context_dim, 4)
    forward, backward = made.condition(context), made.condition(context)
    y = forward(x)
    again = backward.inv(y)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        backward.log_abs_det_jacobian(again, y),
        forward.log_abs_det_jacobian(x, y),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_value_is_taken_at_every_context(step, latent_dim, direction):
    made, context = make(step, latent_dim, 2), torch.randn(5, 2)
    value = torch.randn(latent_dim)

    def apply(transform, value):
        q = pushed_forward(
            transform if direction == "forward" else transform.inv, latent_dim, (5,)
        )
        return q.log_prob(value)

    got = apply(made.condition(context), value)
    each = apply(made.condition(context), value.expand(5, latent_dim))
    torch.testing.assert_close(got, each, rtol=0, atol=1e-12)


def test_one_affine_step_can_be_any_triangular_affine_map():
    k = 4
    for order in (range(k), range(k)[::-1]):
        step = AffineStep(k, hidden=(k,), order=order)
        matrix = torch.randn(k, k).tril(-1)
        matrix = matrix if list(order) == list(range(k)) else matrix.mT
        scale, shift = torch.rand(k) + 0.3, torch.randn(k)
        with torch.no_grad():
            step.network.skip_layer.weight[:k] = matrix
            step.network.layers[-1].bias[:k] = shift
            step.network.layers[-1].bias[k:] = 5 * torch.atanh(scale.log() / 5)
        x = torch.randn(7, k)
        expected = x @ (matrix + scale.diag()).mT + shift
        torch.testing.assert_close(step.condition()(x), expected, rtol=0, atol=1e-12)


def test_log_scales_are_bounded_with_the_gradient_of_the_bound():
    step, x = AffineStep(1, hidden=(1,)), torch.ones(1)

    def log_scale(raw):
        with torch.no_grad():
            step.network.bias[1] = raw
        transform = step.condition()
        return transform.log_abs_det_jacobian(x, transform(x))

    for raw in (-40.0, -7.0, 0.3, 6.0, 40.0):
        step.zero_grad()
        log_scale(raw).backward()
        assert abs(log_scale(raw).item()) <= 5
        slope = (log_scale(raw + 1e-5) - log_scale(raw - 1e-5)).item() / 2e-5
        assert abs(step.network.bias.grad[1].item() - slope) < 1e-8


def test_slope_of_a_spline_is_continuous_at_the_ends_of_its_box():
    step = make(SplineStep, 1, bound=3.0)
    x = torch.tensor([[-3.0 + 1e-9], [3.0 - 1e-9], [-3.0 - 1e-9], [3.0], [50.0]])
    transform = step.condition()
    assert transform.log_abs_det_jacobian(x, transform(x)).abs().max() < 1e-6
    torch.testing.assert_close(transform(x), x, rtol=0, atol=1e-8)
    middle = torch.zeros(1, 1)
    assert transform.log_abs_det_jacobian(middle, transform(middle)).abs().max() > 0.01


def test_a_pole_of_a_fraction_outside_the_box_does_no_harm():
    # In the first bin, [-4, 0], slopes 1 and 4 make the denominator (1 + t) / 2: 0 at x = -8.
    half, slopes = torch.full((1, 2), 0.5), torch.full((1, 1), 4.0)
    spline = BoundedSpline((half, half, slopes, half), bound=4.0)
    x = torch.tensor([[-8.0]], requires_grad=True)
    y = spline(x)
    (y + spline.log_abs_det_jacobian(x, y)).sum().backward()
    assert (y, x.grad) == (-8, 1)


@pytest.mark.parametrize("step", STEPS)
def test_gradients_exist_far_outside(step):
    made = make(step, 2)
    x = torch.tensor([[-1e6, 1e6], [0.0, 1e3]], requires_grad=True)
    transform = made.condition()
    (transform(x).sum() + transform.log_abs_det_jacobian(x, transform(x)).sum()).backward()
    assert all(t.grad.isfinite().all() for t in (x, *made.parameters()))
    if step is SplineStep:
        assert x.grad[0, 1] == 1


def twice(made, context, *, inverse):
    """The same distribution as two objects, of which one will have made a draw."""
    transforms = [made.condition(context) for _ in range(2)]
    return [pushed_forward(t.inv if inverse else t, made.latent_dim) for t in transforms]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("inverse", [False, True])
def test_density_of_a_draw_without_a_graph_has_its_gradients(step, context_dim, inverse):
    made = make(step, 2, context_dim)
    q, fresh = twice(made, context_of(context_dim), inverse=inverse)
    z = q.sample()
    got, expected = q.log_prob(z), fresh.log_prob(z)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)
    wanted = list(made.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(got, wanted), torch.autograd.grad(expected, wanted), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("inverse", [False, True])
def test_density_of_a_draw_that_was_changed_in_place_is_that_of_its_value(step, inverse):
    q, fresh = twice(make(step, 2), None, inverse=inverse)
    with torch.no_grad():
        z = q.sample()
        z += 1
        torch.testing.assert_close(q.log_prob(z), fresh.log_prob(z), rtol=0, atol=1e-8)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("inverse", [False, True])
def test_density_of_a_draw_that_became_a_variable_has_its_gradient(step, inverse):
    q, fresh = twice(make(step, 2).requires_grad_(False), None, inverse=inverse)
    z = q.rsample().requires_grad_()
    mine, theirs = (torch.autograd.grad(p.log_prob(z), z)[0] for p in (q, fresh))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step", STEPS)
def test_steps_work_in_inference_mode(step):
    made = make(step, 2)
    with torch.inference_mode():
        for inverse in (False, True):
            q, fresh = twice(made, None, inverse=inverse)
            z = q.sample((3,))
            torch.testing.assert_close(q.log_prob(z), fresh.log_prob(z), rtol=0, atol=1e-8)


@pytest.mark.parametrize("step", STEPS)
def test_a_draw_knows_its_density_without_an_inverse(step, monkeypatch):
    made = make(step, 3)
    q = pushed_forward(made.condition(), 3)
    z = q.rsample((5,))
    expected = pushed_forward(made.condition(), 3).log_prob(z.clone())
    monkeypatch.setattr(type(q.transforms[0]), "_inverse", None)
    torch.testing.assert_close(q.log_prob(z), expected, rtol=0, atol=1e-8)
    # and with the total derivative
    loss = q.log_prob(z).sum()
    assert all((g != 0).any() for g in torch.autograd.grad(loss, list(made.parameters())))


@pytest.mark.parametrize("step", STEPS)
def test_nothing_of_a_training_step_outlives_it(step):
    made = make(step, 3)
    gc.collect()
    gc.disable()
    try:
        for inverse in (False, True):
            z = torch.randn(5, 3, requires_grad=True) * 1
            alive = weakref.ref(z)
            transform = made.condition()
            q = pushed_forward(transform.inv if inverse else transform, 3)
            q.log_prob(z).sum().backward()
            del z, transform, q
            assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_weights_alone_are_saved_and_copied(step, latent_dim, context_dim):
    made, x = make(step, latent_dim, context_dim), torch.randn(4, latent_dim)
    context = context_of(context_dim)
    y = made.condition(context)(x)
    assert set(made.state_dict()) == {name for name, _ in made.named_parameters()}
    other = make(step, latent_dim, context_dim)
    assert not torch.allclose(other.condition(context)(x), y)
    other.load_state_dict(made.state_dict())
    twin = copy.deepcopy(made)
    for module in (other, twin):
        assert torch.equal(module.condition(context)(x), y)
    perturbed(twin)
    assert torch.equal(made.condition(context)(x), y)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_and_type_follow_the_tensors(maker, latent_dim, context_dim, default, dtype):
    torch.set_default_dtype(default)
    steps = maker(latent_dim, num_steps=2, hidden=(6,), context_dim=context_dim)
    perturbed(steps.to(dtype), 0.1)
    x = torch.randn(4, latent_dim, dtype=dtype)
    context = torch.randn(4, context_dim, dtype=dtype) if context_dim else None
    with torch.device("meta"):
        for step in steps:
            y = step.condition(context)(x)
            again = step.condition(context)
            x_again = again.inv(y)
            log_det = again.log_abs_det_jacobian(x_again, y)
            for made in (y, x_again, log_det):
                assert made.dtype == dtype
                assert made.device.type == "cpu"
            torch.testing.assert_close(x_again, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_gradients_reach_every_parameter(maker, latent_dim, context_dim):
    steps = perturbed(maker(latent_dim, num_steps=3, hidden=(6, 5), context_dim=context_dim))
    context, x = context_of(context_dim, 7), torch.randn(7, latent_dim)
    total = 0
    for step in steps:
        transform = step.condition(context)
        y = transform(x)
        total = total + transform.log_abs_det_jacobian(x, y).sum() + y.square().sum()
        x = y
    total.backward()
    assert all((p.grad != 0).any() for p in steps.parameters())


@pytest.mark.parametrize("maker", MAKERS)
def test_steps_alternate_their_order(maker):
    orders = [step.order for step in maker(3, num_steps=3, hidden=(4,))]
    assert orders == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def test_steps_have_their_options():
    (step,) = spline_steps(2, num_steps=1, hidden=(4,), count_bins=5, bound=2.0)
    assert (step.count_bins, step.bound) == (5, 2.0)
    assert step.network.layers[-1].out_features == 2 * (3 * 5 + 5 - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: affine_steps(0, num_steps=1, hidden=(4,)), "latent_dim must be a positive int"),
        (lambda: affine_steps(2, num_steps=0, hidden=(4,)), "num_steps must be a positive int"),
        (lambda: AffineStep(2, hidden=()), r"at least latent_dim = 2; got \(\)"),
        (lambda: AffineStep(5, hidden=(9, 4)), r"latent_dim = 5; got \(9, 4\).*hidden=\(64,\)"),
        (lambda: AffineStep(2, hidden=8), r"sequence of widths; got 8. Write \(8,\)"),
        (lambda: AffineStep(2, hidden=(4, 0)), "hidden must be a positive integer; got 0"),
        (lambda: AffineStep(2, hidden=(4,), context_dim=-1), "context_dim must be a positive int"),
        (lambda: AffineStep(2, hidden=(4,), order=[0, 0]), r"permutation of 0 to 1; got \[0, 0\]"),
        (lambda: SplineStep(2, hidden=(4,), count_bins=1), "count_bins must be at least 2; got 1"),
        (lambda: SplineStep(2, hidden=(4,), bound=0.0), "bound must be positive and finite"),
        (
            lambda: AffineStep(2, hidden=(4,), context_dim=3).condition(),
            "context must have 3 numbers in its last dimension; got 0",
        ),
        (
            lambda: SplineStep(2, hidden=(4,)).condition(torch.zeros(5, 1)),
            "context must have 0 numbers in its last dimension; got 1",
        ),
    ],
)
def test_step_rejects_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
