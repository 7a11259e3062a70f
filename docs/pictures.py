"""Draw the README's picture of a swap: `python docs/pictures.py`; it writes docs/assets/swap.png."""

from pathlib import Path

import matplotlib
import torch

from arelu_meta import GatedAReLU, create_activation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GATES = (0.0, 0.1, 0.3, 1.0)


def draw(path: Path) -> None:
    """Draw ReLU6, and ReLU6 + t ELSA with the gate opening."""
    x = torch.linspace(-4, 8, 600)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    axes[0].plot(x, create_activation("relu6")(x), color="#455a64", linewidth=2)
    axes[0].set_title("before: ReLU6")
    for gate, color in zip(GATES, plt.get_cmap("viridis")([0.0, 0.35, 0.6, 0.85]), strict=True):
        act = GatedAReLU(create_activation("relu6"))
        with torch.no_grad():
            act.t.fill_(gate)
            axes[1].plot(x, act(x), color=color, linewidth=2, label=f"t = {gate:g}")
    axes[1].set_title("after: ReLU6(x) + t · ELSA(x), from t = 0")
    axes[1].legend(frameon=False)
    for one in axes:
        one.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        one.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
        one.spines[["top", "right"]].set_visible(False)
        one.set_xlabel("x")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parent / "assets" / "swap.png")
