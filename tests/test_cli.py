import dataclasses
import errno
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml

from arelu_meta import cli
from arelu_meta.cli import TASKS, main, parse
from arelu_meta.config import FinetuneConfig
from arelu_meta.errors import InputError, RunError

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "learn2learn",
    "sklearn",
    "numba",
    "scipy",
    "pandas",
    "matplotlib",
    "PIL",
    "rich",
}


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- flags ------------------------------------------------------------------------------------------------------------


def test_flags_are_the_fields_full_names_with_their_values_behind_them() -> None:
    config = parse("finetune", ["--optim.lr", "1e-3", "--data.root", "flowers", "--train.epochs", "3"])
    assert (config.optim.lr, config.data.root, config.train.epochs) == (0.001, "flowers", 3)
    assert config.optim.name == "sgd"


def test_a_value_may_stand_behind_an_equals_sign() -> None:
    config = parse("finetune", ["--optim.lr=0.5", "--data.root=a=b", "--run.seed=7", "--data.skip_broken=true"])
    assert (config.optim.lr, config.data.root, config.run.seed, config.data.skip_broken) == (0.5, "a=b", 7, True)


@pytest.mark.parametrize("value", ["-1e-3", "-inf", "-x"])
def test_a_value_that_looks_like_a_flag_is_read_as_the_value(value: str) -> None:
    for words in (["--optim.lr", value], [f"--optim.lr={value}"]):
        with pytest.raises(InputError, match=rf"^optim\.lr: '?{value.replace('1e-3', '0.001')}'? is not allowed"):
            parse("finetune", words)
    assert parse("finetune", ["--data.root", "-odd-name"]).data.root == "-odd-name"
    assert parse("finetune", ["--data.root=--odder"]).data.root == "--odder"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.skip_broken"], True),
        (["--data.skip_broken", "true"], True),
        (["--data.skip_broken", "false"], False),
        (["--data.skip_broken=false"], False),
        (["--data.skip_broken", "--run.seed", "3"], True),
        (["--data.skip_broken", "True"], True),
        ([], False),
    ],
)
def test_a_boolean_s_value_is_optional(words: list[str], expected: bool) -> None:
    assert parse("finetune", words).data.skip_broken is expected


def test_a_boolean_without_a_value_does_not_swallow_a_positional_word() -> None:
    config = parse("predict", ["run", "--data.skip_broken", "a.jpg", "b.jpg"])
    assert (config.checkpoint, config.images, config.data.skip_broken) == ("run", ["a.jpg", "b.jpg"], True)


@pytest.mark.parametrize(
    ("word", "expected"), [("true", True), ("false", False), ("runs/a", "runs/a"), ("./true", "./true")]
)
def test_pretrained_is_true_false_or_a_path(word: str, expected: bool | str) -> None:
    assert parse("finetune", ["--model.pretrained", word]).model.pretrained == expected


def test_pretrained_alone_is_true() -> None:
    words = ["--model.pretrained", "--run.seed", "1"]
    assert parse("metatrain", words).model.pretrained is True
    assert parse("metatrain", []).model.pretrained is False


def test_of_a_flag_given_twice_the_last_counts() -> None:
    assert parse("finetune", ["--run.seed", "1", "--run.seed", "2"]).run.seed == 2


def test_null_is_the_default_of_what_may_be_left_out() -> None:
    assert parse("finetune", ["--data.per_class", "null"]).data.per_class is None


def test_texts_stay_texts() -> None:
    texts = ["123", "true", "null-and-void", "1e3", "{a: 1}", "[x]", "a: b", "Blüten 花", "2024-01-01", "'q'"]
    for text in [*texts, "#1", "~", "&a", "*a", "a #b", " lead", "%x", "@x"]:  # a folder may have any name
        assert parse("finetune", ["--data.root", text]).data.root == text
        assert parse("finetune", ["--model.name", text]).model.name == text
        assert parse("predict", [text, text]).images == [text]


def test_texts_of_a_config_file_stay_texts_too(tmp_path: Path) -> None:
    for text in ("#1", "~", "null", "true"):
        file = _write(tmp_path / "c.yaml", yaml.safe_dump({"data": {"root": text}}))
        assert parse("finetune", ["--config", file]).data.root == text
    file = _write(tmp_path / "c.yaml", "data: {root: '#1'}\nrun: {folder: ~}\n")
    assert parse("finetune", ["--config", file]).run.folder is None
    assert parse("finetune", ["--config", file, "--data.root", "flowers"]).data.root == "flowers"
    assert parse("finetune", ["--config", file, "--data.root", "null"]).data.root is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], r"^--optim\.lrr: no such flag; nearest: 'optim\.lr'"),
        (["--name", "1"], r"^--name: no such flag; nearest: 'data\.name', 'model\.name', 'optim\.name'"),
        (["--optim.l", "1"], r"^--optim\.l: no such flag; nearest: 'optim\.lr'"),  # no abbreviations
        (["--data.batch-size", "1"], r"^--data\.batch-size: no such flag; nearest: 'data\.batch_size'"),
        (["--optim", "{lr: 1}"], r"^--optim: no such flag"),
        (["--task.ways", "3"], r"^--task\.ways: no such flag; it is read by metatrain alone; leave it out"),
        (["--confg", "x.yaml"], r"^--confg: no such flag; nearest: 'config'"),
        (["--"], r"^--: no such flag"),
        (["--run.seed"], r"^run\.seed: no value given"),
        (["--run.seed", "--optim.lr", "1"], r"^run\.seed: no value given"),
        (["word", "another"], r"^'another': not expected"),
        (["--data.skip_broken=maybe"], r"^data\.skip_broken: 'maybe' is not allowed; give true or false$"),
        (
            ["--train.mode", "half"],
            r"^train\.mode: 'half' is not known; give full, head, activations, norm, bias, lora, gradual, probe or",
        ),
        (["--data.image_size", "1e9"], r"^data\.image_size: '1e9' is not allowed; give a whole number$"),
        (["--model.activation", ""], r"^model\.activation: '' is empty"),
        (["--train.epochs", "2.5"], r"^train\.epochs: '2\.5' is not allowed; give a whole number$"),
        (["--optim.lr", "fast"], r"^optim\.lr: 'fast' is not allowed; give a number or one of 'auto', 'default'$"),
        (["--optim.head_lr", "fast"], r"^optim\.head_lr: 'fast' is not allowed; give a number$"),
        (
            ["--model.init", "zero"],
            r"^model\.init: 'zero' is not allowed; give one of 'paper', 'preserve', 'leak', 'open', 'nearest', 'fit'$",
        ),
    ],
)
def test_a_wrong_flag_or_value_is_told_with_what_is_allowed(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse("finetune", words)


def test_names_of_a_class_that_only_differ_in_a_digit_are_told_apart() -> None:
    with pytest.raises(InputError, match=r"^meta\.order: '3' is not allowed; give one of 1, 2$"):
        parse("metatrain", ["--meta.order", "3"])
    assert parse("metatrain", ["--meta.order", "1"]).meta.order == 1


# -- positional words -------------------------------------------------------------------------------------------------


def test_positional_words_go_to_their_fields() -> None:
    assert parse("evaluate", ["runs/a", "--eval.tasks", "10"]).checkpoint == "runs/a"
    assert parse("evaluate", ["--eval.tasks", "10", "runs/a"]).checkpoint == "runs/a"
    assert parse("swap", ["resnet18", "--model.activation", "gelu"]).model.name == "resnet18"
    images = ["a b.jpg", 'quo"te.jpg', "[1].jpg", "花.jpg", "a,b.jpg"]
    assert parse("predict", ["run", *images]).images == images


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("evaluate", [], r"^CHECKPOINT: missing; usage: arelu-meta evaluate CHECKPOINT$"),
        ("predict", ["run"], r"^IMAGES: missing; "),
        ("swap", [], r"^MODEL: missing; "),
        ("evaluate", ["a", "b"], r"^'b': not expected"),
        ("env", ["x"], r"^'x': not expected"),
    ],
)
def test_positional_words_too_few_or_too_many_are_told(task: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(task, words)


def test_positional_words_may_stand_in_the_config_file(tmp_path: Path) -> None:
    file = _write(tmp_path / "c.yaml", "checkpoint: runs/a\neval: {tasks: 7}\n")
    config = parse("evaluate", ["--config", file])
    assert (config.checkpoint, config.eval.tasks) == ("runs/a", 7)
    assert parse("evaluate", ["runs/b", "--config", file]).checkpoint == "runs/b"
    file = _write(tmp_path / "c.yaml", 'checkpoint: runs/a\nimages: [a.jpg, 👩🔬.jpg, "c\\td"]\n')
    assert parse("predict", ["--config", file]).images == ["a.jpg", "👩🔬.jpg", "c\td"]


@pytest.mark.parametrize(
    "words", ["finetune caf\udce9", "predict run caf\udce9", "caf\udce9", "finetune --caf\udce9 1"]
)
def test_a_word_that_is_not_utf_8_is_told_in_one_line(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    wrong = next(word for word in words.split() if "caf" in word)
    assert capfd.readouterr().err == f"error: {wrong!r} is not UTF-8; give UTF-8, and rename files so (convmv does)\n"


# -- config files -----------------------------------------------------------------------------------------------------


def test_flags_override_the_config_file_wherever_they_stand(tmp_path: Path) -> None:
    file = _write(tmp_path / "c.yaml", "optim: {lr: 0.5, name: adamw}\nrun: {seed: 3}\n")
    for words in (["--config", file, "--optim.lr", "0.1"], ["--optim.lr", "0.1", f"--config={file}"]):
        config = parse("finetune", words)
        assert (config.optim.lr, config.optim.name, config.run.seed) == (0.1, "adamw", 3)


def test_of_two_config_files_the_later_counts_field_by_field(tmp_path: Path) -> None:
    first = _write(tmp_path / "a.yaml", "optim: {lr: 0.5, name: adamw}\n")
    second = _write(tmp_path / "b.yaml", "optim: {lr: 0.25}\n")
    config = parse("finetune", ["--config", first, "--config", second])
    assert (config.optim.lr, config.optim.name) == (0.25, "adamw")


def test_numbers_in_yaml_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    file = _write(tmp_path / "c.yaml", "optim: {lr: 1e-3, head_lr: 3.e-2, act_lr: '0.5'}\ntrain: {epochs: 4}\n")
    config = parse("finetune", ["--config", file])
    assert (config.optim.lr, config.optim.head_lr, config.optim.act_lr, config.train.epochs) == (1e-3, 3e-2, 0.5, 4)


def test_an_empty_config_file_and_names_of_all_languages_work(tmp_path: Path) -> None:
    folder = tmp_path / "Meine Läufe 花"
    folder.mkdir()
    for text in ("", "# only a comment\n", "{}"):
        assert parse("finetune", ["--config", _write(folder / "ü.yaml", text)]).optim.lr == FinetuneConfig().optim.lr
        assert parse("finetune", ["--config", str(folder / "ü.yaml"), "--optim.lr", "0.1"]).optim.lr == 0.1
    file = _write(folder / "ü.yaml", "data: {root: Blüten 花}\n")
    assert parse("finetune", ["--config", file]).data.root == "Blüten 花"


@pytest.mark.parametrize("task", ["finetune", "metatrain", "demo", "swap"])
def test_a_config_written_as_yaml_is_read_back_as_it_was(tmp_path: Path, task: str) -> None:
    config = TASKS[task].config()
    if hasattr(config, "model"):
        config.model.name = "resnet18"
    if hasattr(config, "run"):
        config.run.seed, config.run.folder = 12, "a b"
    file = _write(tmp_path / "c.yaml", yaml.safe_dump(dataclasses.asdict(config)))
    assert parse(task, ["--config", file, *(["resnet18"] if task == "swap" else [])]) == config


def test_a_config_file_of_many_keys_or_bytes_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path / "c.yaml", "".join(f"k{number}: 1\n" for number in range(12_000)))
    with pytest.raises(InputError, match="holds more than 10000 values"):
        parse("finetune", ["--config", file])
    file = _write(tmp_path / "long.yaml", "k: " + "x" * 1_000_001)
    with pytest.raises(InputError, match="has more than 1000000 bytes"):
        parse("finetune", ["--config", file])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 1}", r"'optim\.lrr' is not a field of finetune; nearest: 'optim\.lr'"),
        ("optm: {lr: 1}", r"'optm' is not a field of finetune"),
        ("lr: 1", r"'lr' is not a field of finetune"),
        (
            "task: {ways: 3}",
            r"'task' is not a field of finetune; it is read by metatrain, evaluate alone; leave it out",
        ),
        ("optim: {small_lr: 3}", r"'optim\.small_lr' is not a field of finetune; it is read by claims alone"),
        ("optim: 3", r"optim: 3 is not allowed; give fields below `optim:`, such as `name:`"),
        ("optim: [lr, 1]", r"optim: \['lr', 1\] is not allowed; give fields below"),
        ("optim:", r"optim: None is not allowed; give fields below"),
        ("optim: other.yaml", r"optim: 'other\.yaml' is not allowed; give fields below"),
        ("optim: {lr: {a: 1}}", r"optim\.lr: .* is not allowed; give a number"),
        ("optim: {lr: 0.1}\noptim: {lr: 0.2}", r"is not YAML: 'optim' is given twice \(line 2\)$"),
        ("optim:\n  lr: 0.1\n  lr: 0.2", r"is not YAML: 'lr' is given twice \(line 3\)$"),
        ("optim: {lr: fast}", r"optim\.lr: 'fast' is not allowed; give a number"),
        ("optim: {lr: null}", r"optim\.lr: null is not allowed; give a value or leave optim\.lr out"),
        ("train: {epochs: null}", r"train\.epochs: null is not allowed"),
        ("data: {skip_broken: maybe}", r"data\.skip_broken: 'maybe' is not allowed; give true or false"),
        ("- a\n- b", r"holds a list; give keys such as `optim:`"),
        ("just words", r"holds a str; give keys"),
        ("{", r"is not YAML"),
        ("a: b: c", r"is not YAML"),
        ("!!python/object/apply:os.system [true]", r"is not YAML"),
        ("run: {seed: 2026-13-45}", r"'2026-13-45' is no timestamp \(month must be in 1\.\.12\)"),
        ("1: 2", r"'1' is not a field"),
        ("a: &a {b: *a}", r"is not YAML: it contains itself \(line 1\)"),
        ("optim: &a {lr: *a}", r"it contains itself"),
        ('run: {seed: !!int ""}', r"is not YAML: '' is no int \(line 1\)$"),
        ('optim: {lr: !!float ""}', r"'' is no float"),
        ("data: {skip_broken: !!bool maybe}", r"'maybe' is no bool"),
        ("run: {seed: !!timestamp now}", r"'now' is no timestamp"),
        ("run: {seed: !!binary 'a\nb'}", r"is not YAML: failed to decode base64 data"),
        ("optim.lr: 0.1\noptim: {lr: 0.2}", r"'optim\.lr' is given twice, dotted and nested; give it once"),
        ("optim: {lr: 0.2}\noptim.lr: 0.1", r"'optim\.lr' is given twice, dotted and nested"),
    ],
)
def test_a_wrong_config_file_is_named_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    file = _write(tmp_path / "c.yaml", text)
    with pytest.raises(InputError, match=message) as raised:
        parse("finetune", ["--config", file])
    assert str(raised.value).startswith((f"config: {file!r}", "optim.", "data.", "train."))


def test_a_config_file_that_is_missing_a_folder_binary_or_unreadable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    for name, message in (
        ("gone.yaml", "does not exist or is not a file"),
        (".", "does not exist or is not a file"),
        ("x" * 5000, "does not exist or is not a file"),
        ("binary", "is not YAML"),
    ):
        with pytest.raises(InputError, match=message):
            parse("finetune", ["--config", str(tmp_path / name)])

    def refuse(self: Path, encoding: str) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match=r"binary' cannot be read \(Permission denied\)"):
        parse("finetune", ["--config", str(tmp_path / "binary")])


# -- help -------------------------------------------------------------------------------------------------------------

RUN = "folder seed device precision resume deterministic detect_anomaly"
DATA = "name root image_size batch_size per_class skip_broken"
MODEL = "name pretrained activation init reset_head"
OPTIM = "name lr head_lr act_lr weight_decay schedule warmup_epochs"
META = "algorithm engine order inner_lr inner_steps batch_tasks normalization steps"
CONTRACT = {
    "finetune": {"run": RUN, "data": DATA, "model": MODEL, "optim": OPTIM, "train": "epochs mode"},
    "metatrain": {
        **{"run": RUN, "data": DATA, "model": MODEL, "optim": OPTIM},
        **{"task": "ways shots queries", "meta": META, "eval": "tasks"},
    },
    "evaluate": {"run": "folder device", "data": "name root", "eval": "tasks"},
    "predict": {"run": "folder device", "data": "skip_broken batch_size"},
    "swap": {"model": "pretrained activation init"},
    "demo": {"run": "folder seed device", "data": "root"},
}


@pytest.mark.parametrize("task", CONTRACT)
def test_help_lists_every_flag_of_the_contract(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([task, "--help"]) == 0
    out, err = capsys.readouterr()
    for group, names in CONTRACT[task].items():
        for name in names.split():
            assert f"  --{group}.{name} " in out or f"  --{group}.{name}\n" in out, f"--{group}.{name}"
    assert "--config" in out
    assert out.startswith(f"usage: arelu-meta {task}")
    assert err == ""


def test_help_says_what_each_flag_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    main(["finetune", "-h"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--optim.head_lr HEAD_LR learning rate of the head; default: lr." in out
    assert "--data.image_size IMAGE_SIZE side in pixels; default: the model's own" in out


def test_help_shows_defaults_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    main(["finetune", "-h"])
    out = " ".join(capsys.readouterr().out.split())
    assert "default: tf_efficientnet_lite0" in out
    assert "--train.mode MODE" in out
    assert "--run.precision {float32,bf16,fp16}" in out


def test_help_wins_over_everything_else_on_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--optim.lr", "fast", "--nonsense", "x", "--help"]) == 0
    assert main(["predict", "--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_task_every_task_is_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    for task in TASKS:
        assert f"\n  {task} " in out
    assert {"demo", "finetune", "metatrain", "evaluate", "predict", "swap", "env"} <= TASKS.keys()


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    from importlib.metadata import version

    assert capsys.readouterr().out == f"{version('arelu-meta')}\n"


def _modules_after(*calls: list[str]) -> set[str]:
    """Run command lines in one fresh process and return the heavy packages that it has imported."""
    code = (
        "import sys, contextlib, io\n"
        "from arelu_meta.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    statuses = [main(words) for words in {list(calls)!r}]\n"
        "print(*statuses)\n"
        f"print(*({HEAVY!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    statuses, modules = done.stdout.splitlines()
    assert set(statuses.split()) <= {"0", "2"}
    return set(modules.split())


def test_help_of_every_task_imports_no_torch() -> None:
    assert _modules_after([], ["--help"], ["--version"], *([task, "--help"] for task in TASKS)) == set()


def test_arguments_that_are_wrong_are_refused_before_torch_is_imported() -> None:
    wrong = [["finetun"], ["finetune", "--optim.lr", "x"], ["finetune", "--optim.lr", "0"], ["predict"], ["swap"]]
    assert _modules_after(*wrong, ["finetune", "--config", "gone.yaml"], ["metatrain", "--nonsense"]) == set()


def test_a_missing_folder_run_or_file_is_told_before_torch_is_imported() -> None:
    gone = [["finetune", "gone"], ["metatrain", "gone"], ["evaluate", "gone"], ["predict", "gone", "x"]]
    assert _modules_after(*gone, ["export", "gone"], ["report", "gone"]) <= {"PIL", "rich"}


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = f"import sys, arelu_meta; print(*({HEAVY!r} | {{'numpy', 'yaml', 'jsonargparse'}}) & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# -- tasks and exit statuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_function(task: str) -> None:
    assert callable(cli._function(TASKS[task]))


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("finetun", "finetune"), ("meta-train", "metatrain"), ("FINETUNE", "finetune"), ("pred", "predict")],
)
def test_an_unknown_task_is_told_with_the_nearest(wrong: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([wrong, "--run.seed", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: task: {wrong!r} is not known; nearest: {near!r}")


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (InputError("optim.lr:\n  0 is\tnot allowed"), 2, "error: optim.lr: 0 is not allowed\n"),
        (RunError("the loss became nan"), 3, "error: the loss became nan\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 3, "error: out/x: No space left on device\n"),
        (OSError("no number"), 3, "error: no number\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (KeyboardInterrupt("x.pt is written"), 130, "error: interrupted; x.pt is written\n"),
    ],
)
def test_what_a_task_raises_becomes_a_status_and_one_line(
    raised: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _replace_task(monkeypatch, raised)
    assert main(["env"]) == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 20480 bytes\nmore"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_out_of_memory_is_no_bug(
    raised: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _replace_task(monkeypatch, raised)
    assert main(["env"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory")
    assert err.endswith("try a smaller --data.batch_size or --data.image_size\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "said",
    ["DataLoader worker (pid 7) is killed by signal: Killed. ", "DataLoader worker (pid(s) 7) exited unexpectedly"],
)
def test_a_worker_that_dies_is_no_bug(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _replace_task(monkeypatch, RuntimeError(said))
    assert main(["env"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a process that decodes images died (DataLoader worker")
    assert line.endswith("with fewer --data.workers where memory ran out")


def test_an_operation_that_cannot_be_repeated_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    except RuntimeError as error:
        _replace_task(monkeypatch, error)
    finally:
        torch.use_deterministic_algorithms(False)
    assert main(["env"]) == 3
    err = capsys.readouterr().err
    assert err == "error: run.deterministic: put_ has no repeatable form on this device; leave run.deterministic out\n"


@pytest.mark.parametrize("raised", [KeyError("x"), RuntimeError("shapes differ"), AssertionError()])
def test_a_bug_keeps_its_traceback(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_task(monkeypatch, raised)
    with pytest.raises(type(raised)):
        main(["env"])


def _replace_task(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    def run(_: Any) -> NoReturn:
        raise raised

    monkeypatch.setattr(cli, "_function", lambda _: run)


def test_the_process_s_own_arguments_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["arelu-meta", "finetun"])
    assert main() == 2
    assert "'finetun'" in capsys.readouterr().err


def test_the_status_is_the_process_s() -> None:
    done = subprocess.run([sys.executable, "-m", "arelu_meta", "finetun"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: task: ")


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m arelu_meta.cli finetune --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("words", ["--version", "finetune --help"])
def test_output_that_cannot_be_written_is_status_3_in_one_line(words: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "arelu_meta.cli", *words.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (3, "error: No space left on device\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("words", "status"), [("--version", 0), ("finetune --help", 0), ("finetune --nonsense 1", 2)])
def test_closed_and_full_streams_change_no_status_and_say_nothing(words: str, status: int, closed: str) -> None:
    command = f"{sys.executable} -m arelu_meta.cli {words} {closed}; echo status $?"
    done = subprocess.run(["bash", "-c", f"({command}) 3>&1 1>&3"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"status {status}\n")
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("\n") <= (status == 2)


def test_a_file_that_is_opened_gets_no_closed_stream_s_number(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from arelu_meta.exit_status import guarded\n"
        "def work():\n"
        "    with open(sys.argv[1], 'w') as file: print('printed'); file.write(str(file.fileno()))\n"
        "sys.exit(guarded(work))\n"
    )
    file = tmp_path / "file"
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "$0" {file} <&- >&- 2>&-', code], check=False)
    assert done.returncode == 0
    assert int(file.read_text()) > 2


def test_a_terminal_without_unicode_gets_the_help_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arelu_meta.cli", "--help"], capture_output=True, env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0
    assert rb"\u2026" in done.stdout


# -- a run's last lines -----------------------------------------------------------------------------------------------

_TINY = ["--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "8", "--data.per_class"]


@pytest.mark.parametrize(
    ("words", "tasks", "kept"),
    [
        (["finetune", *_TINY, "3", "--train.epochs", "2"], "report predict export", r"kept: .* \(validation accuracy"),
        (
            ["finetune", *_TINY, "3", "--train.epochs", "2", "--train.keep", "last"],
            "report predict export",
            "epoch 2 of",
        ),
        (["finetune", *_TINY, "3", "--train.epochs", "2", "--train.repeats", "2"], "report", "kept: "),
        (
            ["metatrain", *_TINY[:-1], "--task.queries", "2", "--meta.steps", "2", "--meta.inner_lr", "0.1"],
            "report evaluate predict",
            r"kept: step 2 of 2, the best by validation \(accuracy",
        ),
    ],
    ids=["finetune", "keep last", "repeats", "metatrain"],
)
def test_a_run_ends_with_the_epoch_it_kept_and_why_and_with_the_next_commands(
    words: list[str], tasks: str, kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run"
    few = ["--eval.tasks", "4", "--eval.validation_tasks", "4", "--meta.batch_tasks", "2"]
    assert main([*words, *(few if words[0] == "metatrain" else []), "--run.folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(kept, out)
    commands = [line.strip() for line in out.rpartition("next: ")[2].splitlines()]
    assert [command.split()[1] for command in commands] == tasks.split()
    for command in commands:
        _, task, *arguments = shlex.split(command)
        assert arguments[0] == str(folder)
        assert parse(task, arguments) is not None
    assert main(["report", str(folder)]) == 0


def test_a_home_of_nobody_and_a_rate_beyond_floats_are_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--data.labels", "~nouser/x"],
        ["--data.root", "~nouser/x"],
        ["--optim.head_lr", "1e308"],
        ["--train.mixup", "1e-320"],
    ):
        assert main(["finetune", *words]) == 2
        assert capfd.readouterr().err.count("\n") == 1
