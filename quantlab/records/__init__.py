"""Every record that crosses a wall of the house: frozen, strict, one docstring a field.

    ask       what a person writes down: Model, Recipe, CalibrationSet, Suite, Grid, Policy
    results   what the rooms hand back: Checkpoint, Canary, Fidelity, Accuracy
    speed     and the cells of a throughput grid
    load      its sweep over requests in flight: LoadCell, Knee
    power     energy and percentiles of a cell
    verification   checks of an export and the damage of its layers: Verification, LayerDamage
    formats   what each format stores, and who serves it: FORMATS
    finished  a checkpoint that was made elsewhere: Finished
    jobs      what crosses a process wall: Job and its specs, Event, Failure
    published what others measured: PublishedScore
    flips     items whose answer changed, and their categories: Flip, Category
    verdicts  what is concluded: TaskComparison, Comparison, Verdict, Candidate, Run
    entries   what the ledger keeps: Entry, Host

A record imports nothing heavy: the standard library, msgspec and `errors`. Unknown fields are refused on reading,
so a record of a newer quantlab is an error with a name, never a silent loss.
"""

from quantlab.records.ask import (
    Calibration,
    CalibrationSet,
    FidelityAsk,
    Grid,
    Model,
    QuantizerOverride,
    Recipe,
    Shape,
    SightAsk,
    Suite,
    SuiteTask,
)
from quantlab.records.entries import SCHEMA, Entry, Gpu, Host
from quantlab.records.finished import Finished
from quantlab.records.flips import Category, Flip
from quantlab.records.formats import FORMATS, Format, unserved
from quantlab.records.jobs import (
    CalibrateJob,
    CalibrateJobs,
    ConvertJob,
    EngineConfig,
    Event,
    Failure,
    FetchJob,
    FinishedJob,
    MeasureJob,
    VerifyJob,
)
from quantlab.records.keep import Keep
from quantlab.records.load import Knee, LoadCell
from quantlab.records.numbers import Number, Provenance, digest, encode
from quantlab.records.onnx import OnnxJob, OnnxModel, Provider
from quantlab.records.policies import Policy
from quantlab.records.power import Percentiles, Power
from quantlab.records.published import Published, PublishedScore
from quantlab.records.results import (
    Accuracy,
    Artifact,
    Calibrated,
    Canary,
    CanaryPrompt,
    Checkpoint,
    Converted,
    Fidelity,
    Reference,
    TaskScore,
    Weights,
)
from quantlab.records.speed import Cell, PictureCell, Throughput
from quantlab.records.verdicts import Candidate, Comparison, Look, Run, TaskComparison, Verdict
from quantlab.records.verification import Check, LayerDamage, Verification

__all__ = [
    "FORMATS",
    "SCHEMA",
    "Accuracy",
    "Artifact",
    "CalibrateJob",
    "CalibrateJobs",
    "Calibrated",
    "Calibration",
    "CalibrationSet",
    "Canary",
    "CanaryPrompt",
    "Candidate",
    "Category",
    "Cell",
    "Check",
    "Checkpoint",
    "Comparison",
    "ConvertJob",
    "Converted",
    "EngineConfig",
    "Entry",
    "Event",
    "Failure",
    "FetchJob",
    "Fidelity",
    "FidelityAsk",
    "Finished",
    "FinishedJob",
    "Flip",
    "Format",
    "Gpu",
    "Grid",
    "Host",
    "Keep",
    "Knee",
    "LayerDamage",
    "LoadCell",
    "Look",
    "MeasureJob",
    "Model",
    "Number",
    "OnnxJob",
    "OnnxModel",
    "Percentiles",
    "PictureCell",
    "Policy",
    "Power",
    "Provenance",
    "Provider",
    "Published",
    "PublishedScore",
    "QuantizerOverride",
    "Recipe",
    "Reference",
    "Run",
    "Shape",
    "SightAsk",
    "Suite",
    "SuiteTask",
    "TaskComparison",
    "TaskScore",
    "Throughput",
    "Verdict",
    "Verification",
    "VerifyJob",
    "Weights",
    "digest",
    "encode",
    "unserved",
]
