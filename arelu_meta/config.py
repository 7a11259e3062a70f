"""The dataclasses that configure every task: the one source of defaults, ranges, choices, help and of who reads what.

Flags (`--optim.lr 1e-3`) and YAML keys (`optim: {lr: 1e-3}`) are these fields. A new one is one line here and one in
the docstring above it, which is its help:

    fit: Literal["crop", "pad"] = setting("crop", read_by=("finetune", "predict"))

`validation.py` holds the one loop that checks all of them. Nothing here imports torch.
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from arelu_meta.errors import nearest_names

Schedule = Literal["constant", "cosine", "poly", "step", "tanh", "wsd"]
Init = Literal["paper", "preserve", "leak", "open", "nearest", "fit"]
if TYPE_CHECKING:  # what editors offer; any other text of the kind is allowed
    Activation = (
        Literal["arelu", "relu", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "swish", "mish", "relu6"]
        | Literal["hard_swish", "softplus", "tanh", "sigmoid", "rrelu", "elsa", "pau", "apl", "slaf", "maxout"]
        | str
    )
    Mode = Literal["full", "head", "activations", "norm", "bias", "lora", "gradual", "probe", "last-1", "last-2"] | str
else:
    Activation = Mode = str
Normalization = Literal["transductive", "support", "running", "frozen", "group", "none"]
Keep = Literal["one_se", "best", "last"]
Alphabets = Literal["mixed", "one-in-test", "one"]
Adapt = Literal["all", "head", "activations"]
Algorithm = Literal[
    "maml", "fomaml", "anil", "metasgd", "mamlpp", "reptile", "protonet", "centroid", "logistic", "finetune"
]

# Who reads a field, as errors name them. A name stands for all that begin with it: "evaluate", "claims small-lr".
HEAD, PROBE = "finetune --train.mode head", "finetune --train.mode probe"
ON_IMAGES, ON_TASKS = "evaluate of a classifier", "evaluate of a meta-learner"
WITH_FOLDERS = "evaluate with a support and a query folder"
FINETUNE, TRAIN = ("finetune", "demo"), ("finetune", "metatrain", "demo")
FINETUNE_STUDIES = (
    "claims small-lr --pipeline finetune",
    "claims architectures",
    "claims tuning",
    "claims transfer",
    "claims focus",
)
LABELLED_STUDIES = FINETUNE_STUDIES[:3]
META_STUDIES = ("claims small-lr --pipeline maml", "claims meta")

DEVICE = r"auto|mps|(cpu|cuda|xpu)(:\d{1,3})?"
LAST_STAGES = re.compile(r"last-([1-9]\d*)")
MODE = rf"full|head|activations|norm|bias|lora|gradual|probe|{LAST_STAGES.pattern}"
MODES = "full, head, activations, norm, bias, lora, gradual, probe or last-N, as last-2"
LARGEST_IMAGE = 2**12  # pixels a side: 200 MB an image, and a few times that in a network
MOST_PIXELS = 2**27  # an image: half a gigabyte decoded; the largest cameras and telephones take some 108 million
DURATION = r"(?=\d)(\d{1,3}h)?(\d{1,4}m)?(\d{1,5}s)?"
RANGE = r"auto|(-?\d+(?:\.\d+)?)-(-?\d+(?:\.\d+)?)"
MOST_BETA = 20.0  # sigmoid of more is 1 in float32
LARGEST_RATE = 1e38  # what float32 holds
MOST_INNER_STEPS = 1000
MOST_TASKS = 1_000_000
MOST_A_TASK = 10_000  # classes, or images a class, of a few-shot task

T = TypeVar("T")


def setting(
    default: T,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    pattern: str | None = None,
    words: str | None = None,
    several: bool = False,
    read_by: tuple[str, ...] = (),
    unread_by: tuple[str, ...] = (),
    harmless: tuple[object, ...] = (),
) -> T:
    """Declare a field with what it may hold and who reads it; choices are its type's, a `Literal`.

    Args:
        default: its value where it is left out.
        least: the smallest number allowed.
        above: what a number must be above.
        most: the largest number allowed.
        below: what a number must be below.
        pattern: a regular expression that all of a text must match.
        words: what the pattern allows, for errors.
        several: a text may hold several values with commas between.
        read_by: the readers that know it; default: every task that has it.
        unread_by: readers among them that do not.
        harmless: values that ask for nothing, so that whoever does not read the field takes them, as the default.
    """
    limits = {"least": least, "above": above, "most": most, "below": below}
    return field(
        default=default,
        metadata={
            "limits": {name: value for name, value in limits.items() if value is not None},
            **{"pattern": pattern, "words": words, "several": several},
            **{"read_by": read_by, "unread_by": unread_by, "harmless": harmless},
        },
    )


@dataclass
class Settings:
    """What every config is: a dataclass to which no field is added by a slip of the pen."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field.

        Raises:
            AttributeError: with the nearest names, if there is no such field.
        """
        known = [item.name for item in fields(self)]
        if name not in known:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}; {nearest_names(name, known)}")
        super().__setattr__(name, value)


@dataclass
class RunConfig(Settings):
    """Where a run writes, and how it computes.

    Args:
        folder: the run folder; default: runs/TASK-DATE-TIME.
        seed: of the split, the weights, the order of the data and the tasks.
        device: auto, cpu, cuda, cuda:1, mps …; auto takes a GPU where there is one.
        precision: float32, or autocast to bf16 or fp16.
        resume: never (a folder that holds a run is an error), auto (start or continue), or a checkpoint's path.
        checkpoint_minutes: finetune and metatrain: a checkpoint is written at least this often, beside the one after
            each epoch or validation.
        deterministic: bit-identical results for the same command on the same machine, where PyTorch can.
        detect_anomaly: name the operation whose gradient becomes NaN; slow.
        pictures: draw curves, confusions and mistakes at the end; false saves seconds where runs are many.
        save: finetune: what model.safetensors holds: the model, or an adapter (only what differs from the pretrained
            backbone: kilobytes where little is trained; evaluate, predict, export and model.pretrained take it).
        trackers: finetune: where else metrics go, through accelerate, with commas between: tensorboard, wandb, mlflow …

    Example:
        >>> from arelu_meta import RunConfig
        >>> RunConfig(seed=3).seed
        3
    """

    folder: str | None = None
    seed: int = setting(0, least=0)
    device: str = setting("auto", pattern=DEVICE, words="auto, cpu, cuda, cuda:N, mps or xpu")
    precision: Literal["float32", "bf16", "fp16"] = setting(
        "float32", unread_by=("predict", WITH_FOLDERS, "claims", "race")
    )
    resume: str = setting("never", read_by=("finetune", "metatrain", "claims", "race"))
    checkpoint_minutes: float = setting(5.0, least=0, read_by=TRAIN)
    deterministic: bool = setting(False, unread_by=("claims", "race"))
    detect_anomaly: bool = setting(False, unread_by=("claims", "race"))
    pictures: bool = setting(True, read_by=TRAIN)
    save: Literal["model", "adapter"] = setting("model", read_by=("finetune",))
    trackers: str | None = setting(None, read_by=("finetune",))


@dataclass
class DataConfig(Settings):
    """The labelled images.

    Args:
        name: folder, digits, mnist-m (MNIST over photographs), or a torchvision data set such as mnist or cifar10; for
            few-shot tasks also omniglot-small, alphabets (a folder ALPHABET/CHARACTER/IMAGE), or a benchmark: omniglot,
            mini-imagenet, tiered-imagenet, cifar-fs, fc100, cub; default: folder where data.root is given, else digits
            (embedded).
        root: the folder of images, or the folder that torchvision's data lies in; a relative one is looked for in the
            working directory, then in $ARELU_META_DATA.
        labels: a CSV with the columns file (or file_name, as in Hugging Face's metadata.csv) and label, and split
            (train, val, test) or not; files are relative to data.root or, by default, to the CSV's folder.
        image_size: side in pixels; default: the model's own, 64 for the embedded digits, 28 for episodes with the
            small networks.
        batch_size: images a step.
        per_class: training images a class; default: all that the split leaves. The test set does not depend on it.
        skip_broken: leave out files that are not images, and count them, instead of stopping.
        max_pixels: the largest image that is read; pixels of 16 bits and more count four times, and an image that is
            200 times as wide as high, or more, counts 2^27 for each 200.
        range: of pixels of 16 and 32 bits and floats, LOW-HIGH, as 0-4095 or 0-1, which become black and white; auto
            decides it once for all images, by the smallest and the largest pixel of all of them, and says so.
        fit: finetune: how an image becomes a square: crop its middle, pad it, or squash it; pad and squash keep all of
            it, and the model's file says so to evaluate, predict and export.
        download: let torchvision download a named set that data.root does not hold.
        rotations: meta-training only: every quarter turn of a training class is a class of its own.
        folds: finetune: cross-validate over this many stratified folds; each is the test set once.
        fold: finetune: only this fold, from 1; default: all, one after the other.
        augmentation: finetune: none, crop (random crops, and mirror images where they mean the same), or crop and one
            of timm's policies, as rand-m6-n2 or augmix-m3-w3; auto takes none where features are computed once, else
            crop.
        workers: finetune: processes that decode images; auto: none on a CPU, up to 8 beside a GPU.
        cache: finetune: keep decoded images in memory; auto does so where they take less than a gigabyte and a tenth of
            the memory.

    Example:
        >>> from arelu_meta import DataConfig
        >>> DataConfig(per_class=10).per_class
        10
    """

    name: str | None = setting(None, several=True, unread_by=("predict", WITH_FOLDERS, "claims transfer"))
    root: str | None = setting(None, unread_by=("predict", WITH_FOLDERS))
    labels: str | None = setting(None, read_by=("finetune", ON_IMAGES, "race", *LABELLED_STUDIES))
    image_size: int | None = setting(
        None,
        least=1,
        most=LARGEST_IMAGE,
        read_by=("finetune", "metatrain", "swap", "race", *FINETUNE_STUDIES, *META_STUDIES),
    )
    batch_size: int = setting(
        32, least=1, read_by=(*FINETUNE, ON_IMAGES, WITH_FOLDERS, "predict", "race", *FINETUNE_STUDIES)
    )
    per_class: int | None = setting(None, least=1, read_by=("finetune", "race", *FINETUNE_STUDIES))
    skip_broken: bool = setting(False, unread_by=("claims mnist", "claims gradients"))
    max_pixels: int = setting(MOST_PIXELS, least=1, most=2**40, unread_by=("claims mnist", "claims gradients"))
    range: str = setting(
        "auto",
        pattern=RANGE,
        words="auto, or LOW-HIGH, as 0-255, 0-4095 or 0-1",
        unread_by=("predict", WITH_FOLDERS, "claims mnist", "claims gradients"),
    )
    fit: Literal["crop", "pad", "squash"] = setting("crop", read_by=FINETUNE)
    download: bool = setting(True, unread_by=("predict", WITH_FOLDERS))
    rotations: bool = setting(False, read_by=("metatrain", ON_TASKS))
    folds: int | None = setting(None, least=2, read_by=FINETUNE)
    fold: int | None = setting(None, least=1, read_by=FINETUNE)
    augmentation: str = setting("auto", read_by=FINETUNE, unread_by=(PROBE,), harmless=("none",))
    workers: int | Literal["auto"] = setting("auto", least=0, most=1024, read_by=FINETUNE)
    cache: bool | Literal["auto"] = setting("auto", read_by=FINETUNE)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; a CSV of labels stands in its data's folder where no other is given."""
        super().__setattr__(name, value)
        if name == "labels" and isinstance(value, str | PurePath) and self.root is None:
            self.root = str(PurePath(value).parent)


@dataclass
class ModelConfig(Settings):
    """The backbone and its activation.

    Args:
        name: any timm model, or mnist_conv, mnist_linear, conv4, conv4_32, resnet12.
        pretrained: true, false, or what to start from: a run folder or its model.safetensors; weights of the model that
            timm or PyTorch saved (.safetensors, .pth, .pth.tar, .bin, .ckpt, a folder of save_for_hf);
            hf-hub:OWNER/NAME; or an adapter.
        activation: what to swap in, also elsa:BASE (as elsa:relu6: that activation plus AReLU's attention), arelu:START
            or arelu:START:frozen (the scalars do not learn), or a control (`arelu-meta activations` lists both);
            default: the model's own.
        init: how a swapped-in AReLU starts; default: preserve for pretrained weights, paper otherwise; leak opens
            preserve's gates a little on the negative side, open on both; nearest comes as near as an AReLU can to what
            it replaces; fit does so on the training images.
        alpha: where a swapped-in AReLU's alpha (or ELSA's) starts, 0.01 to 0.99; default: what init says, mostly 0.9.
        beta: likewise beta; default: what init says, mostly 2.
        reset_head: start a new head, where the checkpoint's would go on: its rows go by the names of the classes, and
            classes that it does not know get new rows.
        head_init: how a new head starts: zero, random, or, finetune alone, probe (logistic regression on the frozen
            features of the training images); auto takes probe in finetune where the pretrained function is kept, zero
            on other pretrained features, else random.
        drop_rate: finetune: dropout before the head; default: the model's own.

    Example:
        >>> from arelu_meta import ModelConfig
        >>> ModelConfig(activation="arelu").activation
        'arelu'
    """

    name: str = "tf_efficientnet_lite0"
    pretrained: bool | str = True
    activation: Activation | None = None
    init: Init | None = None
    alpha: float | None = setting(None, least=0.01, most=0.99)
    beta: float | None = setting(None, least=-MOST_BETA, most=MOST_BETA)
    reset_head: bool = False
    head_init: Literal["auto", "zero", "random", "probe"] = setting("auto", unread_by=(PROBE,), harmless=("probe",))
    drop_rate: float | None = setting(None, least=0, below=1, read_by=("finetune",), unread_by=(HEAD, PROBE))


@dataclass
class OptimConfig(Settings):
    """The optimiser (for metatrain: of the outer loop).

    Args:
        name: any timm optimiser: sgd, momentum, adamw, adam, lamb …
        lr: learning rate, > 0; finetune also takes auto, which looks for one (a range test) and says what it chose;
            default: in finetune 0.03 where the pretrained function is kept (with less than 600 training images less, in
            proportion), 0.003 where a swap changes it, 0.01 from random weights; a thirtieth of that for optimisers
            other than SGD and its variants.
        head_lr: learning rate of the head; default: lr.
        act_lr: learning rate of the activations' scalars (alpha, beta, t); default: lr, but in finetune a hundredth of
            it where the pretrained function is kept (preserve), and three tenths where the scalars alone are trained.
        weight_decay: of weights; biases, normalisation and the scalars are spared.
        schedule: how the learning rate goes down over the run (poly is a straight line; step divides by 10 twice).
        warmup_epochs: epochs of linear warm-up.
        open_gates: share of the training over which the gates of preserve open from 0 to 1, above 0 and at most 1;
            default: they are learned.
        layer_decay: each layer below the head learns at this share of the rate of the layer above it, in (0, 1].
        clip_grad: largest norm of all gradients together; default: no limit, but in finetune 1 where the pretrained
            function is kept and the backbone learns.
        accumulate: finetune: batches whose gradients make one step.

    Example:
        >>> from arelu_meta import OptimConfig
        >>> OptimConfig(lr=0.03).lr
        0.03
    """

    name: str = "sgd"
    lr: float | Literal["auto", "default"] = setting("default", above=0)
    head_lr: float | None = setting(None, above=0, unread_by=(PROBE,))
    act_lr: float | None = setting(None, above=0, unread_by=(HEAD, PROBE))
    weight_decay: float = setting(1e-4, least=0)
    schedule: Schedule = "cosine"
    warmup_epochs: int = setting(0, least=0, unread_by=(PROBE,))
    open_gates: float | None = setting(None, above=0, most=1, unread_by=(HEAD, PROBE))
    layer_decay: float | None = setting(None, above=0, most=1, unread_by=(HEAD, PROBE))
    clip_grad: float | None = setting(None, above=0, unread_by=(PROBE,))
    accumulate: int = setting(1, least=1, read_by=("finetune",), unread_by=(PROBE,))


@dataclass
class TrainConfig(Settings):
    """How long, and what.

    Args:
        epochs: passes over the training images.
        mode: full (every parameter); head (a linear probe: the rest stays as it is, statistics too); activations (the
            scalars of the activations and the head); norm (scale and shift of normalisation, and the head); bias (all
            biases and the head); lora (low-rank adapters of linear layers and convolutions, and the head; needs the
            extra peft; the model's file holds them merged); last-N (the last N stages and the head); gradual (the head
            first, then a stage more at a time, all by half of the training); probe (scikit-learn's logistic regression
            on the frozen features, no gradient steps).
        lora_rank: of the low-rank adapters of mode lora.
        repeats: how many seeds, from run.seed on.
        freeze_bn: leave batch normalisation as it is, scale and shift and statistics; auto does so where the pretrained
            function is kept (the model's own activations, or preserve).
        sync_bn: on several GPUs, take batch normalisation's statistics over all of them.
        ema: decay of a running average of the weights, which is then what is validated, tested and saved.
        label_smoothing: share of each label that is spread over all classes, in [0, 1).
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of cutmix; 0 is off. With both, each batch draws one of them.
        class_weights: balanced weighs images so that all classes count alike.
        keep: which epoch's model is written and tested: one_se, of the epochs whose validation accuracy is within one
            standard error of the highest, the last; best, the highest; or last.
        patience: stop after this many epochs without a better validation accuracy, or an equal one at a lower loss;
            default: never.
        compile: torch.compile the model.
        channels_last: keep the weights, and by them what passes between layers, in channels-last order; auto does so on
            a CPU where the backbone has depthwise convolutions, which are faster then.
        shard: over several processes, each keeps a part of the weights, gradients and optimiser state alone (FSDP), for
            a backbone that does not fit one of them.

    Example:
        >>> from arelu_meta import TrainConfig
        >>> TrainConfig(mode="activations").mode
        'activations'
    """

    epochs: int = setting(20, least=1)
    mode: Mode = setting(
        "full", pattern=MODE, words="full, head, activations, norm, bias, lora, gradual, probe or last-N, as last-2"
    )
    lora_rank: int = setting(8, least=1, most=4096)
    repeats: int = setting(1, least=1)
    freeze_bn: bool | Literal["auto"] = "auto"
    sync_bn: bool = False
    ema: float | None = setting(None, above=0, below=1, unread_by=(PROBE,))
    label_smoothing: float = setting(0.0, least=0, below=1, unread_by=(PROBE,))
    mixup: float = setting(0.0, least=0, unread_by=(PROBE,))
    cutmix: float = setting(0.0, least=0, unread_by=(PROBE,))
    class_weights: Literal["none", "balanced"] = "none"
    keep: Keep = setting("one_se", unread_by=(PROBE,))
    patience: int | None = setting(None, least=1, unread_by=(PROBE,))
    compile: bool = setting(False, unread_by=(HEAD, PROBE))
    channels_last: bool | Literal["auto"] = "auto"
    shard: bool = False


@dataclass
class TaskConfig(Settings):
    """A few-shot task.

    Args:
        ways: classes a task.
        shots: support images a class.
        queries: query images a class.
        split_file: JSON ({"train": [...], "validation": [...], "test": [...]}) or CSV (columns class and part) that
            says which classes are trained on; default: the seed, or the data itself, decides.
        alphabets: for characters of several alphabets: mixed; one-in-test (all characters of a test task are of one
            alphabet, as Lake et al. 2015 test); or one (of a training task, too).

    Example:
        >>> from arelu_meta import TaskConfig
        >>> TaskConfig(ways=20).ways
        20
    """

    ways: int = setting(5, least=2, most=MOST_A_TASK)
    shots: int = setting(1, least=1, most=MOST_A_TASK)
    queries: int = setting(15, least=1, most=MOST_A_TASK)
    split_file: str | None = None
    alphabets: Alphabets = "mixed"


@dataclass
class MetaConfig(Settings):
    """The meta-learner.

    Args:
        algorithm: maml, fomaml (first-order MAML), anil (only the head adapts), metasgd (a learned rate for every
            weight), mamlpp (learned rates for every layer and step, and a loss after every step), reptile, protonet
            (prototypical networks); or, with no meta-training at all, on the frozen features of the backbone:
            centroid, logistic, or finetune (the support set fine-tunes it).
        engine: learn2learn (task after task) or vectorized (several tasks at once where that is faster;
            needs no learn2learn); auto takes the vectorized one where both are equal.
        order: 2 differentiates through the inner steps, 1 does not (first-order MAML).
        inner_lr: learning rate of the inner loop, > 0.
        inner_act_lr: learning rate of the activations' scalars in the inner loop, > 0; default: inner_lr.
        adapt: what the inner loop adapts: all, head, or activations (their scalars alone).
        inner_steps: gradient steps on the support set while training.
        batch_tasks: tasks a meta-step.
        task_chunk: tasks that the vectorized engine computes at once; auto: as many as fit half of the free memory, and
            one where tasks are so large that a CPU is faster with one at a time.
        normalization: transductive (statistics of the batch at hand, queries too), support (of the support set alone),
            running (averages learned in training), frozen (those that the model came with), group (group
            normalisation), or none.
        steps: meta-steps.

    Example:
        >>> from arelu_meta import MetaConfig
        >>> MetaConfig(inner_steps=5).inner_steps
        5
    """

    algorithm: Algorithm = "maml"
    engine: Literal["auto", "learn2learn", "vectorized"] = "auto"
    order: Literal[1, 2] = 2
    inner_lr: float = setting(0.4, above=0, most=LARGEST_RATE)
    inner_act_lr: float | None = setting(None, above=0, most=LARGEST_RATE)
    adapt: Adapt = "all"
    inner_steps: int = setting(1, least=1, most=MOST_INNER_STEPS)
    batch_tasks: int = setting(16, least=1, most=MOST_TASKS)
    task_chunk: int | Literal["auto"] = setting("auto", least=1)
    normalization: Normalization = "transductive"
    steps: int = setting(200, least=1)


@dataclass
class EvalConfig(Settings):
    """How a meta-learner is judged.

    Args:
        tasks: tasks from unseen classes at the end.
        inner_steps: gradient steps on a test task's support set; default: meta.inner_steps.
        every: meta-steps between two validations.
        validation_tasks: tasks of each validation.
        patience: stop after this many validations without a better accuracy; default: never.
        against: evaluate: what else is judged on the same tasks, pair by pair: run folders; pixels (the nearest class
            by raw pixels); or centroid, logistic or finetune on the backbone that the run started from; several with
            commas between.

    Example:
        >>> from arelu_meta import EvalConfig
        >>> EvalConfig(tasks=100).tasks
        100
    """

    tasks: int = setting(600, least=2, most=MOST_TASKS, read_by=("metatrain", ON_TASKS))
    inner_steps: int | None = setting(None, least=1, most=MOST_INNER_STEPS, read_by=("metatrain", ON_TASKS))
    every: int = setting(50, least=1, read_by=("metatrain",))
    validation_tasks: int = setting(100, least=1, most=MOST_TASKS, read_by=("metatrain",))
    patience: int | None = setting(None, least=1, read_by=("metatrain",))
    against: str | None = setting(None, read_by=(ON_TASKS, ON_IMAGES))


@dataclass
class FinetuneConfig(Settings):
    """Fine-tune a backbone on labelled images.

    Args:
        run: where and how.
        data: the images.
        model: the backbone.
        optim: the optimiser.
        train: how long, and what.

    Example:
        >>> from arelu_meta import FinetuneConfig
        >>> config = FinetuneConfig()
        >>> config.train.mode, config.optim.lr = "activations", 0.03
        >>> config.optim.rl = 0.1
        Traceback (most recent call last):
        AttributeError: OptimConfig has no field 'rl'; nearest: 'lr'
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class RepeatConfig(Settings):
    """How often.

    Args:
        repeats: how many seeds, from run.seed on; their mean and its interval are the result.
    """

    repeats: int = setting(1, least=1)


@dataclass
class MetatrainConfig(Settings):
    """Meta-train on few-shot tasks and evaluate on unseen classes.

    Args:
        run: where and how.
        data: the images whose classes become tasks.
        model: the learner.
        optim: the outer loop's optimiser.
        task: a task's size.
        meta: the algorithm.
        eval: the evaluation.
        train: how often.

    Example:
        >>> from arelu_meta import MetatrainConfig
        >>> config = MetatrainConfig()
        >>> config.task.ways, config.task.shots
        (5, 1)
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="conv4", pretrained=False))
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="adam", lr=1e-3, weight_decay=0.0, schedule="constant")
    )
    task: TaskConfig = field(default_factory=TaskConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    train: RepeatConfig = field(default_factory=RepeatConfig)


@dataclass
class UnseenTaskConfig(Settings):
    """How the tasks of an evaluation differ from those of the run.

    Args:
        shots: support images a class; default: the run's.
        queries: query images a class; default: the run's.
        alphabets: mixed, or one (all characters of a task are of one alphabet); default: as the run was tested.
    """

    shots: int | None = setting(None, least=1, most=MOST_A_TASK, read_by=(ON_TASKS,))
    queries: int | None = setting(None, least=1, most=MOST_A_TASK, read_by=(ON_TASKS,))
    alphabets: Literal["mixed", "one"] | None = setting(None, read_by=(ON_TASKS,))


@dataclass
class EvaluateConfig(Settings):
    """Evaluate a checkpoint: on its run's own test images or unseen tasks, or on a folder of your images.

    Args:
        checkpoint: a run folder or a model.safetensors; with a support, also the name of a timm model.
        run: seed and device; run.folder, where given, receives results.json.
        data: other images than the run's own test set.
        eval: the number of tasks, and what else is judged on them.
        task: other tasks than the run's own.
        support: few-shot: a folder with a sub-folder a class to learn from; each class weighs the same.
        query: with a support: a folder of the same classes to be judged on.
    """

    checkpoint: str
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    task: UnseenTaskConfig = field(default_factory=UnseenTaskConfig)
    support: str | None = None
    query: str | None = None


@dataclass
class PredictConfig(Settings):
    """Name the class of images: with a fine-tuned model, or few-shot from a support folder.

    Args:
        checkpoint: a run folder or a model.safetensors.
        images: image files or folders.
        support: few-shot: a folder with a sub-folder a class.
        output: a CSV file to write the predictions to.
        top_k: how many of the likeliest classes to name.
        probabilities: the CSV has each class's probability too, a column a class.
        overwrite: replace a file that is there.
        run: device; run.folder receives predictions.csv.
        data: skip_broken and batch_size.
    """

    checkpoint: str
    images: list[str]
    support: str | None = None
    output: str | None = None
    top_k: int = setting(1, least=1)
    probabilities: bool = False
    overwrite: bool = False
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class ExportConfig(Settings):
    """Export a fine-tuned model to ONNX, TorchScript or torch.export, or push it to the Hugging Face Hub.

    Args:
        checkpoint: a run folder or a model.safetensors.
        output: the file to write (.onnx, .pt, .pt2); default: model.onnx, model.pt or model.pt2 beside the weights.
        format: onnx, torchscript or pt2 (torch.export); default: by the ending of output, else onnx.
        fold: write gated residuals as plain AReLUs in the file, where an AReLU is the same function.
        overwrite: replace files that are there.
        hub: USER/NAME on the Hugging Face Hub to push the model to; a file is written too where output or format is
            given.
        private: whether a new repository on the Hub is private.
    """

    checkpoint: str
    output: str | None = None
    format: Literal["onnx", "torchscript", "pt2"] | None = None
    fold: bool = False
    overwrite: bool = False
    hub: str | None = None
    private: bool = False


@dataclass
class SwapConfig(Settings):
    """Swap activations in a model and print what was replaced.

    Args:
        model: the backbone.
        data: images to measure the drift on; default: pieces of two photographs.
        batch_norm: re-estimate the running statistics of batch normalisation on the images, after the swap.
        all: swap into every model of timm, without its data, and print the share that is fully swapped; minutes.
        image: draw how far each activation's output moves to this file (.png, .pdf, .svg).
    """

    model: ModelConfig = field(default_factory=lambda: ModelConfig(pretrained=False, activation="arelu"))
    data: DataConfig = field(default_factory=DataConfig)
    batch_norm: bool = False
    all: bool = False
    image: str | None = None


@dataclass
class ActivationsConfig(Settings):
    """List every activation by name: whether it learns, and its source.

    Args:
        plot: draw each function and its derivative to this file (.png, .pdf, .svg).
    """

    plot: str | None = None


@dataclass
class BenchConfig(Settings):
    """Measure what it costs, beside peers in the same run.

    Args:
        what: op (one activation), step (a whole training step), finetune (a whole epoch) or maml (a meta-step).
        case: only the cases of this id; * stands for anything.
        json: write the rows to this file, too.
        rounds: how often each contender has its turn; default: enough for a steady median.
        device: auto, cpu, cuda …
        growth: maml: how a meta-step grows with 1 to 128 tasks and with 1 to 10 inner steps, too; long.
        deterministic: step: each contender under run.deterministic, too, beside itself without.
    """

    what: Literal["op", "step", "finetune", "maml"]
    case: str | None = None
    json: str | None = None
    rounds: int | None = setting(None, least=1)
    device: str = setting("auto", pattern=DEVICE, words="auto, cpu, cuda, cuda:N, mps or xpu")
    growth: bool = setting(False, read_by=("bench maml",))
    deterministic: bool = setting(False, read_by=("bench step",))


StudyName = Literal["mnist", "small-lr", "gradients", "transfer", "architectures", "meta", "focus", "tuning"]


@dataclass
class StudyModelConfig(Settings):
    """The models that a study compares.

    Args:
        name: names of models, with commas between; default: the study's own.
        pretrained: true, false, or the path of a run folder or model.safetensors; default: the study's own.
        activation: activations, with commas between, each with its start behind a colon where it has one, as
            original,relu,arelu:paper,arelu:preserve; original keeps the model's own; also controls, as control:gain,
            control:leak, relu:he or arelu:open:frozen (`arelu-meta activations` explains them); default: the study's.
        alpha: where the alpha of each AReLU and ELSA starts, with commas between, as 0.5,0.9: each contender once a
            start; default: what the start of each says.
        beta: likewise beta.
    """

    name: str | None = setting(None, several=True)
    pretrained: bool | str | None = setting(None, read_by=("claims small-lr", "claims focus", "claims tuning"))
    activation: str | None = setting(None, several=True)
    alpha: float | str | None = setting(None, least=0.01, most=0.99, several=True, read_by=("claims small-lr",))
    beta: float | str | None = setting(None, several=True, read_by=("claims small-lr",))


@dataclass
class StudyOptimConfig(Settings):
    """The optimisers that a study compares.

    Args:
        name: timm's names, with commas between; default: the study's own.
        lr: learning rates, with commas between, as 1e-2,1e-3; of the inner loop where the study meta-learns; the
            smallest is the small one that claims are about, unless small_lr names it; default: the study's own.
        small_lr: the small learning rate; one of lr.
    """

    name: str | None = setting(None, several=True)
    lr: float | str | None = setting(None, above=0, several=True)
    small_lr: float | None = setting(None, above=0, read_by=("claims small-lr", "claims transfer"))


@dataclass
class StudyTrainConfig(Settings):
    """How long a study's runs are, and how many.

    Args:
        epochs: of each run; default: the study's own.
        repeats: how many seeds, from run.seed on; 2 at the least, for an interval; default: the study's own.
        modes: what is trained, as in train.mode of finetune, with commas between; default: the study's own.
    """

    epochs: int | None = setting(None, least=1, unread_by=META_STUDIES)
    repeats: int | None = setting(None, least=1)
    modes: str | None = setting(None, several=True, read_by=("claims tuning",))


@dataclass
class StudyMetaConfig(Settings):
    """How a study's meta-learners are trained and judged.

    Args:
        steps: meta-steps; default: the study's own.
        tasks: tasks from unseen classes at the end; default: the study's own.
        shots: study meta: support images a class, with commas between, as 1,5; default: the study's own.
    """

    steps: int | None = setting(None, least=1, read_by=META_STUDIES)
    tasks: int | None = setting(None, least=2, most=MOST_TASKS, read_by=META_STUDIES)
    shots: int | str | None = setting(None, least=1, most=MOST_A_TASK, read_by=("claims meta",))


@dataclass
class StudyFocusConfig(Settings):
    """Where the study focus looks, and at what.

    Args:
        images: a folder of images to look at; default: test images of the data.
        boxes: a CSV with the columns image,x0,y0,x1,y1: where the object is, in pixels of the image; image is a path
            below the folder of images, and several rows of one image are several boxes.
        masks: a folder with a picture an image, of the same path below it with any image's ending; the object is where
            it is above half of its brightest value.
        runs: folders of fine-tuning runs with commas between, the first the one to compare with; default: the study
            fine-tunes.
        count: how many images; default: the study's own.
    """

    images: str | None = setting(None, read_by=("claims focus",))
    boxes: str | None = setting(None, read_by=("claims focus",))
    masks: str | None = setting(None, read_by=("claims focus",))
    runs: str | None = setting(None, several=True, read_by=("claims focus",))
    count: int | None = setting(None, least=1, read_by=("claims focus",))


@dataclass
class ClaimsConfig(Settings):
    """Run one of the paper's claims as a study and judge it: ahead, level, behind, or so many more seeds needed.

    Args:
        study: mnist (the authors' table), small-lr (small learning rates, on your backbone and data), gradients (do
            they vanish in deep plain networks), transfer (from one set of images to another), architectures
            (mainstream networks from scratch), meta (MAML, as the authors read it and on unseen classes), focus
            (Grad-CAM: does the network look at the object) or tuning (small sets of parameters side by side).
        size: quick (at most 10 minutes on 2 cores) or full (the paper's size); flags change either.
        run: where and how; run.resume auto goes on where a study was stopped.
        data: the images, where a study lets you choose.
        model: the models and activations.
        optim: the optimisers and learning rates.
        train: epochs and seeds.
        meta: of studies that meta-learn.
        focus: images, boxes or masks, and runs of the study focus.
        pipeline: small-lr: finetune, or maml, whose learning rate is the inner loop's.
        variant: mnist: the activations as the authors ran them, or as the papers define them.
        target: small-lr: the accuracy that steps are counted to, a fraction; default: 0.9 of the original's best.
        pairs: transfer: which sets are learned one after the other, with commas between, as mnist-to-mnist-m (also
            mnist-to-svhn, svhn-to-mnist, mnist-to-digits) and imagenet-to-flowers17 (a pretrained backbone, on a folder
            or set of images); default: the study's own.
        depth: gradients: hidden layers of the networks, with commas between, as 5,20,50; default: the study's own.
        regime: also --study.regime; how all contenders fine-tune: careful (batch normalisation held, the head starts as
            logistic regression on the features, gradients clipped) or plain (none of it); default: careful for
            pretrained weights, plain for random ones.
        margin: how many points (gradients: powers of ten) a difference must exceed to count; within it, two are level.
        processes: runs side by side on a CPU; default: one a core.
        engine: mnist: one network after another in each process, or stacked and vectorised; auto stacks on a GPU.
    """

    study: StudyName
    size: Literal["quick", "full"] = "quick"
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: StudyModelConfig = field(default_factory=StudyModelConfig)
    optim: StudyOptimConfig = field(default_factory=StudyOptimConfig)
    train: StudyTrainConfig = field(default_factory=StudyTrainConfig)
    meta: StudyMetaConfig = field(default_factory=StudyMetaConfig)
    focus: StudyFocusConfig = field(default_factory=StudyFocusConfig)
    pipeline: Literal["finetune", "maml"] = setting("finetune", read_by=("claims small-lr",))
    variant: Literal["authors", "paper"] = setting("authors", read_by=("claims mnist", "claims meta"))
    target: float | None = setting(None, above=0, most=1, read_by=("claims small-lr",))
    pairs: str | None = setting(None, several=True, read_by=("claims transfer",))
    depth: int | str | None = setting(None, least=2, several=True, read_by=("claims gradients",))
    regime: Literal["plain", "careful"] | None = setting(None, read_by=FINETUNE_STUDIES)
    margin: float = setting(1.0, least=0)
    processes: int | None = setting(None, least=1, most=1024)
    engine: Literal["auto", "single", "stacked"] = setting("auto", read_by=("claims mnist",))


@dataclass
class RaceModelConfig(Settings):
    """The backbone that races.

    Args:
        name: any timm model with a linear head, or one of the small networks.
        pretrained: true, false, or weights, as finetune takes them.
    """

    name: str = "tf_efficientnet_lite0"
    pretrained: bool | str = True


@dataclass
class RaceSettings(Settings):
    """How long, and how much.

    Args:
        budget: how long the race may take, as 15m, 1h, 90s or 1h30m; it says beforehand what it will do in that time.
        controls: let the controls race, too (a constant gain, fixed leaks, a faster head, frozen scalars).
        more: add seeds to a finished race, for as long again; give its run.folder.
    """

    budget: str = setting("15m", pattern=DURATION, words="a time, as 15m, 1h, 90s or 1h30m")
    controls: bool = False
    more: bool = False


@dataclass
class RaceConfig(Settings):
    """Race recipes of fine-tuning on your images: which adapts best, at which learning rate, and why.

    Args:
        run: where and how; run.resume auto goes on with a race that was stopped.
        data: the images.
        model: the backbone.
        race: how long, and how much.
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: RaceModelConfig = field(default_factory=RaceModelConfig)
    race: RaceSettings = field(default_factory=RaceSettings)


@dataclass
class ReportConfig(Settings):
    """Write one self-contained HTML page of a run, a study or a sweep, with Markdown and CSV beside it.

    Args:
        runs: the folders of runs, of a study or a sweep, or a folder of runs.
        output: the page to write (.html); default: report.html in the folder, or in the working directory for several.
        compare: compare two runs, the second with the first.
    """

    runs: list[str]
    output: str | None = None
    compare: bool = False


@dataclass
class SweepRunConfig(Settings):
    """Where a sweep lies.

    Args:
        folder: of all its runs and their table; the same command goes on with what it holds; default: runs/sweep-NAME
            of the file.
    """

    folder: str | None = None


@dataclass
class SlurmConfig(Settings):
    """How Slurm is asked (launcher submitit).

    Args:
        cluster: slurm; local runs jobs on this machine; auto takes Slurm where there is one.
        partition: of the jobs; default: Slurm's own.
        account: of the jobs; default: Slurm's own.
        minutes: a job may take; one that needs longer is put back into the queue, and goes on from its checkpoint.
        wait: for the jobs; without it the command ends once they are queued, and the same command later sums them up.
    """

    cluster: Literal["auto", "slurm", "local"] = "auto"
    partition: str | None = None
    account: str | None = None
    minutes: int = setting(240, least=1)
    wait: bool = True


@dataclass
class SweepConfig(Settings):
    """Do many runs of one task, each once, and write one table of what they found.

    Args:
        spec: the sweep's YAML file: task, shared fields, parameters and their values, search.
        run: where.
        launcher: ray (this machine, or a cluster) or submitit (Slurm's job arrays).
        workers: most runs at once; default: as many as the cores, or GPUs, hold.
        cpus: cores a run; 0.5 lets two share one.
        gpus: GPUs a run; 0.25 lets four share one; auto: 1 where there are any and run.device takes them.
        address: of a Ray cluster, HOST:PORT, or auto for the one that this machine is part of; default: one of its own.
        retries: how often a run whose worker died is gone on with.
        retry_failed: do the runs again that failed.
        dry_run: print the runs and do none.
        slurm: of launcher submitit.
    """

    spec: str
    run: SweepRunConfig = field(default_factory=SweepRunConfig)
    launcher: Literal["ray", "submitit"] = "ray"
    workers: int | None = setting(None, least=1)
    cpus: float = setting(1.0, above=0)
    gpus: float | Literal["auto"] = setting("auto", least=0)
    address: str | None = None
    retries: int = setting(3, least=0)
    retry_failed: bool = False
    dry_run: bool = False
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class DemoConfig(Settings):
    """The main job on embedded data, or part of it on your own folder of images.

    Args:
        run: where and how.
        data: data.root: your folder of images, a sub-folder a class; without it, embedded data.
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class LookupConfig(Settings):
    """Where a named set is looked for.

    Args:
        root: the folder that it lies in; default: the working directory and $ARELU_META_DATA.
        fetch: download what is missing, through torchvision or learn2learn.
    """

    root: str | None = None
    fetch: bool = False


@dataclass
class DataTaskConfig(Settings):
    """Say where a named data set comes from, its terms and layout, and whether it is here; fetch it where asked.

    Args:
        name: of the set, as mnist or omniglot-small; default: list all of them.
        data: where it is looked for.
    """

    name: str | None = None
    data: LookupConfig = field(default_factory=LookupConfig)


@dataclass
class RecipesConfig(Settings):
    """List the packaged recipes, or copy one to read and change it.

    Args:
        name: of the recipe, as finetune/flowers17 or flowers17; default: list all of them.
        out: the file to copy it to; never over another one; default: its own name, here.
    """

    name: str | None = None
    out: str | None = None


@dataclass
class EnvConfig(Settings):
    """Print what a bug report needs: versions, machine, devices."""


def reader_of(config: Settings) -> str:
    """Name who reads a config's fields, as their `read_by` does; empty where only a checkpoint can tell.

    Args:
        config: of a task.
    """
    match config:
        case FinetuneConfig():
            return {"head": HEAD, "probe": PROBE}.get(config.train.mode, "finetune")
        case EvaluateConfig():
            return WITH_FOLDERS if config.support is not None or config.query is not None else ""
        case ClaimsConfig():
            pipeline = f" --pipeline {config.pipeline}" if config.study == "small-lr" else ""
            return f"claims {config.study}{pipeline}"
        case BenchConfig():
            return f"bench {config.what}"
        case MetatrainConfig() | PredictConfig() | SwapConfig() | DemoConfig() | RaceConfig():
            return type(config).__name__.removesuffix("Config").lower()
    return ""
