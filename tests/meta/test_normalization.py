import pytest
import torch

from arelu_meta import create_backbone
from arelu_meta.errors import InputError
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
