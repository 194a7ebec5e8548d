"""The doctor on this machine, and each illness with its cure."""

from __future__ import annotations

import http.server
import re
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantlab import disk, doctor, host
from quantlab.child import thread_policy
from quantlab.doctor import Finding
from quantlab.records import Gpu

ROOT = Path(__file__).resolve().parent.parent
CARD = Gpu(name="NVIDIA H100", memory_bytes=80 << 30, compute_capability="9.0", driver="580.1")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    installed = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(host, "versions", lambda names: {n: installed[n] for n in names if n in installed})


def test_this_machine_has_all_that_is_needed(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in doctor.doctor(tmp_path)}
    assert [each for each in findings.values() if each.state == "missing"] == []
    wanted = {
        "python",
        "torch",
        "nvidia-modelopt",
        "engine torch",
        "engine vllm",
        "hub",
        "hub token",
        "memory",
        "threads",
    }
    assert wanted <= set(findings)
    assert re.search(r"^2\.\S+ at .*python.*, CUDA .*, sees \d+ GPU", findings["engine torch"].found)
    assert "OMP_WAIT_POLICY=" in findings["threads"].found
    assert str(tmp_path) in findings["disk of the ledger"].found
    assert "switched off" in findings["hub"].found
    assert all(each.cure for each in findings.values() if each.state != "ok")


def test_the_ranges_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {}
    for line in project["dependencies"]:
        name, low, high = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?", line).groups()  # type: ignore[union-attr]
        wanted[name] = (low, high or "")
    assert {name: wanted[name] for name in doctor.SUPPORTED} == doctor.SUPPORTED
    low, high = (".".join(map(str, version)) for version in doctor.PYTHON)
    assert project["requires-python"] == f">={low},<{high}"


@pytest.mark.parametrize(
    ("version", "low", "high", "answer"),
    [
        ("2.13.0+cpu", "2.9", "", True),
        ("2.8.1", "2.9", "", False),
        ("5.14.1", "5.0", "5.15", True),
        ("5.15.0", "5.0", "5.15", False),
        ("0.48.0rc1", "0.47", "0.48", False),
        ("0.47", "0.47.0", "0.48", True),
        ("unknown", "1", "", False),
    ],
)
def test_versions_are_compared_by_number(version: str, low: str, high: str, answer: bool) -> None:
    assert doctor.fits(version, low, high) is answer


def test_packages_that_are_missing_or_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch="2.13.0", transformers="5.23.0")
    found = {each.name: each for each in doctor._packages()}
    assert found["torch"].state == "ok"
    assert found["nvidia-modelopt"].state == "missing"
    assert (found["transformers"].state, found["transformers"].cure) == (
        "warn",
        'pip install "transformers>=5.0,<5.15"',
    )


@pytest.mark.parametrize(
    ("torch", "vision", "state"),
    [
        ("2.13.0+cpu", "0.28.0+cpu", "ok"),
        ("2.13.0", "0.28.1", "ok"),
        ("2.13.0+cpu", "0.28.0", "warn"),
        ("2.13.0+cpu", "0.27.0+cpu", "warn"),
    ],
)
def test_torchvision_must_be_built_for_the_torch_beside_it(
    monkeypatch: pytest.MonkeyPatch, torch: str, vision: str, state: str
) -> None:
    pretend(monkeypatch, torch=torch, torchvision=vision)
    assert [each.state for each in doctor._torchvision()] == [state]
    pretend(monkeypatch, torch=torch)
    assert list(doctor._torchvision()) == []


@pytest.mark.parametrize(
    ("capability", "formats"),
    [
        ("7.5", "none"),
        ("8.6", "INT4-AWQ"),
        ("8.9", "INT4-AWQ, FP8"),
        ("9.0", "INT4-AWQ, FP8"),
        ("10.0", "INT4-AWQ, FP8, NVFP4"),
        ("12.0", "INT4-AWQ, FP8, NVFP4"),
        ("", "none"),
    ],
)
def test_what_a_gpu_computes_natively(capability: str, formats: str) -> None:
    card = Gpu(name="x", memory_bytes=1, compute_capability=capability)
    assert doctor.native(card) == formats
    [finding] = doctor._gpus((card,))
    assert finding.found.endswith(formats)


def test_a_torch_that_does_not_see_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", "print('2.13.0+cpu', None, 0)")
    assert doctor._torch(False).state == "ok"
    assert (doctor._torch(True).state, doctor._torch(True).cure) == (
        "warn",
        "Install a torch built for a CUDA that this driver supports.",
    )
    monkeypatch.setattr(doctor, "_ASK_TORCH", "import a_torch_that_is_not_there")
    assert doctor._torch(False).state == "missing"
    assert "ModuleNotFoundError" in doctor._torch(False).found
    monkeypatch.setattr(doctor, "_ASK_TORCH", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "TORCH_SECONDS", 0.3)
    assert "no answer" in doctor._torch(False).found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    """A hub on this machine that answers 404 to everything: it is there all the same."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_that_answers_anything_is_reachable(hub: http.server.HTTPServer) -> None:
    found = doctor._hub()
    assert (found.state, "answers (501)" in found.found) == ("ok", True)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense", "http://[::1"])
def test_a_hub_that_cannot_be_reached_is_a_warning(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    found = doctor._hub()
    assert found.state == "warn"
    assert "HF_HUB_OFFLINE=1" in found.cure


def test_a_question_without_answer_does_not_stop_the_doctor() -> None:
    stop = threading.Event()

    def ask() -> Finding:
        stop.wait(60)
        return Finding(name="hub", state="ok", found="late")

    assert doctor._aside("hub", ask, 0.1)() == Finding(name="hub", state="warn", found="no answer within 0 s")
    stop.set()


def test_a_token_is_found_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert doctor._token().state == "warn"
    (tmp_path / "token").write_text("hf_secret")
    assert doctor._token().found == "present (stored by hf auth login)"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert doctor._token().found == "present (HF_TOKEN)"


def test_little_disk_and_little_memory_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 5 * 10**9)
    monkeypatch.setattr(host, "memory_bytes", lambda: 4 * 10**9)
    findings = [*doctor._disks(tmp_path / "not" / "yet"), doctor._memory()]
    assert [each.state for each in findings] == ["warn"] * 3
    assert all(each.cure for each in findings)


@pytest.mark.parametrize(("name", "value"), [("OMP_NUM_THREADS", "4096"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_a_harmful_thread_setting_is_a_warning(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for each in thread_policy():
        monkeypatch.delenv(each, raising=False)
    assert doctor._threads().state == "ok"
    monkeypatch.setenv(name, value)
    assert doctor._threads().state == "warn"
    assert name in doctor._threads().cure
