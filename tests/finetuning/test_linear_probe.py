import timm
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from arelu_meta.finetuning.linear_probe import Features, fit_probe, head_inputs, linear_head, write_head

CPU = torch.device("cpu")


def _digits(classes: int = 10) -> tuple[Features, Features]:
    values, labels = load_digits(n_class=classes, return_X_y=True)
    found = Features(torch.tensor(values, dtype=torch.float32), torch.tensor(labels))
    return Features(found.values[::2], found.labels[::2]), Features(found.values[1::2], found.labels[1::2])


def test_a_probe_as_a_linear_layer_says_what_logistic_regression_says() -> None:
    for classes in (2, 10):
        train, validation = _digits(classes)
        weight, bias, strength = fit_probe(train, validation, classes)
        head = nn.Linear(64, classes)
        write_head(head, weight, bias)
        centre, scale = train.values.mean(0), (train.values - train.values.mean(0)).square().mean().sqrt()
        peer = LogisticRegression(C=strength, tol=1e-6, max_iter=3000).fit(
            (train.values - centre) / scale, train.labels
        )
        expected = torch.tensor(peer.predict_proba((validation.values - centre) / scale)).double()
        found = head(validation.values).detach().double().softmax(1)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # how far the fits converge


def test_a_probe_from_few_images_gains_by_leaving_features_in_proportion() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(images: int) -> Features:
        labels = torch.arange(images) % 2
        noise = torch.randn(images, 200, generator=generator)
        noise[:, 1:] *= 0.05  # hardly varies, and says nothing
        noise[:, 0] += 4.0 * labels
        return Features(noise, labels)

    train, unseen = drawn(12), drawn(400)
    weight, bias, _ = fit_probe(train, drawn(40), 2)
    right = ((unseen.values @ weight.T + bias).argmax(1) == unseen.labels).double().mean()
    assert right > 0.95


def test_a_balanced_probe_gives_a_rare_class_more() -> None:
    train, validation = _digits(2)
    rare = torch.cat([torch.nonzero(train.labels == 0)[:, 0], torch.nonzero(train.labels == 1)[:3, 0]])
    noise = torch.randn(len(train.labels), 64, generator=torch.Generator().manual_seed(0)) * 8
    few = Features((train.values + noise)[rare], train.labels[rare])
    said = []
    for balanced in (False, True):
        weight, bias, _ = fit_probe(few, validation, 2, balanced)
        said.append(int(((validation.values @ weight.T + bias).argmax(1) == 1).sum()))
    assert said[1] > said[0]


def test_head_inputs_are_what_the_head_turns_into_the_models_logits() -> None:
    model = timm.create_model("test_efficientnet", num_classes=5)
    images, labels = torch.rand(6, 3, 64, 64), torch.arange(6) % 5
    found = head_inputs(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], CPU)
    assert found is not None
    head = linear_head(model)
    assert head is not None
    torch.testing.assert_close(head(found.values), model.eval()(images))
    assert torch.equal(found.labels, labels)


def test_a_head_after_which_something_acts_has_no_inputs_that_stand_for_images() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def get_classifier(self) -> nn.Module:
            return self.fc

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            doubled: torch.Tensor = 2 * self.fc(images.mean((2, 3)))
            return doubled

    assert head_inputs(Doubled(), [(torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))], CPU) is None
