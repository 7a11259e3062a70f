from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from arelu_meta import create_backbone
from arelu_meta.backbones.checkpoint import save_model
from arelu_meta.backbones.from_config import build_backbone
from arelu_meta.config import ModelConfig
from arelu_meta.errors import InputError
from arelu_meta.meta.inner_loop import Inner, attach_loop
from arelu_meta.meta.normalization import set_normalization, train_mode


def _net() -> torch.nn.Module:
    return create_backbone("conv4_32", num_classes=3, in_chans=1, img_size=16)


def test_transductive_normalises_by_the_batch_at_hand_in_eval_mode_too() -> None:
    model = _net()
    set_normalization(model, "transductive")
    images = torch.rand(8, 1, 16, 16)
    train, evaluated = model.train()(images), model.eval()(images)
    torch.testing.assert_close(train, evaluated)
    assert not torch.allclose(model(images)[:4], model(images[:4]))  # an image's logits depend on its batch


def test_running_normalises_each_image_by_itself_in_eval_mode() -> None:
    model = _net()
    set_normalization(model, "running")
    images = torch.rand(8, 1, 16, 16)
    model.eval()
    torch.testing.assert_close(model(images)[:4], model(images[:4]))


def test_running_learns_its_statistics_in_training_mode_and_frozen_does_not() -> None:
    for mode, changes in (("running", True), ("frozen", False)):
        model = _net()
        set_normalization(model, mode)
        before = {name: tensor.clone() for name, tensor in model.named_buffers()}
        train_mode(model, mode)
        model(torch.rand(8, 1, 16, 16))
        changed = any(not torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
        assert changed == changes, mode


def test_an_unknown_mode_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"meta\.normalization: 'transduct' is not known; nearest: 'transductive'"):
        set_normalization(_net(), "transduct")


@pytest.mark.parametrize("mode", ["transductive", "running", "group", "none"])
def test_a_run_that_starts_from_a_learner_keeps_what_it_learned_whatever_its_normalisation(
    mode: str, tmp_path: Path
) -> None:
    """The norm-act layers of timm hold the activations: their scalars must not be lost with the normalisation."""
    model, spec = build_backbone(ModelConfig("test_efficientnet", False, "arelu"), ("a", "b"), 3, 32, "metatrain")
    set_normalization(model, mode)
    attach_loop(model, Inner(0.1, 1))
    for number, parameter in enumerate(model.parameters()):
        parameter.data.fill_(0.1 + number / 1000)
    meta = {"ways": 2, "shots": 1, "queries": 1, "inner_lr": 0.1, "inner_steps": 1, "normalization": mode}
    save_model(tmp_path / "model.safetensors", model, replace(spec, meta=meta | {"inverted": False}))
    start = ModelConfig("test_efficientnet", str(tmp_path / "model.safetensors"))
    started, _ = build_backbone(start, ("a", "b"), 3, 32, "metatrain")
    learned, kept = dict(model.named_parameters()), dict(started.named_parameters())
    assert learned.keys() <= kept.keys()
    for name, parameter in learned.items():
        assert torch.equal(kept[name], parameter), name


def test_what_stands_in_a_norm_acts_place_still_acts() -> None:
    images = torch.randn(2, 3, 32, 32)
    for mode in ("group", "none"):
        model = create_backbone("test_efficientnet", num_classes=2)
        before = [type(module) for module in model.modules() if isinstance(module, torch.nn.ReLU | torch.nn.SiLU)]
        set_normalization(model, mode)
        called: list[torch.nn.Module] = []
        for module in model.modules():
            if isinstance(module, torch.nn.ReLU | torch.nn.SiLU):
                module.register_forward_pre_hook(partial(_note, called))
        model.eval()(images)
        assert len(called) == len(before) > 0


def _note(called: list[torch.nn.Module], module: torch.nn.Module, inputs: object) -> None:
    called.append(module)
