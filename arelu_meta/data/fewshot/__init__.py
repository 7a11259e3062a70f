"""Few-shot episodes: N-way K-shot tasks whose test classes were never trained on.

They are drawn straight from tensors, a whole meta-batch at once; task i of a seed is one task, whatever computes it.
"""

from arelu_meta.data.fewshot.benchmarks import load_class_splits, load_whole
from arelu_meta.data.fewshot.class_splits import ClassSplits, check_class_sizes, class_counts
from arelu_meta.data.fewshot.task_sampler import Pool, TensorSampler, load_pool, to_pixels, unlabelled_images
from arelu_meta.data.fewshot.tasks import Episode, Sampler, TaskBatch

__all__ = [
    "ClassSplits",
    "Episode",
    "Pool",
    "Sampler",
    "TaskBatch",
    "TensorSampler",
    "check_class_sizes",
    "class_counts",
    "load_class_splits",
    "load_pool",
    "load_whole",
    "to_pixels",
    "unlabelled_images",
]
