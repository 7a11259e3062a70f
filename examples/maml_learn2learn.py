"""MAML through learn2learn, over a swapped network: `python examples/maml_learn2learn.py`.

Needs learn2learn (requirements.txt says how to install it). Tasks are five of scikit-learn's digits, one image each to
learn from; the digits of the test are never seen in training.
"""

import argparse
import contextlib
import io

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from arelu_meta import create_backbone

with contextlib.redirect_stderr(io.StringIO()):  # gym, which it imports, prints a notice
    from learn2learn.algorithms import MAML

Task = tuple[Tensor, Tensor, Tensor, Tensor]


def draw_task(images: Tensor, labels: Tensor, classes: list[int], ways: int, queries: int) -> Task:
    """Draw support images and labels, and query images and labels, of `ways` classes."""
    chosen = torch.tensor(classes)[torch.randperm(len(classes))[:ways]]
    support, query = [], []
    for one in chosen:
        members = torch.nonzero(labels == one).flatten()
        members = members[torch.randperm(len(members))[: 1 + queries]]
        support.append(images[members[:1]])
        query.append(images[members[1:]])
    targets = torch.arange(ways)
    return torch.cat(support), targets, torch.cat(query), targets.repeat_interleave(queries)


def adapt(learner: MAML, task: Task, steps: int) -> tuple[Tensor, Tensor]:
    """Adapt to a task's support set, and return the loss and the accuracy on its queries."""
    support, support_labels, query, query_labels = task
    for _ in range(steps):
        learner.adapt(nn.functional.cross_entropy(learner(support), support_labels))
    logits = learner(query)
    return nn.functional.cross_entropy(logits, query_labels), (logits.argmax(1) == query_labels).float().mean()


def main() -> float:
    """Meta-train, and return the accuracy on tasks of unseen digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activation", default="arelu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--ways", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    images = nn.functional.interpolate(images, size=(28, 28))
    labels = torch.tensor(digits.target)
    seen, unseen = [0, 1, 2, 3, 4, 5, 6], [7, 8, 9]

    network = create_backbone("mnist_conv", num_classes=options.ways, in_chans=1, activation=options.activation)
    learner = MAML(network, lr=0.1, first_order=False)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for step in range(options.steps):
        optimizer.zero_grad()
        accuracies = []
        for _ in range(options.tasks):
            loss, accuracy = adapt(learner.clone(), draw_task(images, labels, seen, options.ways, 5), steps=1)
            (loss / options.tasks).backward()
            accuracies.append(accuracy)
        optimizer.step()
        if (step + 1) % 25 == 0:
            print(f"meta-step {step + 1}: accuracy on training tasks {torch.stack(accuracies).mean():.1%}")
    tests = [adapt(learner.clone(), draw_task(images, labels, unseen, options.ways, 5), steps=1)[1] for _ in range(200)]
    found_accuracy = float(torch.stack(tests).mean())
    print(f"accuracy on 200 tasks of the unseen digits {unseen}: {found_accuracy:.1%}")
    return found_accuracy


if __name__ == "__main__":
    main()
