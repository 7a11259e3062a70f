"""Meta-learn on tasks of your own in your own outer loop: `python examples/own_tasks.py`.

The tasks are sine waves of random amplitude and phase cut into two classes (above and below zero), so that nothing is
loaded. `meta_gradient` computes all tasks of a meta-step at once, and leaves MAML's gradient in `.grad`.
"""

import argparse
import math

import torch
from torch import Tensor, nn

from arelu_meta import AReLU, meta_gradient

Task = tuple[Tensor, Tensor, Tensor, Tensor]


def draw_task(support: int = 10, query: int = 40) -> Task:
    """Draw points of the plane, and whether each lies above a random sine wave."""
    amplitude, phase = 0.5 + torch.rand(()), math.pi * torch.rand(())
    points = 2 * torch.rand(support + query, 2) - 1
    labels = (points[:, 1] > amplitude * torch.sin(math.pi * points[:, 0] + phase)).long()
    return points[:support], labels[:support], points[support:], labels[support:]


def main() -> float:
    """Meta-train, and return the accuracy on new tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--order", type=int, default=2, choices=(1, 2))
    options = parser.parse_args()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 64), AReLU(), nn.Linear(64, 64), AReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(options.steps):
        optimizer.zero_grad()
        tasks = [draw_task() for _ in range(options.tasks)]
        losses, accuracies = meta_gradient(network, tasks, inner_lr=0.1, inner_steps=3, order=options.order)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"meta-step {step + 1}: query loss {losses.mean():.3f}, accuracy {accuracies.mean():.1%}")
    optimizer.zero_grad()
    _, accuracies = meta_gradient(network, [draw_task() for _ in range(200)], inner_lr=0.1, inner_steps=3, order=1)
    print(f"accuracy on 200 new tasks, after three steps on ten points: {accuracies.mean():.1%}")
    return float(accuracies.mean())


if __name__ == "__main__":
    main()
