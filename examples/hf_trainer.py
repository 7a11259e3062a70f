"""Train a Hugging Face vision model with AReLU through its own Trainer: `python examples/hf_trainer.py`.

Needs `pip install transformers datasets`. The scalars are parameters as any other: `save_pretrained` writes them, and a
model that was swapped with the same arguments loads them. Trainer's own optimiser decays them as it decays weights, so
it is given one of `parameter_groups`, which spares them.
"""

import argparse
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from arelu_meta import parameter_groups, swap_activations


def network() -> ResNetForImageClassification:
    """Return a small residual network with AReLU, from random weights."""
    config = ResNetConfig(num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    config.num_labels = 10
    model = ResNetForImageClassification(config)
    swap_activations(model, "arelu", init="paper", example={"pixel_values": torch.zeros(1, 1, 32, 32)})
    return model


def main() -> float:
    """Train, write, read back, and return the test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--images", type=int, default=1797)
    options = parser.parse_args()
    torch.manual_seed(0)
    found = load_digits()
    pixels = torch.tensor(found.images[: options.images, None] / 8 - 1, dtype=torch.float32)
    pixels = nn.functional.interpolate(pixels, size=(32, 32))
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, found.target, strict=False)]
    cut = int(0.7 * len(rows))
    model = network()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=rows[:cut],
            eval_dataset=rows[cut:],
            optimizers=(torch.optim.AdamW(parameter_groups(model, lr=arguments.learning_rate)), None),
            compute_metrics=lambda given: {"accuracy": float(np.mean(given[0].argmax(1) == given[1]))},
        )
        trainer.train()
        accuracy = float(trainer.evaluate()["eval_accuracy"])
        model.save_pretrained(folder)
        again = network()
        again.load_state_dict(load_file(f"{folder}/model.safetensors"))
    same = all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    print(f"test accuracy {accuracy:.1%} on {len(rows) - cut} images; read back, every parameter is equal: {same}")
    return accuracy


if __name__ == "__main__":
    main()
