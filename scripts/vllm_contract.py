"""Take from vLLM's own source what engine "vllm" relies on, without importing it: tests/contracts/vllm_*.json.

    python scripts/vllm_contract.py VERSION FOLDER > tests/contracts/vllm_0_24.json

FOLDER is an unpacked wheel, the one with the package `vllm` in it. Names only: no line of vLLM is copied.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

CLASSES = {
    "EngineArgs": "engine/arg_utils.py",
    "SamplingParams": "sampling_params.py",
    "CompletionOutput": "outputs.py",
    "RequestStateStats": "v1/metrics/stats.py",
    "FlatLogprobs": "logprobs.py",
    "Logprob": "logprobs.py",
    "ModelConfig": "config/model.py",
    "TokensPrompt": "inputs/llm.py",
}
"""Class -> file: its annotated fields."""
ATTRIBUTES = {
    "LLM": "entrypoints/llm.py",
    "LLMEngine": "v1/engine/llm_engine.py",
    "OutputProcessor": "v1/engine/output_processor.py",
    "RequestOutput": "outputs.py",
}
"""Class -> file: what its __init__ sets on self."""
METHODS = {
    "LLM.__init__": "entrypoints/llm.py",
    "LLM.generate": "entrypoints/llm.py",
    "InprocClient.shutdown": "v1/engine/core_client.py",
    "LLMEngine.abort_request": "v1/engine/llm_engine.py",
    "LLMEngine.add_request": "v1/engine/llm_engine.py",
    "LLMEngine.step": "v1/engine/llm_engine.py",
}
"""Method -> file: names of its parameters."""
ENUMS = {"RequestOutputKind": "sampling_params.py"}
"""Enumeration -> file: its members."""
CHOICES = {
    "CacheDType": "config/cache.py",
    "LogprobsMode": "config/model.py",
    "LoadFormats": "model_executor/model_loader/__init__.py",
}
"""Literal type -> file: its values."""


def contract(root: Path) -> dict[str, object]:
    """Names by kind, sorted by this file's tables."""
    tree = {file: ast.parse((root / file).read_text(encoding="utf-8")) for file in _files()}
    return {
        "fields": {name: _fields(_named(tree[file], name)) for name, file in CLASSES.items()},
        "attributes": {name: _attributes(_named(tree[file], name)) for name, file in ATTRIBUTES.items()},
        "parameters": {name: _parameters(_method(tree[file], name)) for name, file in METHODS.items()},
        "choices": {name: _values(_assigned(tree[file], name)) for name, file in CHOICES.items()},
        "members": {name: _members(_named(tree[file], name)) for name, file in ENUMS.items()},
        "functions": {"cleanup_dist_env_and_memory": "vllm.distributed.parallel_state"},
        "environment": _variables(_assigned(tree["envs.py"], "environment_variables")),
        "modelopt_algorithms": _values(
            _assigned(tree["model_executor/layers/quantization/modelopt.py"], "QUANT_ALGOS")
        ),
        "dropped": ast.literal_eval(
            _assigned(tree["model_executor/models/registry.py"], "_PREVIOUSLY_SUPPORTED_MODELS")
        ),
    }


def _files() -> set[str]:
    more = ("envs.py", "model_executor/layers/quantization/modelopt.py", "model_executor/models/registry.py")
    # parallel_state.py is read only to be sure that the file is there.
    tables = (CLASSES, ATTRIBUTES, METHODS, CHOICES, ENUMS)
    return {*more, "distributed/parallel_state.py", *(file for table in tables for file in table.values())}


def _named(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)


def _method(tree: ast.Module, path: str) -> ast.FunctionDef:
    owner, name = path.split(".")
    return next(node for node in _named(tree, owner).body if isinstance(node, ast.FunctionDef) and node.name == name)


def _fields(found: ast.ClassDef) -> list[str]:
    return [
        node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def _members(found: ast.ClassDef) -> list[str]:
    targets = [target for node in found.body if isinstance(node, ast.Assign) for target in node.targets]
    return [one.id for one in targets if isinstance(one, ast.Name)]


def _attributes(found: ast.ClassDef) -> list[str]:
    start = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = [
        node.attr
        for node in ast.walk(start)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    ]
    return list(dict.fromkeys(names))


def _parameters(found: ast.FunctionDef) -> list[str]:
    given = found.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs) if one.arg != "self"]
    return [*names, "**"] if given.kwarg else names


def _assigned(tree: ast.Module, name: str) -> ast.expr:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        if any(isinstance(one, ast.Name) and one.id == name for one in targets) and value is not None:
            assert isinstance(value, ast.expr)
            return value
    raise LookupError(name)


def _variables(found: ast.expr) -> list[str]:
    """Every name in capitals: keys, and what their functions read."""
    strings = {node.value for node in ast.walk(found) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return sorted(one for one in strings if one.isupper() and one.isidentifier() and "_" in one)


def _values(found: ast.expr) -> list[str]:
    """Strings of a Literal or a list, or the keys of a dictionary."""
    nodes = found.keys if isinstance(found, ast.Dict) else list(ast.walk(found))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


if __name__ == "__main__":
    version, folder = sys.argv[1:]
    print(json.dumps({"vllm": version, **contract(Path(folder) / "vllm")}, indent=1))
