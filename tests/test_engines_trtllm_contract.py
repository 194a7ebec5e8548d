"""The seam's own contract, run on engine "trtllm" in the stand-in package, in both flows and both version lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quantlab.engines import Session, engine
from tests import test_engines_contract as seam
from tests import trtllm_standin as standin
from tests.test_engines_trtllm import LINES, built, described, with_flow


@pytest.fixture(params=LINES, ids=lambda line: "-".join(line), scope="module")
def opened(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Session]]:
    version, flow = request.param
    place = tmp_path_factory.mktemp("trtllm")
    with standin.installed(standin.contract(), version, place / "site"):
        made = built(described(tiny_model), place / "made", with_flow(flow))
        assert made.engine_version == f"tensorrt-llm {version}, {flow} flow"
        with engine("trtllm").open(made, with_flow(flow)) as session:
            yield "trtllm", "bf16", session


# The seam's own contract, on the fixture above: a test asks for `opened` of the module that it is collected in.
globals().update({name: value for name, value in vars(seam).items() if name.startswith("test_")})
