"""`bench step`: the rows' shape, and that the contenders differ in their activations and in nothing else."""

import torch
from torch import nn

from arelu_meta.activations.arelu import AReLU, GatedAReLU
from arelu_meta.bench.op import GATE, PlainAReLU
from arelu_meta.bench.step import CONTENDERS, step_cases, step_rows


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in model.modules())


def test_every_contender_has_a_row_and_arelu_keeps_no_more_than_relu_in_a_whole_network() -> None:
    rows = step_rows("resnet18", image_size=32, batch_size=2, rounds=1)
    assert [row.contender for row in rows] == ["relu", "arelu-plain", "arelu", "preserve"]
    assert {row.case for row in rows} == {"resnet18/32px/batch2"}
    assert all(row.median_ms > 0 and row.peer == "relu" and row.peak_bytes > 0 for row in rows)
    kept = {row.contender: row.peak_bytes for row in rows}
    assert kept["arelu"] == kept["relu"] < kept["arelu-plain"]


def test_the_price_of_determinism_is_measured_beside_the_same_step_without_it() -> None:
    rows = step_rows("resnet18", image_size=32, batch_size=2, rounds=1, deterministic=True)
    names = [(row.contender, row.peer) for row in rows]
    assert names == [(f"{name}{end}", name) for name in ("relu", "arelu") for end in ("", "-deterministic")]
    assert all(row.median_ms > 0 for row in rows)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_larger_cases_are_a_gpus_and_not_those_of_determinism() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert list(step_cases(cpu)) == ["resnet18/128px/batch32", "tf_efficientnet_lite0/128px/batch32"]
    assert "resnet18/224px/batch256/bf16" in step_cases(gpu)
    assert list(step_cases(gpu, deterministic=True)) == list(step_cases(cpu))


def test_each_contender_has_its_own_activation_everywhere() -> None:
    models = {name: build("resnet18") for name, build in CONTENDERS.items()}
    kinds = (nn.ReLU, PlainAReLU, AReLU, GatedAReLU)
    found = {name: [count(model, kind) for kind in kinds] for name, model in models.items()}
    activations = found["relu"][0]
    assert found["relu"] == [activations, 0, 0, 0]
    assert found["arelu-plain"] == [0, activations, 0, 0]
    assert found["arelu"] == [0, 0, activations, 0]
    assert found["preserve"] == [activations, 0, 0, activations]  # the base stays inside
    gates = [module.t.item() for module in models["preserve"].modules() if isinstance(module, GatedAReLU)]
    torch.testing.assert_close(gates, [GATE] * activations)


def test_the_plain_formula_and_ours_give_one_network_one_gradient() -> None:
    results = []
    for name in ("arelu-plain", "arelu"):
        torch.manual_seed(0)
        model = CONTENDERS[name]("resnet18").double().eval()
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[0], results[1])
