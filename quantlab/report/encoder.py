"""An encoder's record as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from quantlab.records.encoder import AnswersHeld, Difference, EncoderBuild, EncoderPlan


def lines(made: EncoderBuild) -> Iterator[str]:
    """What was built, what was checked, and what was not."""
    encoder = made.encoder
    size = sum(bytes_ for name, bytes_ in encoder.files.items() if name.startswith("model.onnx")) / 1e6
    yield f"{made.folder}: {encoder.job.precision}, {size:,.1f} MB of ONNX, {encoder.tokens} vectors of {encoder.width}"
    for one in encoder.differences:
        yield f"  against torch in float32, {_difference(one)}"
    if encoder.answers is not None:
        yield f"  {_answers(encoder.answers)}"
    for note in encoder.notes:
        yield f"  {note}"
    for plan in made.plans:
        yield from _plan(plan)


def _difference(one: Difference) -> str:
    return (
        f"batch {one.batch}: largest {one.absolute:.2g} ({one.relative:.2g} of the largest state), norm {one.norm:.2g}"
    )


def _answers(one: AnswersHeld) -> str:
    flips = f"{one.right_to_wrong} right to wrong, {one.wrong_to_right} wrong to right"
    moved = f"score {one.score[0]:.2%} -> {one.score[1]:.2%}, nats {one.nats[0]:.4f} -> {one.nats[1]:.4f}"
    return f"{one.changed} of {one.questions:,} answers changed ({flips}); {moved}"


def _plan(plan: EncoderPlan) -> Iterator[str]:
    held = f", weights {plan.weights_bytes / 1e6:,.1f} MB" if plan.weights_bytes is not None else ""
    yield (
        f"  {plan.file}: {plan.state}; {plan.bytes / 1e6:,.1f} MB{held}, built in {plan.build_seconds:.1f} s by "
        f"{plan.version}, batches {plan.batches[0]} to {plan.batches[2]}"
    )
    for one in plan.differences:
        yield f"    on {plan.device}, {_difference(one)}"
    for timed in plan.latency:
        yield f"    batch {timed.batch}: {timed.median_ms:.2f} ms ({timed.fastest_ms:.2f} to {timed.slowest_ms:.2f})"
    for note in plan.notes:
        yield f"    {note}"
