"""How fast would it be? From what was measured, with an interval, or a sentence why nothing can be said. Pure: numpy,
scipy.

Every answer names its tier; the next one is asked only where the one before has nothing:

    measured      this cell was measured (or published): its value, its spread
    interpolated  between two batches of the same model, GPU, engine and lengths
    fit           the additive model below, fitted to cells of the same model, GPU, engine and precision
    transfer      the same fit carried to another GPU or model, same engine and precision; the interval is wider
    kernels       the sum of kernels that NVIDIA timed on that GPU (an optional extra): bf16 and FP8, data-centre GPUs
    roofline      data sheet times efficiencies from the literature; widest, and INT4 is never ranked by it

The additive model of one decode step (facts: it explains NVIDIA's six RTX 4090 cells within 6 %, where the usual
"weights + KV over one bandwidth" misses by up to 72 %):

    step    = t_l layers + (a_w + a_u (1 - 1/b)) W / BW + b (t_s + a_s (2P / F + (s K + i V) / BW)) + talk(b)
    prefill = p0 + a_p b isl 2P / F + b i E / (0.28 F16) + talk(b isl)

W weight bytes a GPU reads, K cache bytes a token, s mean context, b sequences, P weights multiplied, F operations a
second. a_w, a_s, a_p are inverse efficiencies (1 is the data sheet, and a_w is never less); t_l, t_s and p0 are what no
hardware explains: launches and gaps of a layer, scheduling and sampling of a sequence, the host. a_u is the unpacking
of four-bit weights (fit.py), talk what GPUs that share a layer say to each other (links.py), i images of a sequence
with V bytes of keys and values and E operations each. In vLLM on an H100 a sequence costs as much in 1B as in 3B, 15 us
a step, which is most of a large batch. The model is linear in all of them, so the fit is non-negative least squares on
relative errors; what the cells cannot tell apart (t_l with one model on one GPU, t_s with one context as well) is given
or left out. Its limits: it bends too early, because multiplying hides behind reading until one of them is full;
efficiencies are an engine's and a precision's, never carried across; and nothing is said beyond twice the batches and
contexts that were measured.

Intervals hold about 80 %: the held-out errors of leaving one cell (or one GPU and model) out, by order statistic, and
never less than 5 %, by which two leases of the same GPU differed.
"""

from quantlab.predict.cells import Cell, Kernels, Point, Prediction, Wanted, Work
from quantlab.predict.crossover import Crossover, crossover
from quantlab.predict.fit import Fit, fit
from quantlab.predict.tiers import attempts, differ, least_gap, predict

__all__ = [
    "Cell",
    "Crossover",
    "Fit",
    "Kernels",
    "Point",
    "Prediction",
    "Wanted",
    "Work",
    "attempts",
    "crossover",
    "differ",
    "fit",
    "least_gap",
    "predict",
]
