"""FP8 on FP8 units against its emulation. Needs such a GPU.

The codes are the same, so the sums are too, up to how they are added: an H100 keeps about 13 bits meanwhile.
"""

from __future__ import annotations

import pytest
import torch

from quantlab.formats.layers import E4M3_MAX, Fp8Linear, to_e4m3

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs FP8 units"
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("outputs", "inputs", "rows"), [(256, 512, 64), (250, 500, 7), (24, 40, 1), (3072, 8192, 33)])
@pytest.mark.parametrize("per_output", [False, True])
def test_native_is_emulated(dtype: torch.dtype, outputs: int, inputs: int, rows: int, per_output: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, device="cuda")
    x = torch.randn(2, rows, inputs, device="cuda").to(dtype)
    scale = (weight.abs().amax(1) if per_output else weight.abs().amax()) / E4M3_MAX
    codes = to_e4m3(weight, (1 / scale)[:, None] if per_output else 1 / scale)
    bias = torch.randn(outputs, device="cuda")
    given = codes, scale, torch.tensor(0.01, device="cuda"), bias
    native = Fp8Linear(*given, dtype, native=True)(x).float()
    exact = Fp8Linear(*given, torch.float32)(x.float())
    short = Fp8Linear(*given, dtype)(x).float()
    assert native.shape == (2, rows, outputs)
    unit = exact.abs().max()
    tolerance = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert float((native - exact).abs().max() / unit) < tolerance
    assert float((short - exact).abs().max() / unit) < tolerance
