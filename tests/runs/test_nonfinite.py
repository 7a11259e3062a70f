import torch
from torch import nn

from arelu_meta.runs.nonfinite import first_nonfinite_layer


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 2))


def test_the_layer_with_the_first_broken_weight_is_named() -> None:
    model = _net()
    with torch.no_grad():
        model.get_submodule("1.0").get_parameter("weight")[0, 0] = torch.nan
    assert first_nonfinite_layer(model, torch.ones(1, 2)) == "layer '1.0' (Linear: its weight is not finite)"


def test_the_layer_whose_output_overflows_is_named() -> None:
    model = _net()
    with torch.no_grad():
        model.get_submodule("2").get_parameter("weight").fill_(3e38)
        model.get_submodule("1.0").get_parameter("bias").fill_(10)
    assert first_nonfinite_layer(model, torch.ones(1, 2)) == "layer '2' (Linear: its output overflows)"


def test_broken_images_are_named_and_a_finite_model_is_not() -> None:
    assert first_nonfinite_layer(_net(), torch.tensor([[torch.nan, 0.0]])) == "the images themselves"
    assert first_nonfinite_layer(_net(), torch.ones(1, 2)) is None
