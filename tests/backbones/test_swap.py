"""What a swap replaces and keeps, on timm's and torchvision's families and on small networks made for a case."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.activations.registry import create_activation, list_activations
from arelu_meta.backbones.create import create_backbone
from arelu_meta.backbones.swap import SwapReport, find_activations, swap_activations, unswap
from arelu_meta.errors import InputError

# Counted by hand in the architectures' definitions: what stands there as (role, class) → how many.
TIMM: dict[str, dict[tuple[str, str], int]] = {
    # A stem and two activations in each of eight basic blocks.
    "resnet18": {("hidden", "ReLU"): 1 + 2 * 8},
    # Nine of its eleven blocks have a squeeze-excite unit; the first four blocks run on ReLU, the rest on hard swish.
    "mobilenetv3_small_050": {("hidden", "Hardswish"): 19, ("hidden", "ReLU"): 5, ("se_hidden", "ReLU"): 9},
    # One MLP in each of twelve blocks.
    "vit_tiny_patch16_224": {("hidden", "GELU"): 12},
    # One MLP a block, 2 + 2 + 6 + 2 blocks.
    "convnext_atto": {("hidden", "GELU"): 2 + 2 + 6 + 2},
    # Each class of its own around GELU; twelve blocks with squeeze-excite.
    "dm_nfnet_f0": {("hidden", "GammaAct"): 52, ("se_hidden", "ReLU"): 12},
    # Eighteen blocks, of which six mix tokens with an activation too; the head has one.
    "caformer_s18": {("hidden", "StarReLU"): 18 + 6, ("hidden", "SquaredReLU"): 1},
    # The activations lie inside norm-act layers: two a dense layer, one a transition, one at the stem, one at the end.
    "densenet121": {("hidden", "ReLU"): 2 * (6 + 12 + 24 + 16) + 3 + 1 + 1},
}
TORCHVISION: dict[str, dict[tuple[str, str], int]] = {
    # A block's two activations are one module here, called twice.
    "resnet18": {("hidden", "ReLU"): 1 + 2 * 8},
    "mobilenet_v3_small": {("hidden", "Hardswish"): 19, ("hidden", "ReLU"): 5, ("se_hidden", "ReLU"): 9},
    # Eight convolutions and two hidden layers.
    "vgg11": {("hidden", "ReLU"): 8 + 2},
}
GATES = {
    ("timm", "mobilenetv3_small_050"): ("Hardsigmoid", 9),
    ("timm", "dm_nfnet_f0"): ("Sigmoid", 12),
    ("torchvision", "mobilenet_v3_small"): ("Hardsigmoid", 9),
}
FAMILIES = [("timm", name) for name in TIMM] + [("torchvision", name) for name in TORCHVISION]

# timm's tiny networks, one of each kind of block: what runs in a few milliseconds.
TINY = ["test_resnet", "test_efficientnet", "test_byobnet", "test_nfnet", "test_convnext", "test_vit", "test_coatnet"]


def build(library: str, name: str) -> nn.Module:
    model: nn.Module
    with torch.device("meta"):
        model = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name)
    return model


def meta_image() -> Tensor:
    return torch.zeros(1, 3, 224, 224, device="meta")


def entries(report: SwapReport) -> Counter[tuple[str, str]]:
    return Counter((entry.role, entry.before.split("(")[0]) for entry in report.swapped)


def activations(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module, _ in find_activations(model)}


def tiny_image(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side)


class Block(nn.Module):
    """A residual block with a squeeze-excite unit, each activation under a name of its own."""

    def __init__(self, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.act1 = act()
        self.se = SqueezeExcite(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.act2 = act()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        x = self.act2(x + self.conv2(self.se(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(4, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))
        return x * scale


IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def block() -> Block:
    return Block().eval()


# What is found, on real architectures


@pytest.mark.parametrize("init", ["paper", "preserve"])
@pytest.mark.parametrize(("library", "name"), FAMILIES)
def test_every_hidden_activation_of_a_family_is_replaced(library: str, name: str, init: str) -> None:
    model = build(library, name)
    before = sum(p.numel() for p in model.parameters())
    old = {id(module) for module in activations(model).values()}
    report = swap_activations(model, "arelu", init=init, example=meta_image())  # type: ignore[arg-type]
    expected = (TIMM if library == "timm" else TORCHVISION)[name]
    assert entries(report) == expected
    assert report.complete
    left = [module for module in model.modules() if id(module) in old and not isinstance(module, AReLU | GatedAReLU)]
    gates = {GATES[library, name][0]} if (library, name) in GATES else set()
    assert {type(module).__name__ for module in left} == gates
    scalars = {"paper": 2, "preserve": 3}[init]
    # The composites of nfnet and metaformer have parameters or constants of their own, which `paper` drops.
    own = 2 * 24 if (name, init) == ("caformer_s18", "paper") else 0
    assert report.parameters_added == scalars * len(report.swapped) - own
    assert sum(p.numel() for p in model.parameters()) == before + report.parameters_added


@pytest.mark.parametrize(("library", "name"), GATES)
def test_squeeze_excite_gates_stay_and_the_report_says_why(library: str, name: str) -> None:
    model = build(library, name)
    gates = {path: module for path, module, role in find_activations(model) if role == "gate"}
    report = swap_activations(model, "arelu", example=meta_image())
    kind, count = GATES[library, name]
    assert len(gates) == len(report.kept) == count
    for entry in report.kept:
        assert (entry.role, entry.before) == ("gate", kind)
        assert "gate" in entry.reason
        assert model.get_submodule(entry.path) is gates[entry.path]


@pytest.mark.parametrize(("library", "name"), FAMILIES)
def test_each_activation_gets_scalars_of_its_own(library: str, name: str) -> None:
    model = build(library, name)
    report = swap_activations(model, "arelu", init="preserve", example=meta_image())
    swapped = [model.get_submodule(entry.path) for entry in report.swapped]
    scalars = [p for module in swapped for key, p in module.named_parameters() if key in ("alpha", "beta", "t")]
    assert len(scalars) == 3 * len(report.swapped)
    assert len({id(p) for p in scalars}) == len(scalars)


def test_the_activations_inside_norm_act_layers_are_replaced_and_the_norm_stays() -> None:
    model = build("timm", "densenet121")
    norms = [module for module in model.modules() if isinstance(module, BatchNormAct2d)]
    swap_activations(model, "arelu", init="paper", example=meta_image())
    assert len(norms) == 121
    assert all(isinstance(norm.act, AReLU) for norm in norms)
    assert norms == [module for module in model.modules() if isinstance(module, BatchNormAct2d)]


def test_a_composite_activation_is_replaced_whole() -> None:
    model = build("timm", "caformer_s18")
    swap_activations(model, "arelu", init="paper", example=meta_image())
    assert not any(type(module).__name__ in ("StarReLU", "SquaredReLU", "ReLU") for module in model.modules())


def test_a_spatial_gate_that_is_no_activation_makes_no_squeeze_excite() -> None:
    report = swap_activations(build("timm", "gmlp_ti16_224"), "arelu", example=meta_image())
    assert entries(report) == {("hidden", "GELU"): 30}


def test_roles_are_told_apart(block: Block) -> None:
    roles = {path: role for path, _, role in find_activations(block)}
    assert roles == {"act1": "hidden", "se.act": "se_hidden", "se.gate": "gate", "act2": "hidden"}


@pytest.mark.parametrize("name", ["gate", "scale_activation"])
def test_a_gate_is_known_by_its_name_whatever_it_is_made_of(name: str) -> None:
    unit = nn.ModuleDict({"reduce": nn.Linear(3, 3), "act": nn.ReLU(), "expand": nn.Linear(3, 3), name: nn.Softplus()})
    report = swap_activations(unit, trace=False)
    assert [(entry.path, entry.role) for entry in report.swapped] == [("act", "se_hidden")]
    assert [(entry.path, entry.role) for entry in report.kept] == [(name, "gate")]


def test_layers_with_an_activation_in_their_name_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.ReLU(), nn.Softmax(-1), nn.LogSoftmax(-1))
    attention = nn.MultiheadAttention(4, 2)
    model.add_module("attention", attention)
    report = swap_activations(model, "arelu", trace=False)
    assert [entry.path for entry in report.swapped] == ["2"]
    assert model.attention is attention


def test_a_subclass_of_an_activation_is_an_activation() -> None:
    class MyReLU(nn.ReLU):
        pass

    model = nn.Sequential(nn.Linear(2, 2), MyReLU())
    assert entries(swap_activations(model, "arelu", trace=False)) == {("hidden", "MyReLU"): 1}


# The function


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_swap_with_preserve_leaves_every_logit_unchanged(name: str, training: bool) -> None:
    model = timm.create_model(name).train(training)
    twin = copy.deepcopy(model)
    swap_activations(twin, "arelu", init="preserve", trace=False)
    # These networks were built for 160 px; the transformers take nothing else.
    x = tiny_image(160)
    before, after = model(x), twin(x)
    assert before.std() > 0
    assert torch.equal(after, before)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_preserve_keeps_torchvisions_logits_too(name: str) -> None:
    model = torchvision.models.get_model(name).eval()
    x = tiny_image()
    with torch.no_grad():
        before = model(x)
        swap_activations(model, "arelu", init="preserve", example=x)
        assert torch.equal(model(x), before)


def test_preserve_keeps_every_logit_of_a_pretrained_efficientnet_lite0_to_the_bit() -> None:
    model = create_backbone("tf_efficientnet_lite0", pretrained=True).eval()
    x = torch.cat([tiny_image(), 30 * tiny_image()])
    with torch.no_grad():
        before = model(x)
        report = swap_activations(model, "arelu", init="preserve", example=x)
        after = model(x)
    assert report.complete
    assert entries(report) == {("hidden", "ReLU6"): 33}
    assert before.std() > 0.5
    assert torch.equal(after.view(torch.int32), before.view(torch.int32))


def batch_normalised(trained: bool) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    if trained:
        model(tiny_image(8))  # the running statistics have seen something
    return model.eval()


def lasts(trained: bool) -> nn.Module:
    """No norm tells; torch's own draw is bounded, and a trained layer leaves the bounds."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU(), nn.Linear(9, 2))
    if trained:
        nn.init.normal_(model.get_parameter("1.weight"))
    return model


@pytest.mark.parametrize("make", [batch_normalised, lasts, lambda trained: create_backbone("conv4", in_chans=3)])
@pytest.mark.parametrize("trained", [False, True])
def test_without_init_trained_weights_are_preserved_and_fresh_ones_take_the_papers_start(
    make: Callable[[bool], nn.Module], trained: bool
) -> None:
    model = make(trained)
    if trained:
        model.train()(tiny_image(28 if hasattr(model, "features") else 8))
    report = swap_activations(model, trace=False)
    kind = GatedAReLU if trained else AReLU
    assert all(type(model.get_submodule(entry.path)) is kind for entry in report.swapped)
    assert any(f"init: {'preserve' if trained else 'paper'}, since" in note for note in report.notes)


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_default_init_of_a_swap_is_that_of_a_backbone(pretrained: bool) -> None:
    by_backbone = create_backbone("tf_efficientnet_lite0", pretrained=pretrained, activation="arelu")
    by_swap = create_backbone("tf_efficientnet_lite0", pretrained=pretrained)
    swap_activations(by_swap)
    assert list(by_swap.state_dict()) == list(by_backbone.state_dict())


def test_the_papers_start_changes_the_logits_as_its_formula_says() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    swap_activations(model, "arelu", init="paper", trace=False)
    hidden = model[0](x)
    hidden = torch.where(hidden >= 0, (1 + torch.sigmoid(torch.tensor(2.0))) * hidden, 0.9 * hidden)
    torch.testing.assert_close(model(x), model[2](hidden))


def test_a_gradient_reaches_every_gate_and_no_gate_moves_what_it_does_not_own(block: Block) -> None:
    swap_activations(block, init="preserve", example=IMAGE)
    block(tiny_image(8)).square().sum().backward()
    gates = {name: p for name, p in block.named_parameters() if name.endswith(".t")}
    assert set(gates) == {"act1.t", "se.act.t", "act2.t"}
    assert all(p.grad is not None and p.grad.abs() > 0 for p in gates.values())
    before = block(tiny_image(8))
    with torch.no_grad():
        gates["act1.t"].fill_(0.5)
    assert not torch.equal(block(tiny_image(8)), before)
    assert [float(gates[name].detach()) for name in ("se.act.t", "act2.t")] == [0.0, 0.0]


def test_preserve_keeps_the_function_where_the_original_worked_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Conv2d(4, 2, 3)).eval()
    x = tiny_image(8)
    before = model(x)
    swap_activations(model, init="preserve", trace=False)
    assert torch.equal(model(x), before)


def test_preserve_keeps_a_learned_activations_parameters_and_goes_on_learning_them() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.PReLU(3, init=0.4))
    x = torch.randn(2, 4)
    before = model(x)
    report = swap_activations(model, init="preserve", trace=False)
    assert torch.equal(model(x), before)
    assert report.parameters_added == 3
    model(x).sum().backward()
    weight = model.get_parameter("1.base.weight")
    assert weight.tolist() == pytest.approx([0.4] * 3)
    assert weight.grad is not None


def test_the_papers_start_drops_a_learned_activations_parameters_and_the_report_counts_it() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.PReLU(3))
    assert swap_activations(model, init="paper", trace=False).parameters_added == 2 - 3


# What is tied stays tied


def test_a_module_that_stands_under_two_names_stays_one_module() -> None:
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "act": nn.ReLU(), "second": nn.Linear(3, 3)})
    model["again"] = model["act"]
    report = swap_activations(model, init="paper", trace=False)
    assert model["again"] is model["act"]
    assert isinstance(model["act"], AReLU)
    assert [entry.path for entry in report.swapped] == ["act", "again"]
    assert report.parameters_added == 2
    unswap(model)
    assert model["again"] is model["act"]
    assert isinstance(model["act"], nn.ReLU)


def test_a_block_that_stands_under_two_names_stays_one_block() -> None:
    shared = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = nn.Sequential(shared, shared)
    report = swap_activations(model, init="paper", trace=False)
    assert model[0] is model[1] is shared
    assert isinstance(shared[1], AReLU)
    assert report.parameters_added == 2 == sum(p.numel() for p in model.parameters()) - 12


# What the report says


def test_the_report_names_paths_roles_and_classes_in_the_models_order(block: Block) -> None:
    report = swap_activations(block, init="preserve", example=IMAGE)
    assert [(entry.path, entry.role, entry.before) for entry in report.swapped] == [
        ("act1", "hidden", "ReLU"),
        ("se.act", "se_hidden", "ReLU"),
        ("act2", "hidden", "ReLU"),
    ]
    assert {entry.after for entry in report.swapped} == {"GatedAReLU(ReLU)"}
    assert [(entry.path, entry.role, entry.before) for entry in report.kept] == [("se.gate", "gate", "Sigmoid")]
    assert report.parameters_added == 9
    assert report.complete


def test_the_report_prints_as_a_table_with_the_counts_below(block: Block) -> None:
    lines = str(swap_activations(block, init="paper", example=IMAGE)).splitlines()
    assert lines[0].split() == ["path", "role", "before", "after"]
    assert lines[2].split() == ["se.act", "se_hidden", "ReLU", "AReLU"]
    assert lines[4].startswith("se.gate")
    assert "kept: a gate" in lines[4]
    assert lines[-1] == "3 swapped, 1 kept, 6 parameters added, complete"
    assert len(lines) == 1 + 4 + 1


def test_a_notebook_shows_the_report_as_a_table_without_running_what_names_hold() -> None:
    model = nn.ModuleDict({"<b>": nn.ReLU(), "gate": nn.Sigmoid(), "fc": nn.Linear(2, 2)})
    report = swap_activations(model, init="paper", trace=False)
    shown = report._repr_html_()
    assert shown.startswith("<table><thead><tr><th>path</th>")
    assert "<td>&lt;b&gt;</td><td>se_hidden</td><td>ReLU</td><td>AReLU</td>" in shown
    assert shown.count("<tr>") == 1 + 2
    assert shown.endswith("<p>1 swapped, 1 kept, 2 parameters added, not complete</p>")


class CallsFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.tail = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.tail(F.relu(self.stem(x)))
        return logits


def test_a_relu_that_a_users_code_calls_as_a_function_stays_and_the_report_says_where_and_what_to_write() -> None:
    model = nn.Sequential(CallsFunctions())
    report = swap_activations(model, example=torch.zeros(1, 4))
    assert [entry.path for entry in report.swapped] == ["0.stem.1"]
    assert [(entry.path, entry.before) for entry in report.kept] == [("0", "relu")]
    line = CallsFunctions.forward.__code__.co_firstlineno + 1
    assert report.kept[0].reason.startswith(f"called as a function in test_swap.py:{line}; write self.act = nn.ReLU()")
    assert not report.complete
    assert str(report).endswith("not complete")


def test_torchvisions_densenet_is_complete_though_its_last_relu_is_a_function() -> None:
    report = swap_activations(build("torchvision", "densenet121"), example=meta_image())
    assert len(report.swapped) == 2 * 58 + 3 + 1 + 1
    assert report.complete


def test_without_a_forward_pass_nothing_is_called_complete(block: Block) -> None:
    assert not swap_activations(copy.deepcopy(block), trace=False, example=IMAGE).complete
    # No example, and a model that does not say what it takes.
    assert not swap_activations(copy.deepcopy(block)).complete
    # An example that the model cannot take.
    assert not swap_activations(copy.deepcopy(block), example=torch.zeros(1, 7)).complete
    assert not swap_activations(copy.deepcopy(block), example=torch.zeros(())).complete


def test_timm_models_are_traced_without_an_example() -> None:
    assert swap_activations(build("timm", "resnet18")).complete


def test_what_was_excluded_is_hidden_still_so_the_swap_is_not_complete(block: Block) -> None:
    assert not swap_activations(block, exclude=["act2"], example=IMAGE).complete


# Include and exclude


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["hidden"], None, ["act1", "act2"]),
        (["se_hidden"], None, ["se.act"]),
        (["gate"], None, ["se.gate"]),
        (["hidden", "gate"], None, ["act1", "se.gate", "act2"]),
        (None, ["se_hidden"], ["act1", "act2"]),
        (["act*"], None, ["act1", "act2"]),
        (["se.*"], None, ["se.act", "se.gate"]),
        (["*"], ["se.*"], ["act1", "act2"]),
        (["act1"], None, ["act1"]),
        (None, ["act1", "se.act"], ["act2"]),
        ([nn.Sigmoid], None, ["se.gate"]),
        ([nn.ReLU], ["act2"], ["act1", "se.act"]),
        (None, [nn.ReLU], []),
        ([nn.Module], None, ["act1", "se.act", "se.gate", "act2"]),
    ],
)
def test_include_and_exclude_take_roles_patterns_and_types(
    block: Block,
    include: list[str | type[nn.Module]] | None,
    exclude: list[str | type[nn.Module]] | None,
    expected: list[str],
) -> None:
    before = activations(block)
    report = swap_activations(block, init="paper", include=include, exclude=exclude, example=IMAGE)
    assert [entry.path for entry in report.swapped] == expected
    assert {entry.path for entry in report.kept} == set(before) - set(expected)
    for path, module in before.items():
        assert (block.get_submodule(path) is not module) == (path in expected)


def test_the_report_says_what_was_excluded_and_what_not_included(block: Block) -> None:
    report = swap_activations(block, include=["act*"], exclude=["act2"], example=IMAGE)
    assert {entry.path: entry.reason for entry in report.kept} == {
        "act2": "excluded",
        "se.act": "not included",
        "se.gate": "not included",
    }


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "aerlu"}, r"'aerlu' is not known; nearest: 'arelu'"),
        ({"init": "presrve"}, r"'presrve' is not known; nearest: 'preserve'"),
        ({"activation": "gelu", "init": "paper"}, r"init: 'paper' is an initialization of 'arelu'; 'gelu'"),
        ({"include": ["layer9.*"]}, r"'layer9\.\*' matches no activation; give a role \(hidden, se_hidden, gate, glu"),
        ({"exclude": ["act1", "hiden"]}, "'hiden' matches no activation"),
        ({"include": [nn.GELU]}, "'GELU' matches no activation"),
    ],
)
def test_a_wrong_argument_is_named_and_the_model_is_as_it_was(
    block: Block, arguments: dict[str, object], message: str
) -> None:
    before = [id(module) for module in block.modules()]
    with pytest.raises(InputError, match=message):
        swap_activations(block, example=IMAGE, **arguments)  # type: ignore[arg-type]
    assert [id(module) for module in block.modules()] == before
    unswap(block)
    assert [id(module) for module in block.modules()] == before


def test_a_model_without_activation_modules_is_refused() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(), nn.ReLU()):
        with pytest.raises(InputError, match=r"no activation module, and it was not run .*; nothing to swap, or give"):
            swap_activations(model)
    with pytest.raises(InputError, match="Linear has no activation; nothing to swap"):
        swap_activations(nn.Linear(2, 2), example=torch.zeros(1, 2))


# And back


@pytest.mark.parametrize("activation", ["arelu", "gelu", "prelu"])
def test_unswap_puts_back_the_very_same_modules(block: Block, activation: str) -> None:
    x = tiny_image(8)
    modules, before = dict(block.named_modules()), block(x)
    swap_activations(block, activation, example=IMAGE)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if "act" in name:
                parameter.add_(0.3)
    unswap(block)
    assert dict(block.named_modules()) == modules
    assert torch.equal(block(x), before)


def test_unswap_after_several_swaps_goes_back_to_the_first(block: Block) -> None:
    modules = dict(block.named_modules())
    swap_activations(block, "gelu", include=["act1"], example=IMAGE)
    swap_activations(block, "silu", example=IMAGE)
    swap_activations(block, "arelu", example=IMAGE)
    unswap(block)
    assert dict(block.named_modules()) == modules


def test_unswap_of_a_model_that_was_never_swapped_changes_nothing(block: Block) -> None:
    modules = dict(block.named_modules())
    unswap(block)
    assert dict(block.named_modules()) == modules


def test_a_model_can_be_swapped_again_after_unswap(block: Block) -> None:
    swap_activations(block, example=IMAGE)
    unswap(block)
    assert len(swap_activations(block, init="paper", example=IMAGE).swapped) == 3
    assert isinstance(block.act1, AReLU)


def test_unswap_keeps_the_mode_that_the_model_is_in_now(block: Block) -> None:
    swap_activations(block, example=IMAGE)
    block.train()
    unswap(block)
    assert all(module.training for module in block.modules())


@pytest.mark.parametrize("activation", ["arelu", "gelu", "swish", "apl", "rrelu"])
def test_swapping_twice_changes_nothing(block: Block, activation: str) -> None:
    first = swap_activations(block, activation, example=IMAGE)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if "act" in name:
                parameter.add_(0.1)
    modules, state = dict(block.named_modules()), copy.deepcopy(block.state_dict())
    second = swap_activations(block, activation, example=IMAGE)
    assert dict(block.named_modules()) == modules
    torch.testing.assert_close(block.state_dict(), state, rtol=0, atol=0)
    assert (second.swapped, second.parameters_added) == ([], 0)
    assert second.kept == first.kept
    assert first.complete
    assert second.complete


def test_a_second_swap_takes_what_the_first_left(block: Block) -> None:
    swap_activations(block, init="paper", include=["act1"], example=IMAGE)
    trained = block.act1
    report = swap_activations(block, example=IMAGE)
    assert [entry.path for entry in report.swapped] == ["se.act", "act2"]
    assert block.act1 is trained
    assert report.complete


def test_a_swapped_model_can_be_copied_and_pickled_and_each_copy_swapped_back(block: Block) -> None:
    x = tiny_image(8)
    original = block(x)
    swap_activations(block, init="paper", example=IMAGE)
    swapped = block(x)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(x), swapped)
        unswap(other)
        assert torch.equal(other(x), original)
    assert torch.equal(block(x), swapped)


def test_what_was_replaced_adds_nothing_to_parameters_or_state() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    swap_activations(model, init="paper", trace=False)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.alpha", "1.beta"}
    assert len(list(model.parameters())) == 4


# What must carry over


def test_hooks_move_to_the_new_activation_run_once_and_their_handles_still_work(block: Block) -> None:
    ran: list[str] = []
    forward = block.act1.register_forward_hook(lambda module, *_: ran.append(f"forward {type(module).__name__}"))
    before = block.act1.register_forward_pre_hook(lambda *_: ran.append("before"))
    keywords = block.act1.register_forward_hook(lambda *_: ran.append("keywords"), with_kwargs=True)
    backward = block.act1.register_full_backward_hook(lambda *_: ran.append("backward"))
    swap_activations(block, init="preserve", trace=False)
    block(tiny_image(8)).sum().backward()
    assert ran == ["before", "forward GatedAReLU", "keywords", "backward"]
    for handle in (forward, before, keywords, backward):
        handle.remove()
    ran.clear()
    block(tiny_image(8)).sum().backward()
    unswap(block)
    block(tiny_image(8)).sum().backward()
    assert ran == []


def test_a_hook_sees_the_output_of_the_whole_new_activation_and_may_replace_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    seen: list[Tensor] = []

    def keep_and_double(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output)
        return 2 * output

    model[1].register_forward_hook(keep_and_double)
    swap_activations(model, init="preserve", trace=False)
    with torch.no_grad():
        model.get_parameter("1.t").fill_(1.0)
    x = torch.randn(4, 3)
    y = model(x)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], AReLU()(model[0](x)))
    torch.testing.assert_close(y, 2 * seen[0])


def test_a_hook_with_a_state_of_its_own_is_moved_not_copied() -> None:
    class Collector:
        def __init__(self) -> None:
            self.outputs: list[Tensor] = []

        def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.outputs.append(output)

    collector = Collector()
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[1].register_forward_hook(collector)
    model(torch.randn(1, 3))  # what it holds now belongs to a graph and cannot be deep-copied
    swap_activations(model, init="preserve", trace=False)
    model(torch.randn(1, 3))
    assert len(collector.outputs) == 2


def test_timms_feature_hooks_go_on_collecting_after_a_swap() -> None:
    model = timm.create_model("test_resnet", features_only=True, feature_cls="hook", out_indices=(0, 1, 2)).eval()
    x = tiny_image()
    before = model(x)
    swap_activations(model, init="preserve", trace=False)
    after = model(x)
    assert len(after) == 3
    for new, old in zip(after, before, strict=True):
        assert torch.equal(new, old)


def test_training_mode_is_kept_module_by_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.RReLU()).train()
    model[1].eval()
    swap_activations(model, init="preserve", example=torch.zeros(1, 2))
    assert [module.training for module in model] == [True, False, True]
    assert [model.get_submodule(path).training for path in ("1.base", "2.base")] == [False, True]


@pytest.mark.parametrize("activation", ["arelu", "prelu", "swish", "pau"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scalars_take_the_models_dtype(activation: str, dtype: torch.dtype) -> None:
    model = timm.create_model("test_resnet").to(dtype).eval()
    report = swap_activations(model, activation, trace=False)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype
    assert len(report.swapped) == 12


def test_a_bfloat16_model_keeps_its_logits_under_preserve() -> None:
    model = timm.create_model("test_efficientnet").bfloat16().eval()
    x = tiny_image().bfloat16()
    before = model(x)
    assert swap_activations(model, init="preserve").complete
    assert torch.equal(model(x), before)


def test_scalars_take_the_device_and_dtype_of_the_nearest_layer() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2, dtype=torch.float64), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU()),
        nn.Sequential(nn.Embedding(2, 2), nn.ReLU()),
    )
    swap_activations(model, trace=False)
    places = [{(p.device.type, p.dtype) for p in model.get_submodule(f"{i}.1").parameters()} for i in range(3)]
    assert places == [{("cpu", torch.float64)}, {("meta", torch.float32)}, {("cpu", torch.float32)}]


def test_tracing_leaves_statistics_modes_and_gradients_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)).train()
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    swap_activations(model, init="paper", example=torch.ones(2, 3, 8, 8))
    after = {name: value for name, value in model.state_dict().items() if name in state}
    torch.testing.assert_close(after, dict(state), rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


# Other activations


@pytest.mark.parametrize("activation", sorted({i.name for i in list_activations() if i.elementwise}))
def test_any_elementwise_activation_of_the_registry_can_be_swapped_in(block: Block, activation: str) -> None:
    before = dict(block.named_modules())
    report = swap_activations(block, activation, example=IMAGE)
    if activation != "arelu":
        kind = type(create_activation(activation))
        assert all(type(block.get_submodule(entry.path)) is kind for entry in report.swapped)
        assert {entry.after.partition("(")[0] for entry in report.swapped} == {kind.__name__}
    assert [entry.path for entry in report.swapped] == ["act1", "se.act", "act2"]
    assert report.complete
    assert block(tiny_image(8)).isfinite().all()
    unswap(block)
    assert dict(block.named_modules()) == before


def test_an_alias_is_understood(block: Block) -> None:
    swap_activations(block, "HardSwish", example=IMAGE)
    assert isinstance(block.act1, nn.Hardswish)


def test_a_swapped_model_learns() -> None:
    torch.manual_seed(1)
    model = Block()
    swap_activations(model, init="paper", example=IMAGE)
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert model.get_parameter("act1.alpha").item() != pytest.approx(0.9, abs=1e-4)
