"""Fine-tune a pretrained backbone with AReLU in a plain PyTorch loop: `python examples/own_loop.py`.

Ten digits, embedded in scikit-learn, and EfficientNet-Lite0's ImageNet weights, embedded in a package: nothing is
downloaded. The swap keeps every logit; the gates learn at a rate of their own, and the head starts at zero.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from arelu_meta import create_backbone, parameter_groups


def digits(side: int, images: int) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test digits, as images of shape (3, side, side) in [-1, 1]."""
    found = load_digits()
    pixels = torch.tensor(found.images[:images, None] / 8 - 1, dtype=torch.float32)
    pixels = nn.functional.interpolate(pixels, size=(side, side), mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(found.target[:images])
    train, test = train_test_split(range(len(labels)), test_size=0.3, random_state=0, stratify=labels)
    return TensorDataset(pixels[train], labels[train]), TensorDataset(pixels[test], labels[test])


def hold_statistics(model: nn.Module) -> None:
    """Put a model into training mode but for its batch normalisation: small batches would ruin what was pretrained."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the share of a data set that a model has right."""
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in DataLoader(data, 64)]
    return float(torch.cat(right).mean())


def main() -> float:
    """Train and return the test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activation", default="arelu")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args()
    torch.manual_seed(0)
    train, test = digits(options.side, options.images)

    model = create_backbone("tf_efficientnet_lite0", pretrained=True, num_classes=10, activation=options.activation)
    groups = parameter_groups(model, lr=options.lr, act_lr=options.lr / 10)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    for epoch in range(options.epochs):
        hold_statistics(model)
        for images, labels in DataLoader(train, 32, shuffle=True):
            loss: Tensor = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test accuracy {accuracy(model, test):.1%}")
    gates = torch.stack([p.detach().abs() for name, p in model.named_parameters() if name.endswith(".t")])
    print(f"gates: mean |t| {gates.mean():.4f}, largest {gates.max():.4f}")
    return accuracy(model, test)


if __name__ == "__main__":
    main()
