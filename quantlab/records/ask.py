"""What a person asks for: models and the five kinds of YAML file. Defaults here are the defaults of the files."""

from __future__ import annotations

from typing import Literal

import msgspec

from quantlab.records.keep import Keep


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the records that are written by hand: strict about unknown fields."""


class Shape(Ask, frozen=True, kw_only=True):
    """The dimensions from which size, memory and speed follow."""

    layers: int
    """Decoder layers (self-attention; cross-attention layers of Mllama are counted in `cross_layers`)."""
    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width of the MLP."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads (grouped-query attention)."""
    head_dim: int
    """Width of one head."""
    vocabulary: int
    """Rows of the embedding."""
    tied: bool
    """The output head shares the embedding's weights."""
    cross_layers: int = 0
    """Cross-attention layers (Mllama)."""
    context: int = 131072
    """Longest context in tokens."""


class Model(Ask, frozen=True, kw_only=True):
    """A model word resolved: what it is and where its weights come from."""

    word: str
    """What the user typed: a catalog word, a hub id or a directory."""
    source: Literal["hub", "package", "path", "built-in"]
    """hub: Hugging Face. package: weights inside an installed Python package. path: a local directory. built-in: a
    directory that travels with quantlab."""
    location: str
    """Hub id, package name or directory; a built-in one relative to the folders that quantlab ships."""
    revision: str | None = None
    """Hub revision; None means the default branch."""
    architecture: str | None = None
    """The `architectures` entry of config.json; None where only the weights can tell."""
    modality: Literal["text", "vision"] = "text"
    """What goes in."""
    gated: bool = False
    """The hub asks for an accepted licence and a token."""
    chat: bool = False
    """Trained with a chat template, and calibrated through it."""
    parameters: int | None = None
    """Number of weights, where known."""
    shape: Shape | None = None
    """Dimensions, where known."""
    summary: str = ""
    """One line for `quantlab ls`."""


class QuantizerOverride(Ask, frozen=True, kw_only=True):
    """One line on top of a ModelOpt preset, matched as ModelOpt matches: a wildcard on the quantizer's name."""

    quantizer: str
    """Wildcard, e.g. "*lm_head*weight_quantizer"."""
    enable: bool | None = None
    """Switch the matched quantizers on or off."""
    num_bits: int | tuple[int, int] | None = None
    """Integer bits, or (exponent, mantissa) of a float format."""
    axis: int | None = None
    """Axis kept for per-channel scales."""
    block_size: int | None = None
    """Group size along the input width."""


class Calibration(Ask, frozen=True, kw_only=True):
    """Which data the ranges and scales are taken from."""

    set: str = "python-docs"
    """Name or path of a calibration set."""
    samples: int = 128
    """Number of samples."""
    length: int = 512
    """Tokens in a sample; shorter ones are concatenated, never padded."""
    batch: int | None = None
    """Samples in one forward pass; None lets quantlab choose (AWQ's search costs per batch: all in one)."""
    seed: int = 0
    """Chooses the samples."""
    image_set: str = "easyvqa"
    """The set for a model with images: text alone does not reach its cross-attention layers."""
    images: int = 128
    """Pictures, each with its question, that such a model is fed instead of `samples`."""


class Recipe(Ask, frozen=True, kw_only=True):
    """A precision: a ModelOpt preset, small changes to it, and the data it is calibrated on."""

    summary: str
    """One line: what it does and on which GPUs it is served."""
    preset: str | None
    """Name of a configuration in modelopt.torch.quantization; null quantizes nothing (the baseline is a recipe)."""
    format: Literal["bf16", "fp8", "fp8_rowwise", "int8_sq", "int8_wo", "int4_awq", "int4_awq_g64",
                    "int4_awq_g32", "int4", "w4a8_awq", "nvfp4", "nvfp4_awq", "mxfp8", "mxfp4", "int8_rowwise",
                    "other"]  # fmt: skip
    """What the exported weights are; engines and checks read this. Each is explained in formats.py. The last two are
    only found in checkpoints that were made elsewhere (finished.py)."""
    overrides: tuple[QuantizerOverride, ...] = ()
    """Applied in order after the preset."""
    keep: tuple[Keep, ...] = ()
    """Layers in another format than the others; of two that name the same layer the last one counts."""
    kv_cache: Literal["none", "fp8"] = "none"
    """Precision of the key/value cache."""
    group_size: int | Literal["auto", "strict"] | None = None
    """Weights that share a scale. auto: the preset's own, or the largest supported divisor where it does not divide a
    layer's input width. strict: the preset's own, or a refusal. A number is meant exactly. null: no groups."""
    rounding: Literal["nearest", "compensated"] = "nearest"
    """Of int4 weights. compensated: column by column, the later ones making good what the earlier ones lost on the
    calibration text (calibrate/compensate.py); it costs no bits."""
    export: Literal["unified", "folded"] = "unified"
    """unified: ModelOpt's Hugging Face export. folded: the rounded weights written back in 16 bit, for formats that
    no export knows; such a checkpoint is marked as a simulation and never timed."""
    calibration: Calibration | None = None
    """null where nothing is calibrated (weights only)."""

    def format_of(self, layer: str) -> str:
        """The format of one quantized layer: the recipe's own, or that in which it is kept."""
        return next((each.format for each in reversed(self.keep) if each.holds(layer)), self.format)


class CalibrationSet(Ask, frozen=True, kw_only=True):
    """Where calibration text comes from."""

    summary: str
    """One line for `quantlab ls`."""
    source: Literal["hub", "file"]
    """hub: a dataset of the Hugging Face hub through `datasets`. file: text or JSONL beside this YAML or by path."""
    dataset: str | None = None
    """Hub dataset id."""
    config: str | None = None
    """Its configuration."""
    split: str = "train"
    """Its split."""
    revision: str | None = None
    """Its revision."""
    file: str | None = None
    """Path of a .txt (UTF-8) or .jsonl file, relative to this YAML."""
    column: str = "text"
    """Field that holds the text, or the list of chat messages (role, content)."""
    image: str | None = None
    """Field that holds the path of the picture that the text asks about, relative to the file; null: text only."""
    licence: str = ""
    """Licence of the data."""


class SuiteTask(Ask, frozen=True, kw_only=True):
    """One lm-eval task in a suite."""

    task: str
    """Task or group name; quantlab's own tasks lie in evals/tasks/."""
    metric: str | None = None
    """Metric the verdict rests on (acc, acc_norm, exact_match ...); null takes the task's first. A filter is written
    after a comma, as lm-eval does: "exact_match,flexible-extract"."""
    shots: int | None = None
    """Few-shot examples; null takes the task's own."""
    limit: int | None = None
    """First items only; null takes all."""
    chat_template: bool = False
    """Render the prompt through the model's chat template."""
    data: dict[str, str] | None = None
    """Local files by split, e.g. {test: mmlu.jsonl}, relative to the suite; for machines without a hub."""
    package: str | None = None
    """Python package that must be installed for the data."""
    images: Literal["own", "shuffled", "none"] = "own"
    """Of a task about pictures: own, each question with its picture; shuffled, with another one's; none, the question
    alone. What the last two score is what can be guessed."""


class SightAsk(Ask, frozen=True, kw_only=True):
    """A picture with a question whose answer is not in doubt."""

    image: str
    """Path, relative to the suite."""
    question: str
    answer: str
    """A model that sees finds it likelier than a guess."""


class FidelityAsk(Ask, frozen=True, kw_only=True):
    """The held-out text on which two precisions are compared position by position."""

    text: str = "../texts/heldout.txt"
    """UTF-8 file, relative to the suite."""
    windows: int = 24
    """Number of windows, spread evenly over the text."""
    length: int = 512
    """Tokens in a window; the first `burn_in` positions are not scored."""
    burn_in: int = 32
    """Positions at the start of a window without enough context to be fair."""
    top_k: int = 512
    """Baseline log-probabilities kept a position; the rest is one tail bucket."""

    def screen(self) -> FidelityAsk:
        """A few hundred positions of it: a collapse (KL of several nats) shows in seconds instead of minutes."""
        length = min(self.length, self.burn_in + 96)
        return msgspec.structs.replace(self, windows=min(self.windows, 4), length=length)


class Suite(Ask, frozen=True, kw_only=True):
    """What accuracy means in a run."""

    summary: str
    """One line for `quantlab ls`."""
    tasks: tuple[SuiteTask, ...]
    """The tasks, in order."""
    fidelity: FidelityAsk | None = None
    """Held-out text; null skips fidelity."""
    canary: tuple[str, ...] = (
        "The capital of France is",
        "Water is made of hydrogen and",
        "One, two, three, four,",
    )
    """Prompts for the canary."""
    synthetic: bool = False
    """Generated items: comparable between precisions, not with published scores."""
    modality: Literal["text", "vision"] = "text"
    """vision: its tasks ask about pictures, so model and engine must take them."""
    controls: tuple[SuiteTask, ...] = ()
    """Tasks that only a model which looks at the right picture can do, asked with a wrong one or none. Scored on 16-bit
    weights, shown, and never part of a verdict."""
    sights: tuple[SightAsk, ...] = ()
    """Pictures for the canary of a model with images."""


class Grid(Ask, frozen=True, kw_only=True):
    """Throughput cells: the product of the two lengths with static batches, and with requests in flight."""

    summary: str
    """One line for `quantlab ls`."""
    isl: tuple[int, ...]
    """Input sequence lengths, tokens."""
    osl: tuple[int, ...]
    """Output sequence lengths, tokens."""
    batch: tuple[int, ...] = ()
    """Sequences of a static batch: they begin and end together."""
    concurrency: tuple[int, ...] = ()
    """Requests in flight: each that ends is followed by the next (docs/throughput.md). Swept to find the knee."""
    served: bool = False
    """Measure `concurrency` through the engine's HTTP server as well, with a load generator."""
    waves: int = 4
    """Counted requests of one repeat, times `concurrency`."""
    images: tuple[int, ...] = ()
    """Pictures in each prompt of further static batches, for models with images; empty: text alone."""
    warmup: int = 1
    """Runs not counted, a cell."""
    repeats: int = 3
    """Counted runs, a cell."""
    max_variation: float = 0.25
    """Coefficient of variation of the counted runs above which a cell is invalid."""

    @property
    def widest(self) -> int:
        """Most sequences that any cell holds at once."""
        return max((*self.batch, *self.concurrency))
