"""The catalog: every shipped file is sound, every fault names file, line and field, the nearer file wins."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantlab import catalog
from quantlab.catalog import strict
from quantlab.errors import BadInput
from quantlab.records import CalibrationSet, Grid, Policy, Recipe, Suite

RECIPE = """\
summary: a recipe
preset: FP8_DEFAULT_CFG
format: fp8
calibration:
  samples: 4
  length: 64
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without any of our folders."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fault(text: str | bytes, folder: Path, kind: str = "recipe", name: str = "mine.yaml") -> BadInput:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        catalog.find(kind, str(file))
    return caught.value


# --- what is shipped ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("recipes", {"bf16", "fp8", "int4_awq"}),
        ("sets", {"python-docs", "cnn_dailymail", "ultrachat", "wikitext"}),
        ("suites", {"quick", "smoke", "llama32", "real"}),
        ("grids", {"quick", "rtx4090-slm", "h200-max", "knee"}),
        ("policies", {"default", "strict"}),
    ],
)
def test_every_shipped_file_is_sound(kind: str, known: set[str], elsewhere: Path) -> None:
    good, bad = catalog.listing(kind)
    assert not bad
    assert known <= {found.name for found in good}
    assert all(found.record.summary.strip() for found in good)
    for found in good:
        assert found.digest == hashlib.sha256(found.path.read_bytes()).hexdigest()
        assert catalog.find(kind, found.name) == found


def test_words_give_records_of_their_kind(elsewhere: Path) -> None:
    assert isinstance(catalog.recipe("fp8").record, Recipe)
    assert isinstance(catalog.calibration_set("python-docs").record, CalibrationSet)
    assert isinstance(catalog.suite("quick").record, Suite)
    assert isinstance(catalog.grid("quick").record, Grid)
    assert isinstance(catalog.policy("default").record, Policy)


def test_what_shipped_files_name_exists(elsewhere: Path) -> None:
    """Calibration sets of recipes, task files, items, texts."""
    for found in catalog.names("recipe"):
        assert isinstance(found.record, Recipe)
        if found.record.calibration:
            catalog.set_digest(catalog.calibration_set(found.record.calibration.set))
    for found in catalog.names("suite"):
        assert isinstance(found.record, Suite)
        assert len(catalog.suite_digest(found)) == 64
        ours = {task.task for task in found.record.tasks if task.task.startswith("ql_")}
        assert ours <= set(catalog.digests._definitions(catalog.folder("tasks")))


def test_tasks_of_lm_eval_exist_under_their_names() -> None:
    """lm-eval's files are read as text: importing it takes seconds."""
    import importlib.util

    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]) / "tasks"
    suite = catalog.suite("llama32").record
    assert isinstance(suite, Suite)
    folders = ("llama3/instruct", "ifeval", "hellaswag")
    texts = [path.read_text("utf-8") for folder in folders for path in (root / folder).rglob("*.yaml")]
    for task in suite.tasks:
        mine = [text for text in texts if f"task: {task.task}\n" in text + "\n" or f"group: {task.task}\n" in text]
        assert mine, task.task
        kept = (task.metric or "").partition(",")[2]
        assert any(kept in text for text in mine), task.task


def test_models_have_true_shapes() -> None:
    """The parameters follow from the dimensions: embeddings, the seven linear layers, two norms a layer."""
    for model in catalog.models():
        shape = model.shape
        assert shape is not None
        assert shape.heads % shape.kv_heads == 0
        if model.modality != "text":
            continue
        attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
        layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
        embedding = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
        assert model.parameters == embedding + shape.layers * layer + shape.hidden
    vision = catalog.model("11b")
    assert vision.shape is not None
    assert (vision.shape.layers, vision.shape.cross_layers, vision.modality) == (32, 8, "vision")


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line", "field", "says"),
    [
        (("samples: 4", "sampls: 4"), 5, "calibration.sampls", "'samples'"),
        (("samples: 4", "samples: many"), 5, "calibration.samples", "a whole number"),
        (("samples: 4", "samples: [4]"), 5, "calibration.samples", "a whole number"),
        (("samples: 4", "samples: 0"), 5, "calibration.samples", "too small"),
        (("samples: 4", "samples: -1"), 5, "calibration.samples", "too small"),
        (("length: 64", "length: 64\n  length: 65"), 7, "calibration.length", "line 6"),
        (("format: fp8", "format: fp9"), 3, "format", "'fp8'"),
        (("format: fp8", "format: bf16"), 2, "preset", "contradict"),
        (("format: fp8", "format: fp8\ngroup_size: 64"), 4, "group_size", "no groups"),
        (("format: fp8", "format: fp8\nexport: no"), 4, "export", "False"),
        (("summary: a recipe", "summary: 12"), 1, "summary", "in quotes"),
        (("summary: a recipe", "summary: no"), 1, "summary", "in quotes"),
        (("summary: a recipe", "# nothing"), 1, "summary", "missing"),
        (
            ("format: fp8", "format: fp8\noverrides:\n  - enable: false"),
            5,
            "overrides[0].quantizer",
            "missing",
        ),
        (
            ("format: fp8", "format: fp8\noverrides:\n  - quantizer: a\n    enabel: false"),
            6,
            "overrides[0].enabel",
            "'enable'",
        ),
        (("format: fp8", "format: fp8\noverrides: {quantizer: a}"), 4, "overrides", "a list"),
    ],
)
def test_a_fault_names_line_and_field(
    change: tuple[str, str], line: int, field: str, says: str, elsewhere: Path
) -> None:
    error = fault(RECIPE.replace(*change), elsewhere)
    assert error.place == f"mine.yaml, line {line}, field {field}"
    assert says in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        (b"", "mine.yaml", "empty"),
        (b" \n\n", "mine.yaml", "empty"),
        (b"# only a comment\n", "mine.yaml, line 1", "fields"),
        (b"- a\n- b\n", "mine.yaml, line 1", "fields"),
        (b"just text", "mine.yaml, line 1", "fields"),
        (b"summary: caf\xe9\n", "mine.yaml, line 1", "UTF-8"),
        (b"summary: ok\npreset: \xff\xfe\n", "mine.yaml, line 2", "UTF-8"),
        (b"summary: FP8: the best\n", "mine.yaml, line 1", "not valid YAML"),
        (b"summary: ok\n\tpreset: x\n", "mine.yaml, line 2", "not valid YAML"),
        (b"summary: [1, 2\n", "mine.yaml, line 2", "not valid YAML"),
        (b"summary: a\x00b\n", "mine.yaml, line 1", "not valid YAML"),
        (b"summary: a\n---\nsummary: b\n", "mine.yaml, line 2", "not valid YAML"),
        (b"summary: &x a\npreset: *x\n", "mine.yaml, line 1", "aliases"),
        (b"summary: !!python/object/apply:os.getcwd []\n", "mine.yaml, line 1", "not valid YAML"),
        (b"1: a\n", "mine.yaml, line 1", "name"),
        (b"on: a\n", "mine.yaml, line 1", "name"),
        (b"? [a, b]\n: c\n", "mine.yaml, line 1", "name"),
        (b"summary: 2024-99-99\n", "mine.yaml", "YAML"),
        (b"overrides: " + b"[" * 400 + b"]" * 400, "mine.yaml, line 1", "deep"),
        (b"[" * 100_000, "mine.yaml, line 1", "not valid YAML"),
        (b"#" * 1_000_001, "mine.yaml", "larger"),
    ],
)
def test_rubbish_is_refused_in_one_sentence(text: bytes, place: str, says: str, elsewhere: Path) -> None:
    error = fault(text, elsewhere)
    assert error.place == place
    assert says in str(error)
    assert "\n" not in str(error)


def test_an_alias_bomb_is_refused_at_once(elsewhere: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "aliases" in str(fault("\n".join(lines), elsewhere))


@pytest.mark.parametrize(
    ("kind", "text", "field"),
    [
        ("grid", "summary: a\nisl: 128\nosl: [1]\nbatch: [1]\n", "isl"),
        ("grid", "summary: a\nisl: []\nosl: [1]\nbatch: [1]\n", "isl"),
        ("grid", "summary: a\nisl: [1]\nosl: [1, 0]\nbatch: [1]\n", "osl[1]"),
        ("grid", "summary: a\nisl: [1]\nosl: [1]\nbatch: [2, 2]\n", "batch"),
        ("policy", "summary: a\nmax_drop: -1\n", "max_drop"),
        ("policy", "summary: a\nmax_drop: .nan\n", "max_drop"),
        ("policy", "summary: a\nmax_drop: .inf\n", "max_drop"),
        ("policy", "summary: a\nconfidence: 95\n", "confidence"),
        ("policy", "summary: a\nmax_broken_items: 2\n", "max_broken_items"),
        ("suite", "summary: a\ntasks: []\n", "tasks"),
        ("suite", "summary: a\ntasks: [{task: x}, {task: x}]\n", "tasks[1].task"),
        ("suite", "summary: a\ntasks: [{task: x, limit: 0}]\n", "tasks[0].limit"),
        ("suite", "summary: a\ntasks: [{task: x, limt: 3}]\n", "tasks[0].limt"),
        ("suite", "summary: a\ntasks: []\nfidelity: {length: 32, burn_in: 32}\n", "fidelity.length"),
        ("set", "summary: a\nsource: hub\n", "source"),
        ("set", "summary: a\nsource: file\nfile: a.txt\ndataset: b\n", "dataset"),
    ],
)
def test_well_typed_nonsense_is_refused(kind: str, text: str, field: str, elsewhere: Path) -> None:
    assert fault(text, elsewhere, kind).place.endswith(f"field {field}")


def test_a_missing_a_forbidden_and_a_folder_path(elsewhere: Path) -> None:
    for word in ("no/such.yaml", "a\0b/c.yaml", "x" * 5000 + ".yaml", "."):
        with pytest.raises(BadInput):
            catalog.recipe(word)
    (elsewhere / "calibration").mkdir()
    with pytest.raises(BadInput, match="not a file"):
        catalog.recipe("./calibration")


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "word", "meant"),
    [
        ("recipe", "fp88", "fp8"),
        ("recipe", "FP8", "fp8"),
        ("recipe", "int4-awq", "int4_awq"),
        ("suite", "quik", "quick"),
        ("grid", "h200", "h200-max"),
        ("policy", "defualt", "default"),
        ("set", "cnn-dailymail", "cnn_dailymail"),
    ],
)
def test_an_unknown_word_is_answered_with_the_near_one(kind: str, word: str, meant: str, elsewhere: Path) -> None:
    with pytest.raises(BadInput) as caught:
        catalog.find(kind, word)
    assert f"Did you mean {meant!r}?" in caught.value.cure
    assert all(name in caught.value.cure for name in catalog.words(kind))


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(BadInput, match="recipe"):
        catalog.find("recipee", "fp8")
    with pytest.raises(BadInput, match="h100"):
        catalog.text("gpu", "h1000")


def test_the_nearer_file_wins_and_its_path_tells(elsewhere: Path) -> None:
    far = catalog.recipe("fp8")
    (elsewhere / "calibration").mkdir()
    (elsewhere / "calibration" / "fp8.yaml").write_text(RECIPE)
    near = catalog.recipe("fp8")
    assert near.path.resolve() == elsewhere / "calibration" / "fp8.yaml"
    assert near.digest != far.digest
    assert [found.record.summary for found in catalog.names("recipe") if found.name == "fp8"] == ["a recipe"]
    assert catalog.recipe(str(far.path)) == far


def test_a_broken_neighbour_does_not_hide_the_others(elsewhere: Path) -> None:
    (elsewhere / "calibration").mkdir()
    (elsewhere / "calibration" / "zzz.yaml").write_text("a: b\n")
    good, bad = catalog.listing("recipe")
    assert {"bf16", "fp8", "int4_awq"} <= {found.name for found in good}
    assert [error.place for error in bad] == ["calibration/zzz.yaml, line 1, field a"]


def test_copy_gives_a_word_and_never_overwrites(elsewhere: Path) -> None:
    made = catalog.copy("recipe", "fp8", "mine")
    assert made == Path("calibration/mine.yaml")
    assert catalog.recipe("mine").record == catalog.recipe("fp8").record
    made.write_text(RECIPE)
    with pytest.raises(BadInput, match="exists already"):
        catalog.copy("recipe", "fp8", "mine")
    assert made.read_text() == RECIPE
    assert catalog.copy("recipe", "fp8", ".") == Path("fp8.yaml")
    assert catalog.copy("grid", "quick", "there/cells.yaml").is_file()
    with pytest.raises(BadInput, match="cannot be written"):
        catalog.copy("recipe", "fp8", "fp8.yaml/inside.yaml")


def test_show_prints_the_file_and_a_models_entry(elsewhere: Path) -> None:
    assert catalog.text("recipe", "fp8") == catalog.recipe("fp8").path.read_text("utf-8")
    assert "meta-llama/Llama-3.2-3B-Instruct" in catalog.text("model", "3b")
    assert "bandwidth" in catalog.text("gpu", "NVIDIA H200")
    with pytest.raises(BadInput, match="Did you mean 'model'"):
        catalog.text("modle", "3b")


# --- relative files and digests -------------------------------------------------------------------


def test_a_copied_suite_and_set_keep_their_files(elsewhere: Path) -> None:
    for kind, word, name in (
        ("suite", "quick", "texts/heldout.txt"),
        ("set", "python-docs", "python-docs.txt"),
    ):
        copied = catalog.find(kind, str(catalog.copy(kind, word, f"{word}-copy.yaml")))
        file = "../texts/heldout.txt" if kind == "suite" else "python-docs.txt"
        assert catalog.resolve(copied, file).as_posix().endswith(name)
    assert catalog.suite_digest(catalog.suite("quick-copy.yaml")) == catalog.suite_digest(catalog.suite("quick"))


def test_own_files_are_taken_from_beside_the_yaml(elsewhere: Path) -> None:
    (elsewhere / "python-docs.txt").write_text("mine")
    catalog.copy("set", "python-docs", "mine.yaml")
    assert catalog.resolve(catalog.find("set", "mine.yaml"), "python-docs.txt") == elsewhere / "python-docs.txt"
    with pytest.raises(BadInput, match="does not exist"):
        catalog.resolve(catalog.find("set", "mine.yaml"), "other.txt")


def test_a_users_text_or_jsonl_is_a_set(elsewhere: Path) -> None:
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "tickets.jsonl").write_text(json.dumps({"text": "hello"}) + "\n")
    found = catalog.calibration_set("data/tickets.jsonl")
    assert isinstance(found.record, CalibrationSet)
    assert (found.record.source, found.record.file) == ("file", "tickets.jsonl")
    assert catalog.resolve(found, "tickets.jsonl") == elsewhere / "data" / "tickets.jsonl"
    assert catalog.calibration_set("tickets.jsonl", near=elsewhere / "data").digest == found.digest
    before = catalog.set_digest(found)
    (elsewhere / "data" / "tickets.jsonl").write_text(json.dumps({"text": "bye"}) + "\n")
    assert catalog.set_digest(catalog.calibration_set("data/tickets.jsonl")) != before
    with pytest.raises(BadInput, match="does not exist"):
        catalog.calibration_set("data/none.txt")


def test_the_digest_of_a_suite_sees_every_file_it_reads(elsewhere: Path) -> None:
    shutil.copytree(catalog.builtin() / "evals", elsewhere / "evals")
    built_in = catalog.suite("quick")
    assert built_in.path.resolve().is_relative_to(elsewhere)

    def digests() -> tuple[str, str, str]:
        found = catalog.suite("quick")
        return tuple(catalog.suite_digest(found, part) for part in ("all", "accuracy", "fidelity"))  # type: ignore[return-value]

    def changed(path: str, old: str, new: str) -> list[bool]:
        before, file = digests(), elsewhere / "evals" / path
        text = file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), "utf-8")
        after = digests()
        file.write_text(text, "utf-8")
        assert digests() == before
        return [a != b for a, b in zip(before, after, strict=True)]

    assert changed("items/facts.jsonl", "Question", "question") == [True, True, False]
    assert changed("tasks/facts.yaml", "version: 1.0", "version: 1.1") == [True, True, False]
    assert changed("texts/heldout.txt", "e", "E") == [True, False, True]
    assert changed("suites/quick.yaml", "task: ql_facts, metric: acc", "task: ql_facts, metric: acc, limit: 9")[:2] == [
        True,
        True,
    ]
    assert changed("suites/quick.yaml", "windows: 12 #", "windows: 11 #") == [True, False, True]
    assert changed("suites/quick.yaml", "offline, for", "offline; for") == [False, False, False]
    assert changed("items/mmlu_dev.jsonl", "a", "A") == [False, False, False]


def test_a_task_files_functions_includes_and_groups_count(elsewhere: Path) -> None:
    tasks = elsewhere / "evals" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "group.yaml").write_text("group: all_of_it\ntask: [mine]\n")
    (tasks / "mine.yaml").write_text("include: base.yaml\ntask: mine\nprocess_docs: !function tools.clean\n")
    (tasks / "base.yaml").write_text("doc_to_text: hello\n")
    (tasks / "tools.py").write_text("def clean(docs): return docs\n")
    (elsewhere / "s.yaml").write_text("summary: a\ntasks: [{task: all_of_it, data: {test: d.jsonl}}]\n")
    (elsewhere / "d.jsonl").write_text("{}\n")
    seen = {catalog.suite_digest(catalog.suite("s.yaml"))}
    for file in (
        tasks / "mine.yaml",
        tasks / "base.yaml",
        tasks / "tools.py",
        tasks / "group.yaml",
        elsewhere / "d.jsonl",
    ):
        file.write_text(file.read_text() + "\n\n")
        seen.add(catalog.suite_digest(catalog.suite("s.yaml")))
    assert len(seen) == 6
    (tasks / "mine.yaml").write_text("task: mine\nx: [\n")
    with pytest.raises(BadInput, match="no task file"):
        catalog.suite_digest(catalog.suite("s.yaml"))
    (elsewhere / "d.jsonl").unlink()
    with pytest.raises(BadInput, match=r"d\.jsonl"):
        catalog.suite_digest(catalog.suite("s.yaml"))


# --- models and GPUs ------------------------------------------------------------------------------


def test_a_model_word_a_hub_id_and_what_is_neither(elsewhere: Path) -> None:
    assert catalog.model("3b").location == "meta-llama/Llama-3.2-3B-Instruct"
    assert not catalog.model("3b-base").chat
    known = catalog.model("meta-llama/Llama-3.2-3B-Instruct@abc123")
    assert (known.shape, known.revision, known.gated) == (catalog.model("3b").shape, "abc123", True)
    other = catalog.model("org/some-model")
    assert (other.source, other.location, other.shape, other.revision) == (
        "hub",
        "org/some-model",
        None,
        None,
    )
    with pytest.raises(BadInput, match="Did you mean 'smollm2-135m'"):
        catalog.model("smollm2")
    for word in (
        "4b",
        "",
        "   ",
        "./nothing/here",
        "/nothing/here",
        "a/b/c",
        "../up",
        "https://huggingface.co/a/b",
    ):
        with pytest.raises(BadInput, match="no model is called"):
            catalog.model(word)


def model_folder(folder: Path, config: object, **files: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


def test_a_directory_is_described_from_its_config(elsewhere: Path) -> None:
    model = catalog.model(model_folder(elsewhere / "m", LLAMA, chat_template__jinja="x"))
    smol = catalog.model("smollm2-135m")
    assert (model.source, model.location, model.architecture) == (
        "path",
        str(elsewhere / "m"),
        "LlamaForCausalLM",
    )
    assert (model.shape, model.chat, model.modality) == (smol.shape, True, "text")
    plain = catalog.model(model_folder(elsewhere / "p", {**LLAMA, "tie_word_embeddings": False}))
    assert plain.shape is not None
    assert not plain.shape.tied
    assert not plain.chat
    templated = model_folder(elsewhere / "t", LLAMA, tokenizer_config__json='{"chat_template": "x"}')
    assert catalog.model(templated).chat


def test_a_mllama_directory_splits_its_layers(elsewhere: Path) -> None:
    text = {**LLAMA, "num_hidden_layers": 40, "cross_attention_layers": list(range(3, 40, 5))}
    del text["architectures"]
    config = {"architectures": ["MllamaForConditionalGeneration"], "text_config": text, "vision_config": {}}
    model = catalog.model(model_folder(elsewhere / "v", config))
    assert model.modality == "vision"
    assert model.shape is not None
    assert (model.shape.layers, model.shape.cross_layers) == (32, 8)


def test_a_directory_that_is_no_model(elsewhere: Path) -> None:
    (elsewhere / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no config\.json"):
        catalog.model("empty")
    for text in ("{", "[]", "\x00", '"x"', "{" * 100_000):
        with pytest.raises(BadInput, match="JSON"):
            catalog.model(model_folder(elsewhere / "bad", text))
    (elsewhere / "model.safetensors").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        catalog.model("model.safetensors")
    odd = catalog.model(model_folder(elsewhere / "odd", {"architectures": [], "hidden_size": "wide"}))
    assert (odd.architecture, odd.shape) == (None, None)


def test_a_gpu_is_known_by_its_whole_name_only() -> None:
    h100 = catalog.gpu("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    assert (h100.word, h100.bandwidth, h100.compute_capability) == ("h100", 3.35e12, "9.0")
    assert catalog.gpu("h100") == h100
    for name in (
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA L40",
        "",
        "GPU",
    ):
        assert catalog.gpu(name) is None
    words = [each.word for each in catalog.gpus()]
    names = [name.lower() for each in catalog.gpus() for name in each.names]
    assert len(set(words)) == len(words)
    assert len(set(names)) == len(names)
    assert all(1e11 < each.bandwidth < 1e13 and each.source.startswith("https://") for each in catalog.gpus())


# --- the room itself ------------------------------------------------------------------------------


def test_importing_the_catalog_loads_nothing_heavy() -> None:
    code = (
        "import sys, quantlab.catalog as c; c.recipe('fp8'); c.model('3b'); c.gpu('h100'); "
        "heavy = 'numpy torch transformers lm_eval modelopt datasets pandas'.split(); "
        "print([each for each in heavy if each in sys.modules])"
    )
    root = Path(catalog.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_package_data_of_a_wheel_goes_before_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(catalog.builtin() / "calibration", tmp_path / "quantlab" / "_data" / "calibration")
    (tmp_path / "quantlab" / "_data" / "calibration" / "wheel.yaml").write_text(RECIPE)
    monkeypatch.setattr("quantlab.catalog.files.PACKAGE", tmp_path / "quantlab")
    monkeypatch.chdir(tmp_path)
    assert catalog.recipe("wheel").path == tmp_path / "quantlab" / "_data" / "calibration" / "wheel.yaml"


def test_places_are_shown_relative_to_here(elsewhere: Path) -> None:
    assert strict.show(elsewhere / "a" / "b.yaml") == os.path.join("a", "b.yaml")
    assert strict.show(Path("/elsewhere/b.yaml")) == "/elsewhere/b.yaml"
