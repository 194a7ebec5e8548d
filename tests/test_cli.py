"""The command line as a user meets it: bad input gives one message with the cure and its own exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantlab import cli

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run `quantlab ...` in this process, standing in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantlab", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return code, out.out, out.err

    return run


def folder(path: Path, *, config: bool = True) -> Path:
    path.mkdir(parents=True)
    if config:
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "num_key_value_heads": 1, "vocab_size": 32, "tie_word_embeddings": True}  # fmt: skip
        path.joinpath("config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **shape}))
    return path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "fp9", "--model", "smollm2-135m"], "fp8"),
        (["run", "fp8", "--model", "smolm2-135m"], "smollm2-135m"),
        (["run", "fp8", "--model", "smollm2-135m", "--suite", "quik"], "quick"),
        (["run", "fp8", "--model", "smollm2-135m", "--grid", "quik"], "quick"),
        (["run", "fp8", "--model", "smollm2-135m", "--policy", "defalt"], "default"),
        (["run", "fp8", "--model", "smollm2-135m", "--stage", "acuracy"], "accuracy"),
        (["run", "fp8", "--model", "smollm2-135m", "--engine", "torhc"], "torch"),
        (["run", "fp8", "--model", "smollm2-135m", "--max-drop", "-1"], "--max-drop"),
    ],
)
def test_unknown_words_name_the_near_ones(call: Call, words: list[str], named: str) -> None:
    code, out, err = call(*words, "--dry-run")
    assert (code, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["calibrate", "bench"])
@pytest.mark.parametrize("option", [("--gate",), ("--max-drop", "1")])
def test_what_judges_no_accuracy_takes_no_option_of_a_judge(call: Call, command: str, option: tuple[str, ...]) -> None:
    """Nothing could ever be accepted, so a gate there would fail every time."""
    code, _, err = call(command, "fp8", "--model", "smollm2-135m", "--dry-run", *option)
    assert code == 2
    assert option[0] in err
    assert call(command, "fp8", "--model", "smollm2-135m", "--dry-run")[0] == 0
    assert call("eval", "fp8", "--model", "smollm2-135m", "--dry-run", *option)[0] == 0


def test_an_unknown_field_is_refused_with_file_line_and_field(call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("summary: x\npreset: FP8_DEFAULT_CFG\nformat: fp8\ncalibration:\n  sampels: 3\n")
    code, _, err = call("run", str(recipe), "--model", "smollm2-135m", "--dry-run")
    assert code == 2
    assert "mine.yaml" in err
    assert "line 5" in err
    assert "sampels" in err
    assert "samples" in err


def test_model_folders_that_cannot_be_read_are_named(call: Call, tmp_path: Path) -> None:
    nothing = folder(tmp_path / "nothing")
    pointer = folder(tmp_path / "pointer")
    pointer.joinpath("model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    )
    pickled = folder(tmp_path / "pickled")
    pickled.joinpath("pytorch_model.bin").write_bytes(b"\x80\x04")
    cut = folder(tmp_path / "cut")
    cut.joinpath("model.safetensors").write_bytes((1 << 20).to_bytes(8, "little") + b"{}")
    for path, named in ((nothing, "weights"), (pointer, "LFS"), (pickled, "safetensors"), (cut, "model.safetensors")):
        code, _, err = call("run", "fp8", "--model", str(path))
        assert code in (2, 5), (path, err)
        assert named.lower() in err.lower(), (path, err)
        assert "cure:" in err
        assert "Traceback" not in err


def test_a_gated_model_without_token_and_without_network_says_what_to_do(call: Call) -> None:
    code, _, err = call("run", "fp8", "--model", "3b")
    assert code in (3, 4)
    assert "meta-llama/Llama-3.2-3B-Instruct" in err or "token" in err.lower()
    assert "cure:" in err


def test_a_ledger_that_cannot_be_used(call: Call, tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("I am a file")
    code, _, err = call("ls", "runs", "--ledger", str(tmp_path / "file"))
    assert code == 7
    assert "cure:" in err
    newer = tmp_path / "newer"
    newer.mkdir()
    newer.joinpath("ledger.json").write_text('{"schema": 999}')
    code, _, err = call("report", "--ledger", str(newer))
    assert code == 7
    assert "newer" in err


def test_an_empty_ledger_has_no_report_and_says_how_to_get_one(call: Call) -> None:
    code, _, err = call("report")
    assert code == 2
    assert "quantlab run" in err


def test_errors_are_json_when_json_is_asked(call: Call) -> None:
    code, out, _ = call("run", "fp9", "--model", "smollm2-135m", "--json", "--dry-run")
    assert code == 2
    plain = json.loads(out)
    assert plain["error"] == "BadInput"
    assert plain["cure"]


def test_dry_run_plans_and_writes_nothing(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("run", "int4_awq", "--model", "smollm2-135m", "--dry-run")
    assert code == 0
    assert "Group size 64" in out
    assert "576" in out
    code, out, _ = call("run", "int4_awq", "--model", "smollm2-135m", "--dry-run", "--json")
    assert json.loads(out)["plans"]["int4_awq"]["group_size"] == 64
    assert not list(tmp_path.rglob("*.safetensors"))


def test_strict_group_size_is_a_refusal_before_anything_starts(call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "strict.yaml"
    recipe.write_text("summary: x\npreset: INT4_AWQ_CFG\nformat: int4_awq\ngroup_size: strict\ncalibration: {}\n")
    code, out, _ = call("run", str(recipe), "--model", "smollm2-135m", "--dry-run")
    assert code == 0
    assert "128 does not divide" in out
    assert "576" in out


def test_the_vocabulary_can_be_listed_shown_and_copied(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("ls", "recipes", "--json")
    assert code == 0
    assert {"bf16", "fp8", "int4_awq"} <= set(json.loads(out)["recipes"])
    code, out, _ = call("show", "recipe", "fp8")
    assert "FP8_DEFAULT_CFG" in out
    code, out, _ = call("cp", "recipe", "fp8", str(tmp_path / "mine.yaml"))
    assert code == 0
    assert (
        tmp_path.joinpath("mine.yaml").read_text()
        == Path(cli.__file__).parents[2].joinpath("calibration", "fp8.yaml").read_text()
    )
    code, _, err = call("cp", "recipe", "fp8", str(tmp_path / "mine.yaml"))
    assert code == 2
    assert "mine.yaml" in err


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m quantlab ls models | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=os.environ)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_recipes(shell: str, call: Call) -> None:
    code, out, _ = call("completion", shell)
    assert code == 0
    assert f"{shell}_source" in out
    if shell == "bash":
        environment = {
            **os.environ,
            "_QUANTLAB_COMPLETE": "bash_complete",
            "COMP_WORDS": "quantlab run fp",
            "COMP_CWORD": "2",
        }
        program = "import sys; sys.argv = ['quantlab']; from quantlab.cli import cli; cli(prog_name='quantlab')"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert "fp8" in done.stdout
