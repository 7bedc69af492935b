"""No file that a user may have got from others can run code: held by looking at every call in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("roboalign_ray", "actors", "pipelines", "cluster_configs", "benchmarks")
# Reads arrays out of two pickles of a pinned SHA-256, and refuses every other global; see docs/security.md.
ARRAYS_ONLY = "roboalign_ray/metrics/downloads.py"
FORBIDDEN = {
    **dict.fromkeys(
        (
            "pickle.load",
            "pickle.loads",
            "cloudpickle.load",
            "cloudpickle.loads",
            "dill.load",
            "dill.loads",
            "joblib.load",
            "marshal.load",
            "marshal.loads",
            "shelve.open",
            "pd.read_pickle",
            "pandas.read_pickle",
            "torch.jit.load",
            "torch.hub.load",
            "torch.package.PackageImporter",
        ),
        "reads a pickle or code",
    ),
    **dict.fromkeys(
        ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"),
        "makes Python objects of YAML",
    ),
    **dict.fromkeys(("eval", "exec", "os.system", "os.popen"), "runs a text"),
}
# DeepSpeed's own checkpoints are pickles.
FORBIDDEN_METHODS = {"load_checkpoint", "save_checkpoint", "extractall", "Unpickler"}
_WITHOUT_WEIGHTS = ("Tokenizer", "Processor", "Config")


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults_of(call: ast.Call) -> Iterator[str]:
    """What is wrong with one call."""
    name = name_of(call.func)
    given = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
    owner, _, method = name.rpartition(".")
    if name in FORBIDDEN:
        yield FORBIDDEN[name]
    if method in FORBIDDEN_METHODS:
        yield f"{method} is not used here"
    if name in ("torch.load",) and given.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") is not False:
        yield "numpy.load without allow_pickle=False"
    if name == "yaml.load" and not any(word.arg == "Loader" for word in call.keywords):
        yield "yaml.load without a loader"
    for setting, bad in (("allow_pickle", True), ("trust_remote_code", True), ("shell", True)):
        if given.get(setting) is bad:
            yield f"{setting}={bad}"
    yield from faults_of_loader(owner, method or name, given)


def faults_of_loader(owner: str, method: str, given: dict) -> Iterator[str]:
    """No code of a model's folder, no weights as pickles; `check_adapter` looks at adapters."""
    automatic = method == "from_config" and owner.startswith("Auto")
    loads = method == "from_pretrained" and owner != "peft.PeftModel"
    if (loads or automatic or method in ("LLM", "EngineArgs", "AsyncEngineArgs", "pipeline")) and (
        given.get("trust_remote_code") is not False
    ):
        yield f"{method} without trust_remote_code=False"
    if loads and not owner.endswith(_WITHOUT_WEIGHTS) and given.get("use_safetensors") is not True:
        yield f"{owner}.from_pretrained without use_safetensors=True"
    if method in ("LLM", "EngineArgs", "AsyncEngineArgs") and given.get("load_format") != "safetensors":
        yield f"{method} without load_format='safetensors'"


def faults_in(source: str) -> list[str]:
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [f"line {call.lineno}: {fault}" for call in calls for fault in faults_of(call)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "dill", "marshal"):
            found.append(f"line {node.lineno}: names of {node.module} are imported")
        if isinstance(node, ast.ClassDef) and any("Unpickler" in name_of(base) for base in node.bases):
            found.append(f"line {node.lineno}: an unpickler")
    return found


def test_no_call_can_run_what_a_file_holds() -> None:
    found = {}
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            name = path.relative_to(REPOSITORY).as_posix()
            faults = faults_in(path.read_text(encoding="utf-8"))
            if name == ARRAYS_ONLY:
                assert [fault.partition(": ")[2] for fault in faults] == ["an unpickler"]
            elif faults:
                found[name] = faults
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=maybe)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "AutoTokenizer.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=True, use_safetensors=True)",
        "transformers.AutoConfig.from_pretrained(name)",
        "AutoModel.from_config(config)",
        "LLM(model=name, trust_remote_code=False)",
        "pipeline('text', model=name)",
        "engine.load_checkpoint(folder)",
        "tar.extractall(folder)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "from pickle import loads",
        "class Reader(pickle.Unpickler): pass",
    ],
)
def test_the_rule_finds_what_it_is_for(source: str) -> None:
    assert faults_in(source)


def test_the_rule_lets_safe_calls_pass() -> None:
    safe = """
torch.load(path, weights_only=True)
np.load(path, allow_pickle=False)
yaml.load(text, Loader=Safe)
AutoTokenizer.from_pretrained(name, trust_remote_code=False)
AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
LLM(model=name, trust_remote_code=False, load_format="safetensors")
model.eval()
"""
    assert faults_in(safe) == []


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    from roboalign_ray.config.yaml_source import parse_value

    with pytest.raises(Exception, match="python/object"):
        parse_value(f"a: !!python/object/apply:pathlib.Path.touch ['{tmp_path / 'ran'}']", "override")
    assert not (tmp_path / "ran").exists()
