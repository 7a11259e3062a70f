"""Fine-tune with timm's own parts, its way: `python examples/timm_loop.py`.

`create_model`, `create_optimizer_v2`, `create_scheduler_v2` and `ModelEmaV3` do over a swapped model what they do over
any other: timm spares parameters of one dimension from weight decay, so alpha, beta and t are spared.
"""

import argparse

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from arelu_meta import swap_activations


def main() -> float:
    """Train and return the test accuracy of the averaged weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--activation", default="arelu")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--lr", type=float, default=0.05)
    options = parser.parse_args()
    torch.manual_seed(0)
    found = load_digits()
    pixels = torch.tensor(found.images[: options.images, None] / 8 - 1, dtype=torch.float32)
    pixels = nn.functional.interpolate(pixels, size=(32, 32))
    labels = torch.tensor(found.target[: options.images])
    cut = int(0.7 * len(labels))
    train, test = TensorDataset(pixels[:cut], labels[:cut]), TensorDataset(pixels[cut:], labels[cut:])

    model = timm.create_model(options.model, num_classes=10, in_chans=1)
    print(swap_activations(model, options.activation, init="paper"))  # random weights: the paper's start
    optimizer = create_optimizer_v2(model, opt="sgd", lr=options.lr, weight_decay=1e-4, momentum=0.9)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=options.epochs)
    averaged = ModelEmaV3(model, decay=0.95)
    for epoch in range(epochs):
        model.train()
        for images, targets in DataLoader(train, 32, shuffle=True):
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update(model)
        scheduler.step(epoch + 1)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    averaged.eval()
    with torch.no_grad():
        right = [(averaged(images).argmax(1) == targets).float() for images, targets in DataLoader(test, 64)]
    found_accuracy = float(torch.cat(right).mean())
    print(f"test accuracy {found_accuracy:.1%} on {len(test)} images")
    return found_accuracy


if __name__ == "__main__":
    main()
