"""Every task of the command line: its config, its words, and the function that does it."""

from dataclasses import dataclass

from arelu_meta import config as configs


@dataclass(frozen=True)
class Task:
    """One task of the command line: its config, and the function that does it, as `module:function`."""

    config: type
    run: str
    help: str
    positional: tuple[str, ...] = ()
    without_words: str = ""
    greeting: str = ""  # said before torch is imported, which takes seconds


TASKS: dict[str, Task] = {
    "demo": Task(
        configs.DemoConfig,
        "arelu_meta.demo:demo",
        "the main job on embedded data, in minutes",
        greeting="arelu_meta demo: fine-tune a pretrained backbone three ways, meta-learn two ways; a few minutes",
    ),
    "finetune": Task(configs.FinetuneConfig, "arelu_meta.finetuning:finetune", "fine-tune a backbone on your images"),
    "metatrain": Task(configs.MetatrainConfig, "arelu_meta.meta:metatrain", "meta-learn few-shot tasks"),
    "evaluate": Task(
        configs.EvaluateConfig, "arelu_meta.evaluation:evaluate_task", "evaluate a run", positional=("checkpoint",)
    ),
    "predict": Task(
        configs.PredictConfig,
        "arelu_meta.prediction:predict_task",
        "class and probability of images",
        positional=("checkpoint", "images"),
    ),
    "export": Task(
        configs.ExportConfig,
        "arelu_meta.exporting.task:export_task",
        "a run as ONNX, TorchScript or torch.export, or to the Hub",
        positional=("checkpoint",),
    ),
    "swap": Task(
        configs.SwapConfig,
        "arelu_meta.backbones.swap_task:swap_task",
        "what a swap replaces in a model",
        positional=("model.name",),
        without_words="all",
    ),
    "activations": Task(
        configs.ActivationsConfig, "arelu_meta.activations.task:activations_task", "every activation by name"
    ),
    "claims": Task(
        configs.ClaimsConfig,
        "arelu_meta.claims.task:claims_task",
        "the paper's claims as studies, judged",
        positional=("study",),
    ),
    "sweep": Task(
        configs.SweepConfig,
        "arelu_meta.sweeping.task:sweep_task",
        "many runs, on this machine or a cluster",
        positional=("spec",),
    ),
    "report": Task(
        configs.ReportConfig,
        "arelu_meta.report.report:report_task",
        "a page of a run, a study or a sweep",
        positional=("runs",),
    ),
    "bench": Task(
        configs.BenchConfig, "arelu_meta.bench.task:bench_task", "what it costs, beside peers", positional=("what",)
    ),
    "env": Task(configs.EnvConfig, "arelu_meta.runs.environment:env_task", "what a bug report needs"),
}
