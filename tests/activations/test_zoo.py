"""One shared test for every activation by name, then what each of the zoo's own computes."""

import copy
import io
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from arelu_meta.activations.arelu import AReLU
from arelu_meta.activations.registry import PAPER_ACTIVATIONS, create_activation, list_activations
from arelu_meta.activations.zoo import APL, ELSA, PAU, SLAF, AconC, AuthorsGELU, Maxout, Mixture, StarReLU, Swish

TODAY = ("silu", "mish", "hard_swish", "star_relu", "squared_relu", "acon_c")
AUTHORS = ("apl", "elsa", "gelu", "maxout", "mixture", "pau", "slaf", "swish")
SHARED: list[tuple[str, dict[str, str]]] = [(name, {}) for name in (*PAPER_ACTIVATIONS, "elsa", *TODAY)] + [
    (n, {"variant": "authors"}) for n in AUTHORS
]
EVERYTHING = [info.name for info in list_activations()]

shared = pytest.mark.parametrize(("name", "options"), SHARED, ids=["-".join([n, *o.values()]) for n, o in SHARED])


def build(name: str, options: dict[str, str], dtype: torch.dtype = torch.float32) -> nn.Module:
    return create_activation(name, dtype=dtype, **options)


def away_from_kinks(*shape: int) -> Tensor:
    """Distinct values in [-2.9, 2.9], none within 0.01 of a hinge of the fixed piecewise functions (0, ±0.5, ±1)."""
    x = torch.linspace(-2.9, 2.9, int(np.prod(shape)), dtype=torch.float64)
    for kink in (-1.0, -0.5, 0.0, 0.5, 1.0):
        near = (x - kink).abs() < 0.01
        x = torch.where(near, x + 0.021, x)
    return x[torch.randperm(x.numel())].reshape(shape).requires_grad_()


def mnist_conv(name: str, options: dict[str, str], **more: bool) -> nn.Sequential:
    """The AReLU authors' ConvMNIST, without its log-softmax."""
    layers: list[nn.Module] = []
    for channels_in, channels_out, kernel in ((1, 10, 5), (10, 20, 5), (20, 40, 3)):
        layers += [nn.Conv2d(channels_in, channels_out, kernel), nn.MaxPool2d(2)]
        layers += [create_activation(name, **options, **more)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(40, 10))


def activation_parameters(model: nn.Sequential) -> Iterator[tuple[str, Tensor]]:
    for place, module in enumerate(model):
        if not isinstance(module, nn.Conv2d | nn.Linear):
            yield from ((f"{place}.{name}", parameter) for name, parameter in module.named_parameters())


@shared
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (2, 1, 4, 4), (4, 7), (6,), (), (0, 3), (3, 0), (2, 0, 4, 4)])
def test_shape_and_dtype_are_kept(
    name: str, options: dict[str, str], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape).to(dtype)
    y = build(name, options, dtype)(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert y.isfinite().all()


@shared
def test_first_and_second_derivatives_are_right(name: str, options: dict[str, str]) -> None:
    module = build(name, options, torch.float64).eval()
    x = away_from_kinks(2, 3, 2, 2)
    names = [key for key, _ in module.named_parameters()]
    if name == "pau":
        # Two of the authors' coefficients are nearer to 0, where |b| has a kink, than a finite difference's step.
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1)

    def evaluate(x: Tensor, *values: Tensor) -> Tensor:
        output: Tensor = functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return output

    inputs = (x, *(parameter.detach().clone().requires_grad_() for parameter in module.parameters()))
    assert torch.autograd.gradcheck(evaluate, inputs)
    assert torch.autograd.gradgradcheck(evaluate, inputs)


@shared
def test_vmap_over_tasks_equals_a_loop_over_tasks(name: str, options: dict[str, str]) -> None:
    tasks = [build(name, options).eval() for _ in range(3)]
    with torch.no_grad():
        for task in tasks:
            for parameter in task.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(3, 2, 5, 4, 4)
    parameters, buffers = stack_module_state(tasks)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        y: Tensor = functional_call(tasks[0], (parameters, buffers), (x,))
        return y.square().sum(), y

    per_task = torch.func.grad(loss, argnums=2, has_aux=True)
    slopes, outputs = vmap(per_task)(parameters, buffers, x)
    for index, task in enumerate(tasks):
        one = x[index].clone().requires_grad_()
        y = task(one)
        (slope,) = torch.autograd.grad(y.square().sum(), one)
        torch.testing.assert_close(outputs[index], y)
        torch.testing.assert_close(slopes[index], slope)


@shared
def test_state_dict_carries_the_function_over(name: str, options: dict[str, str]) -> None:
    trained, fresh = build(name, options).eval(), build(name, options).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    stored = io.BytesIO()
    torch.save(trained.state_dict(), stored)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(fresh(x), trained(x))


@shared
def test_copies_and_pickles_compute_the_same_and_share_nothing(name: str, options: dict[str, str]) -> None:
    module = build(name, options).eval()
    x = torch.randn(2, 4, 3, 3)
    before = module(x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x), before)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.add_(1)
        assert torch.equal(module(x), before)


@shared
def test_two_training_steps_in_mnist_conv_move_every_parameter(name: str, options: dict[str, str]) -> None:
    model = mnist_conv(name, options)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    images, labels = torch.rand(32, 1, 28, 28), torch.arange(32) % 10
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        assert loss.isfinite()
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all(), key
    still = [key for key, parameter in activation_parameters(model) if torch.equal(parameter, before[key])]
    assert still == []
    assert not torch.equal(model.get_parameter("0.weight"), before["0.weight"])


@shared
def test_inplace_changes_neither_the_loss_nor_a_gradient(name: str, options: dict[str, str]) -> None:
    plain = mnist_conv(name, options).eval()
    inplace = mnist_conv(name, options, inplace=True).eval()
    inplace.load_state_dict(plain.state_dict())
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
    losses = [F.cross_entropy(model(images), labels) for model in (plain, inplace)]
    torch.testing.assert_close(losses[1], losses[0])
    gradients = [
        torch.autograd.grad(loss, list(m.parameters())) for loss, m in zip(losses, (plain, inplace), strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_listed_activation_keeps_shape_and_dtype_and_differentiates_twice(name: str) -> None:
    module = create_activation(name, dtype=torch.float64).eval()
    x = away_from_kinks(2, 3, 2, 2)
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)
    stacked = torch.stack([x.detach(), 2 * x.detach()])
    torch.testing.assert_close(vmap(module)(stacked), torch.stack([module(one) for one in stacked]))


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ("apl", "arelu", "acon_c", "maxout", "mixture", "pau", "slaf", "star_relu", "swish")]
    + [(name, {"variant": "authors"}) for name in ("apl", "gelu", "mixture", "pau", "slaf", "swish")],
)
def test_half_precision_is_rounded_once(name: str, options: dict[str, str]) -> None:
    half, exact = build(name, options), build(name, options, torch.float64)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    exact.load_state_dict(half.state_dict())
    x = (4 * torch.randn(1000)).bfloat16()
    y, reference = half(x).double(), exact(x.double()).detach()
    # 2**-8 is bfloat16's largest relative rounding error; the small absolute term is float32's own.
    assert ((y - reference).abs() <= 2**-8 * reference.abs() + 1e-4).all()


@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 2.0), (0.25, -1.0), (0.001, 0.5), (1.5, 0.0)])
def test_elsa_over_relu_is_arelu(alpha: float, beta: float) -> None:
    attention = create_activation("elsa", base="relu", alpha=alpha, beta=beta, dtype=torch.float64)
    reference = AReLU(alpha=alpha, beta=beta, dtype=torch.float64)
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [attention(inputs[0]), reference(inputs[1])]
    torch.testing.assert_close(outputs[0], outputs[1])
    weights = torch.randn_like(x)
    for index, module in enumerate((attention, reference)):
        (outputs[index] * weights).sum().backward()
        assert [tuple(p.shape) for p in module.parameters()] == [(1,), (1,)]
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(attention.alpha.grad, reference.alpha.grad)
    torch.testing.assert_close(attention.beta.grad, reference.beta.grad)


def test_elsa_starts_where_arelu_starts() -> None:
    x = torch.randn(100)
    torch.testing.assert_close(create_activation("elsa")(x), AReLU()(x))


@pytest.mark.parametrize("base", ["gelu", "prelu", "tanh", "pau"])
def test_elsa_adds_its_attention_to_any_base(base: str) -> None:
    x = torch.randn(100, dtype=torch.float64)
    module = create_activation("elsa", base=base, alpha=0.3, beta=-1.0, dtype=torch.float64)
    slopes = torch.where(x >= 0, torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64)), 0.3)
    torch.testing.assert_close(module(x), create_activation(base, dtype=torch.float64)(x) + slopes * x)


def test_elsa_takes_a_module_and_goes_on_learning_its_parameters() -> None:
    base = nn.PReLU(init=0.1)
    module = create_activation("elsa", base=base)
    assert isinstance(module, ELSA)
    assert module.base is base
    assert {name for name, _ in module.named_parameters()} == {"alpha", "beta", "base.weight"}


def test_elsa_of_the_authors_multiplies_by_raw_alpha_and_beta() -> None:
    module = create_activation("elsa", base="relu", alpha=-0.5, beta=3.0, variant="authors")
    torch.testing.assert_close(module(torch.tensor([-2.0, 0.0, 2.0])), torch.tensor([1.0, 0.0, 8.0]))


def test_elsa_of_the_authors_is_built_over_the_authors_base() -> None:
    module = create_activation("elsa", base="slaf", variant="authors")
    assert isinstance(module, ELSA)
    assert torch.equal(module.base(torch.tensor([2.0])), torch.tensor([3.0]))


def test_apl_is_relu_plus_its_hinges() -> None:
    module = APL(hinges=2, dtype=torch.float64)
    with torch.no_grad():
        module.a.copy_(torch.tensor([0.5, -0.25]))
        module.b.copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    expected = torch.tensor([0.5 * 4 - 0.25 * 2, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(module(x), expected)


def test_apl_draws_its_start_from_the_generator_in_the_papers_ranges() -> None:
    module = APL(hinges=20_000)
    assert module.a.abs().max() <= 0.2
    assert abs(module.a.std() - 0.2 / 3**0.5) < 0.005
    assert abs(module.b.std() - 0.5) < 0.02
    torch.manual_seed(1)
    first = APL()
    torch.manual_seed(1)
    assert torch.equal(APL().a, first.a)
    assert first.a.shape == (5,)


def test_apl_of_the_authors_has_one_fixed_hinge() -> None:
    module = create_activation("apl", variant="authors")
    x = torch.tensor([-1.0, 0.25, 2.0])
    torch.testing.assert_close(module(x), torch.tensor([0.3, 0.3, 2.0]))
    assert [tuple(p.shape) for p in module.parameters()] == [(1,), (1,)]


def test_maxout_gives_each_channel_the_largest_of_its_group() -> None:
    x = torch.tensor([[1.0, 3.0, -2.0, -5.0, 7.0]])
    assert torch.equal(Maxout(pool=2)(x), torch.tensor([[3.0, 3.0, -2.0, -2.0, 7.0]]))
    assert torch.equal(Maxout(pool=3)(x), torch.tensor([[3.0, 3.0, 3.0, 7.0, 7.0]]))
    assert torch.equal(Maxout(pool=9)(x), torch.full_like(x, 7.0))


def test_maxout_pools_channels_of_feature_maps_and_mixes_no_positions() -> None:
    x = torch.randn(2, 5, 3, 4)
    y = Maxout(pool=2)(x)
    for channel, group in enumerate(([0, 1], [0, 1], [2, 3], [2, 3], [4])):
        assert torch.equal(y[:, channel], x[:, group].amax(1))


def test_maxout_of_a_single_image_vector_pools_its_only_dimension() -> None:
    assert torch.equal(Maxout(pool=2)(torch.tensor([1.0, 2.0, 0.0])), torch.tensor([2.0, 2.0, 0.0]))


def test_maxout_pools_a_named_dimension() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(Maxout(pool=2, dim=-1)(x)[..., 0], x[..., :2].amax(-1))


def test_maxout_of_the_authors_is_the_identity() -> None:
    x = torch.randn(2, 5, 3, 4)
    assert torch.equal(create_activation("maxout", variant="authors")(x), x)


def test_mixture_weighs_identity_tanh_and_relu_with_weights_that_sum_to_one() -> None:
    module = Mixture(dtype=torch.float64)
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(module(x), (x + x.tanh() + x.relu()) / 3)
    with torch.no_grad():
        module.p.copy_(torch.tensor([0.5, -0.25]))
    torch.testing.assert_close(module(x), 0.5 * x - 0.25 * x.tanh() + 0.75 * x.relu())


def test_mixture_of_the_authors_starts_at_relu_and_leans_towards_the_identity() -> None:
    module = create_activation("mixture", variant="authors")
    x = torch.randn(50)
    assert torch.equal(module(x), x.relu())
    assert isinstance(module, Mixture)
    with torch.no_grad():
        module.p.fill_(0.25)
    torch.testing.assert_close(module(x), F.leaky_relu(x, 0.25))


def test_slaf_is_a_polynomial_that_starts_at_the_identity() -> None:
    module = SLAF(dtype=torch.float64)
    x = torch.randn(50, dtype=torch.float64)
    assert torch.equal(module(x), x)
    coefficients = torch.randn(5, dtype=torch.float64)
    with torch.no_grad():
        module.coefficients.copy_(coefficients)
    torch.testing.assert_close(module(x), torch.from_numpy(np.polyval(coefficients.numpy()[::-1], x.numpy())))


def test_slaf_of_the_authors_starts_at_one_plus_x() -> None:
    x = torch.randn(50)
    torch.testing.assert_close(create_activation("slaf", variant="authors")(x), 1 + x)


def test_swish_learns_beta_and_the_authors_does_not() -> None:
    x = torch.randn(50)
    torch.testing.assert_close(Swish()(x), F.silu(x))
    torch.testing.assert_close(Swish(beta=2.0)(x), x * torch.sigmoid(2 * x))
    assert [tuple(p.shape) for p in Swish().parameters()] == [(1,)]
    fixed = create_activation("swish", variant="authors")
    assert list(fixed.parameters()) == []
    torch.testing.assert_close(fixed(x), F.silu(x))


def test_gelu_of_the_authors_is_their_tanh_form_and_not_gelus() -> None:
    x = torch.linspace(-4, 4, 100, dtype=torch.float64)
    theirs = create_activation("gelu", variant="authors")
    assert isinstance(theirs, AuthorsGELU)
    distance = (theirs(x) - F.gelu(x, approximate="tanh")).abs().max()
    assert 1e-6 < distance < 1e-4


@pytest.mark.parametrize(
    ("name", "options"), [("maxout", {"pool": 0}), ("apl", {"hinges": 0}), ("slaf", {"terms": 1.5})]
)
def test_counts_below_one_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1"):
        create_activation(name, **options)


def test_elsa_refuses_a_base_that_works_in_place() -> None:
    with pytest.raises(ValueError, match="works in place"):
        create_activation("elsa", base=nn.ReLU(inplace=True))


@pytest.mark.parametrize(("variant", "distance"), [("paper", 0.066), ("authors", 0.034)])
def test_pau_starts_as_near_to_leaky_relu_as_it_says(variant: str, distance: float) -> None:
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    off = (create_activation("pau", variant=variant, dtype=torch.float64)(x) - F.leaky_relu(x, 0.01)).abs().max()
    assert distance - 0.001 < off < distance


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_pau_equals_its_formula_in_float64_and_float32_stays_with_it(variant: str) -> None:
    module = create_activation("pau", variant=variant, dtype=torch.float64)
    assert isinstance(module, PAU)
    with torch.no_grad():
        module.denominator.copy_(torch.randn(4))
        module.numerator.copy_(torch.randn(6))
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    a, b = module.numerator.detach(), module.denominator.detach()
    terms = torch.stack([b[k - 1] * x**k for k in range(1, 5)])
    below = 1 + (terms.sum(0).abs() if variant == "paper" else terms.abs().sum(0))
    expected = sum(a[j] * x**j for j in range(6)) / below
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    scale = sum(a[j].abs() * x.abs() ** j for j in range(6)) / below
    single = copy.deepcopy(module).float()
    rounding = (single(x.float()).double() - expected).abs()
    conditioning = 1 + terms.abs().sum(0) / below
    assert (rounding <= 20 * torch.finfo(torch.float32).eps * scale * conditioning + 1e-30).all()


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_pau_has_no_pole_whatever_it_has_learned(variant: str) -> None:
    x = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
    for _ in range(50):
        module = create_activation("pau", variant=variant, dtype=torch.float64)
        assert isinstance(module, PAU)
        with torch.no_grad():
            module.denominator.copy_(10 * torch.randn(4))
        above = module.numerator.detach().abs() @ x.abs() ** torch.arange(6)[:, None]
        assert (module(x).abs() <= above + 1e-9).all()


def test_pau_stays_finite_up_to_the_size_it_names() -> None:
    module = PAU()
    x = torch.tensor([-6e7, 6e7], requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not module(torch.tensor([1e8])).isfinite().all()


def test_star_relu_standardises_a_standard_normal_input() -> None:
    y = StarReLU()(torch.randn(1_000_000))
    assert abs(y.mean()) < 0.01
    assert abs(y.std() - 1) < 0.01


def test_squared_relu_squares_the_positive_part() -> None:
    assert torch.equal(create_activation("squared_relu")(torch.tensor([-2.0, 0.0, 3.0])), torch.tensor([0.0, 0.0, 9.0]))


def test_acon_c_starts_at_silu_and_switches_between_maximum_and_mean() -> None:
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(AconC()(x), F.silu(x))
    torch.testing.assert_close(AconC(p1=1.0, p2=0.25, beta=1e4)(x), F.leaky_relu(x, 0.25), atol=1e-4, rtol=0)
    torch.testing.assert_close(AconC(p1=1.0, p2=0.25, beta=0.0)(x), 0.625 * x)


def test_random_leaky_relu_draws_its_slopes_in_training_and_uses_their_mean_in_evaluation() -> None:
    module = create_activation("rrelu")
    x = -torch.ones(10_000)
    slopes = -module.train()(x)
    assert 0.125 <= slopes.min() < 0.13
    assert 0.328 < slopes.max() <= 1 / 3
    torch.testing.assert_close(module.eval()(x), torch.full_like(x, -(0.125 + 1 / 3) / 2))


def test_random_leaky_relu_draws_anew_for_each_task_under_vmap() -> None:
    module = create_activation("rrelu").train()
    x = -torch.ones(2, 50)
    first, second = vmap(module, randomness="different")(x)
    assert not torch.equal(first, second)
    first, second = vmap(module, randomness="same")(x)
    assert torch.equal(first, second)
    positive = torch.rand(50)
    assert torch.equal(module(positive), positive)


def test_hard_sigmoid_equals_torchs() -> None:
    x = torch.linspace(-5, 5, 1001, requires_grad=True)
    ours, theirs = create_activation("hard_sigmoid")(x), F.hardsigmoid(x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)))
