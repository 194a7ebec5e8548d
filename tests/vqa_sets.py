"""Stand-ins for the VQA sets of the hub: a few rows with exactly the columns and types of the real ones.

Where each schema is known from: VQAv2, TextVQA, DocVQA, AI2D: the fields that lmms-eval's tasks read (tasks/vqav2,
textvqa, docvqa, ai2d/upload_ai2d.py, which wrote that set) and the data sets' own loading scripts; ChartQA: unitxt's
card of HuggingFaceM4/ChartQA and lm-eval's task; MMMU: lm-eval's task. The hub itself was not reachable.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow

TEXT, WHOLE = Value("string"), Value("int64")
FEATURES = {
    "vqav2": Features(
        question_type=TEXT,
        multiple_choice_answer=TEXT,
        answers=List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": WHOLE}),
        image_id=WHOLE,
        answer_type=TEXT,
        question_id=WHOLE,
        question=TEXT,
        image=Image(),
    ),
    "textvqa": Features(
        image_id=TEXT,
        question_id=Value("int32"),
        question=TEXT,
        question_tokens=List(TEXT),
        image=Image(),
        image_width=Value("int32"),
        image_height=Value("int32"),
        flickr_original_url=TEXT,
        flickr_300k_url=TEXT,
        answers=List(TEXT),
        image_classes=List(TEXT),
        set_name=TEXT,
        ocr_tokens=List(TEXT),
    ),
    "docvqa": Features(
        questionId=TEXT,
        question=TEXT,
        question_types=List(TEXT),
        image=Image(),
        docId=WHOLE,
        ucsf_document_id=TEXT,
        ucsf_document_page_no=TEXT,
        answers=List(TEXT),
        data_split=TEXT,
    ),
    "chartqa": Features(
        image=Image(), query=TEXT, label=List(TEXT), human_or_machine=ClassLabel(names=["human", "machine"])
    ),
    "ai2d": Features(question=TEXT, options=List(TEXT), answer=TEXT, image=Image()),
    "mmmu": Features(
        id=TEXT,
        question=TEXT,
        options=TEXT,
        explanation=TEXT,
        **{f"image_{number}": Image() for number in range(1, 8)},
        img_type=TEXT,
        answer=TEXT,
        topic_difficulty=TEXT,
        question_type=TEXT,
        subfield=TEXT,
    ),
}
SPLIT = {"vqav2": "validation", "textvqa": "validation", "docvqa": "validation", "chartqa": "test", "ai2d": "test",
         "mmmu": "validation"}  # fmt: skip


def picture(colour: str = "red", mode: str = "RGB", size: tuple[int, int] = (48, 32), form: str = "PNG") -> bytes:
    """A real picture file, as the hub's Parquet files hold them."""
    sink = io.BytesIO()
    Pillow.new("RGB", size, colour).convert(mode).save(sink, form)
    return sink.getvalue()


def row(name: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    """One question of a set; `fields` replace its columns."""
    held = {"bytes": picture(("red", "teal", "gray")[number % 3]), "path": f"{number}.png"}
    asked = "what is the red shape?"
    own: dict[str, dict[str, Any]] = {
        "vqav2": {
            "question_type": "what is the",
            "multiple_choice_answer": "circle",
            "answers": [{"answer": "circle", "answer_confidence": "yes", "answer_id": one} for one in range(1, 11)],
            "image_id": 9 + number % 3,
            "answer_type": "other",
            "question_id": 9000 + number,
        },
        "textvqa": {"image_id": f"0{number % 3}", "question_id": number, "answers": ["circle"] * 10},
        "docvqa": {"questionId": str(number), "docId": number % 3, "answers": ["circle", "a circle"]},
        "chartqa": {"query": asked, "label": ["14"], "human_or_machine": 0},
        "ai2d": {"options": ["circle", "triangle", "rectangle"], "answer": "1"},
        "mmmu": {
            "id": f"validation_Math_{number}",
            "question": "<image 1> what is the red shape?",
            "options": "['circle', 'triangle']",
            "answer": "B",
            "question_type": "multiple-choice",
        },
    }
    pictures = {"image_1": held} if name == "mmmu" else {"image": held}
    blank = dict.fromkeys(FEATURES[name])
    return {**blank, **({"question": asked} if "question" in blank else {}), **pictures, **own[name], **fields}


def write(folder: Path, name: str, rows: list[dict[str, Any]], shards: int = 1) -> Path:
    """The rows as Parquet files named like the hub's; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = Dataset.from_list(rows[shard::shards], features=FEATURES[name])
        part.to_parquet(str(folder / f"{SPLIT[name]}-{shard:05}-of-{shards:05}.parquet"))
    return folder
