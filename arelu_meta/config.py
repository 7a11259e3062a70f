"""The dataclasses that configure every task: the one source of defaults, choices and help.

Flags (`--optim.lr 1e-3`) and YAML keys (`optim: {lr: 1e-3}`) are these fields; `checking.py` has their ranges. Nothing
here imports torch.
"""

from dataclasses import dataclass, field
from typing import Literal

Schedule = Literal["constant", "cosine", "poly", "step", "tanh", "wsd"]
Init = Literal["paper", "preserve", "leak", "open", "nearest", "fit"]
Normalization = Literal["transductive", "support", "running", "frozen", "group", "none"]
Keep = Literal["one_se", "best", "last"]
Alphabets = Literal["mixed", "one-in-test", "one"]
Adapt = Literal["all", "head", "activations"]
Algorithm = Literal[
    "maml", "fomaml", "anil", "metasgd", "mamlpp", "reptile", "protonet", "centroid", "logistic", "finetune"
]


@dataclass
class RunConfig:
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
        trackers: finetune: where else metrics go, through accelerate, with commas between: tensorboard, wandb, mlflow …
    """

    folder: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    resume: str = "never"
    checkpoint_minutes: float = 5.0
    deterministic: bool = False
    detect_anomaly: bool = False
    pictures: bool = True
    trackers: str | None = None


@dataclass
class DataConfig:
    """The labelled images.

    Args:
        name: folder, digits, mnist-m (MNIST over photographs), or a torchvision data set such as mnist or cifar10; for
            few-shot tasks also omniglot-small, alphabets (a folder ALPHABET/CHARACTER/IMAGE), or a benchmark: omniglot,
            mini-imagenet, tiered-imagenet, cifar-fs, fc100, cub; default: folder where data.root is given, else digits
            (embedded).
        root: the folder of images, or the folder that torchvision's data lies in; a relative one is looked for in the
            working directory, then in $ARELU_META_DATA.
        image_size: side in pixels; default: the model's own, 64 for the embedded digits, 28 for episodes with the
            small networks.
        batch_size: images a step.
        per_class: training images a class; default: all that the split leaves. The test set does not depend on it.
        skip_broken: leave out files that are not images, and count them, instead of stopping.
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
    """

    name: str | None = None
    root: str | None = None
    image_size: int | None = None
    batch_size: int = 32
    per_class: int | None = None
    skip_broken: bool = False
    download: bool = True
    rotations: bool = False
    folds: int | None = None
    fold: int | None = None
    augmentation: str = "auto"
    workers: int | Literal["auto"] = "auto"
    cache: bool | Literal["auto"] = "auto"


@dataclass
class ModelConfig:
    """The backbone and its activation.

    Args:
        name: any timm model, or mnist_conv, mnist_linear, conv4, conv4_32, resnet12.
        pretrained: true, false, or the path of a run folder or model.safetensors to start from.
        activation: what to swap in; default: the model's own.
        init: how a swapped-in AReLU starts; default: preserve for pretrained weights, paper otherwise; leak opens
            preserve's gates a little on the negative side, open on both; nearest comes as near as an AReLU can to what
            it replaces; fit does so on the training images.
        reset_head: start a new head where the checkpoint's has another number of classes.
        head_init: how a new head starts: zero, random, or, finetune alone, probe (logistic regression on the frozen
            features of the training images); auto takes probe in finetune where the pretrained function is kept, zero
            on other pretrained features, else random.
        drop_rate: finetune: dropout before the head; default: the model's own.
    """

    name: str = "tf_efficientnet_lite0"
    pretrained: bool | str = True
    activation: str | None = None
    init: Init | None = None
    reset_head: bool = False
    head_init: Literal["auto", "zero", "random", "probe"] = "auto"
    drop_rate: float | None = None


@dataclass
class OptimConfig:
    """The optimiser (for metatrain: of the outer loop).

    Args:
        name: any timm optimiser: sgd, momentum, adamw, adam, lamb …
        lr: learning rate, > 0; finetune also takes auto, which looks for one (a range test) and says what it chose;
            default: in finetune 0.03 where the pretrained function is kept (with less than 600 training images less, in
            proportion), 0.003 where a swap changes it, 0.01 from random weights; a thirtieth of that for optimisers
            other than SGD and its variants.
        head_lr: learning rate of the head; default: lr.
        act_lr: learning rate of the activations' scalars (alpha, beta, t); default: lr, but in finetune a hundredth of
            it where the pretrained function is kept (preserve) and not the scalars alone are trained.
        weight_decay: of weights; biases, normalisation and the scalars are spared.
        schedule: how the learning rate goes down over the run (poly is a straight line; step divides by 10 twice).
        warmup_epochs: epochs of linear warm-up.
        open_gates: share of the training over which the gates of preserve open from 0 to 1, above 0 and at most 1;
            default: they are learned.
        layer_decay: each layer below the head learns at this share of the rate of the layer above it, in (0, 1].
        clip_grad: largest norm of all gradients together; default: no limit, but in finetune 1 where the pretrained
            function is kept and the backbone learns.
        accumulate: finetune: batches whose gradients make one step.
    """

    name: str = "sgd"
    lr: float | Literal["auto", "default"] = "default"
    head_lr: float | None = None
    act_lr: float | None = None
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_epochs: int = 0
    open_gates: float | None = None
    layer_decay: float | None = None
    clip_grad: float | None = None
    accumulate: int = 1


@dataclass
class TrainConfig:
    """How long, and what.

    Args:
        epochs: passes over the training images.
        mode: full (every parameter); head (a linear probe: the rest stays as it is, statistics too); activations (the
            scalars of the activations and the head); last-N (the last N stages and the head); gradual (the head first,
            then a stage more at a time, all by half of the training); probe (scikit-learn's logistic regression on the
            frozen features, no gradient steps).
        repeats: how many seeds, from run.seed on.
        freeze_bn: leave batch normalisation as it is, scale and shift and statistics; auto does so where the pretrained
            function is kept (the model's own activations, or preserve), but not in mode activations.
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
    """

    epochs: int = 20
    mode: str = "full"
    repeats: int = 1
    freeze_bn: bool | Literal["auto"] = "auto"
    sync_bn: bool = False
    ema: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    keep: Keep = "one_se"
    patience: int | None = None
    compile: bool = False
    channels_last: bool | Literal["auto"] = "auto"
    shard: bool = False


@dataclass
class TaskConfig:
    """A few-shot task.

    Args:
        ways: classes a task.
        shots: support images a class.
        queries: query images a class.
        split_file: JSON ({"train": [...], "validation": [...], "test": [...]}) or CSV (columns class and part) that
            says which classes are trained on; default: the seed, or the data itself, decides.
        alphabets: for characters of several alphabets: mixed; one-in-test (all characters of a test task are of one
            alphabet, as Lake et al. 2015 test); or one (of a training task, too).
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    split_file: str | None = None
    alphabets: Alphabets = "mixed"


@dataclass
class MetaConfig:
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
    """

    algorithm: Algorithm = "maml"
    engine: Literal["auto", "learn2learn", "vectorized"] = "auto"
    order: Literal[1, 2] = 2
    inner_lr: float = 0.4
    inner_act_lr: float | None = None
    adapt: Adapt = "all"
    inner_steps: int = 1
    batch_tasks: int = 16
    task_chunk: int | Literal["auto"] = "auto"
    normalization: Normalization = "transductive"
    steps: int = 200


@dataclass
class EvalConfig:
    """How a meta-learner is judged.

    Args:
        tasks: tasks from unseen classes at the end.
        inner_steps: gradient steps on a test task's support set; default: meta.inner_steps.
        every: meta-steps between two validations.
        validation_tasks: tasks of each validation.
        patience: stop after this many validations without a better accuracy; default: never.
        against: evaluate: what else is judged on the same tasks, pair by pair: run folders, or centroid, logistic or
            finetune on the backbone that the run started from; several with commas between.
    """

    tasks: int = 600
    inner_steps: int | None = None
    every: int = 50
    validation_tasks: int = 100
    patience: int | None = None
    against: str | None = None


@dataclass
class FinetuneConfig:
    """Fine-tune a backbone on labelled images.

    Args:
        run: where and how.
        data: the images.
        model: the backbone.
        optim: the optimiser.
        train: how long, and what.
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class MetatrainConfig:
    """Meta-train on few-shot tasks and evaluate on unseen classes.

    Args:
        run: where and how.
        data: the images whose classes become tasks.
        model: the learner.
        optim: the outer loop's optimiser.
        task: a task's size.
        meta: the algorithm.
        eval: the evaluation.
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


@dataclass
class UnseenTaskConfig:
    """How the tasks of an evaluation differ from those of the run.

    Args:
        shots: support images a class; default: the run's.
        queries: query images a class; default: the run's.
        alphabets: mixed, or one (all characters of a task are of one alphabet); default: as the run was tested.
    """

    shots: int | None = None
    queries: int | None = None
    alphabets: Literal["mixed", "one"] | None = None


@dataclass
class EvaluateConfig:
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
class PredictConfig:
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
    top_k: int = 1
    probabilities: bool = False
    overwrite: bool = False
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class ExportConfig:
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
class SwapConfig:
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
class ActivationsConfig:
    """List every activation by name: whether it learns, and its source.

    Args:
        plot: draw each function and its derivative to this file (.png, .pdf, .svg).
    """

    plot: str | None = None


@dataclass
class BenchConfig:
    """Measure what it costs, beside peers in the same run.

    Args:
        what: op (one activation), step (a whole training step), finetune (a whole epoch), maml (a meta-step), swap (of
            timm's models), episodes (few-shot tasks a second) or claims (an epoch of the study mnist).
        case: only the cases of this id; * stands for anything.
        json: write the rows to this file, too.
        rounds: how often each contender has its turn; default: enough for a steady median.
        device: auto, cpu, cuda …
        growth: maml: how a meta-step grows with 1 to 128 tasks and with 1 to 10 inner steps, too; long.
        deterministic: step: each contender under run.deterministic, too, beside itself without.
    """

    what: Literal["op", "step", "maml", "swap", "finetune", "episodes", "claims"]
    case: str | None = None
    json: str | None = None
    rounds: int | None = None
    device: str = "auto"
    growth: bool = False
    deterministic: bool = False


StudyName = Literal["mnist", "small-lr", "gradients", "transfer", "architectures", "meta", "focus"]


@dataclass
class StudyModelConfig:
    """The models that a study compares.

    Args:
        name: names of models, with commas between; default: the study's own.
        pretrained: true, false, or the path of a run folder or model.safetensors; default: the study's own.
        activation: activations, with commas between, each with its start behind a colon where it has one, as
            original,relu,arelu:paper,arelu:preserve; original keeps the model's own; default: the study's.
    """

    name: str | None = None
    pretrained: bool | str | None = None
    activation: str | None = None


@dataclass
class StudyOptimConfig:
    """The optimisers that a study compares.

    Args:
        name: timm's names, with commas between; default: the study's own.
        lr: learning rates, with commas between, as 1e-2,1e-3; of the inner loop where the study meta-learns; the
            smallest is the small one that claims are about, unless small_lr names it; default: the study's own.
        small_lr: the small learning rate; one of lr.
    """

    name: str | None = None
    lr: float | str | None = None
    small_lr: float | None = None


@dataclass
class StudyTrainConfig:
    """How long a study's runs are, and how many.

    Args:
        epochs: of each run; default: the study's own.
        repeats: how many seeds, from run.seed on; 2 at the least, for an interval; default: the study's own.
    """

    epochs: int | None = None
    repeats: int | None = None


@dataclass
class StudyMetaConfig:
    """How a study's meta-learners are trained and judged.

    Args:
        steps: meta-steps; default: the study's own.
        tasks: tasks from unseen classes at the end; default: the study's own.
        shots: study meta: support images a class, with commas between, as 1,5; default: the study's own.
    """

    steps: int | None = None
    tasks: int | None = None
    shots: int | str | None = None


@dataclass
class StudyFocusConfig:
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

    images: str | None = None
    boxes: str | None = None
    masks: str | None = None
    runs: str | None = None
    count: int | None = None


@dataclass
class ClaimsConfig:
    """Run one of the paper's claims as a study and judge it: holds, does not hold, or cannot tell.

    Args:
        study: mnist (the authors' table), small-lr (small learning rates, on your backbone and data), gradients (do
            they vanish in deep plain networks), transfer (from one set of images to another), architectures
            (mainstream networks from scratch), meta (MAML, as the authors read it and on unseen classes) or focus
            (Grad-CAM: does the network look at the object).
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
        margin: by how many points (gradients: powers of ten) a claim must be ahead to hold.
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
    pipeline: Literal["finetune", "maml"] = "finetune"
    variant: Literal["authors", "paper"] = "authors"
    target: float | None = None
    pairs: str | None = None
    depth: int | str | None = None
    margin: float = 1.0
    processes: int | None = None
    engine: Literal["auto", "single", "stacked"] = "auto"


@dataclass
class ReportConfig:
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
class SweepRunConfig:
    """Where a sweep lies.

    Args:
        folder: of all its runs and their table; the same command goes on with what it holds; default: runs/sweep-NAME
            of the file.
    """

    folder: str | None = None


@dataclass
class SlurmConfig:
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
    minutes: int = 240
    wait: bool = True


@dataclass
class SweepConfig:
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
    workers: int | None = None
    cpus: float = 1.0
    gpus: float | Literal["auto"] = "auto"
    address: str | None = None
    retries: int = 3
    retry_failed: bool = False
    dry_run: bool = False
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class DemoConfig:
    """The main job on embedded data, or part of it on your own folder of images.

    Args:
        run: where and how.
        data: data.root: your folder of images, a sub-folder a class; without it, embedded data.
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class EnvConfig:
    """Print what a bug report needs: versions, machine, devices."""
