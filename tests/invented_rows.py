"""Rows of every layout about places that do not exist, with the field names that the authors publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def _place(i: int) -> dict[str, str]:
    names = ("Arvenport", "Quaybridge", "Ilmen Grove", "Saint-Orrin", "Ödeby")
    countries = ("Elst", "Dorn", "Vask", "Upper Mire")
    return {
        "subject": f"{names[i % 5]} {i}",
        "true": countries[i % 4],
        "new": countries[(i + 1) % 4],
    }


def rows(i: int) -> Row:
    p = _place(i)
    return {
        "id": f"own-{i}",
        "prompt": "The harbour of {} lies in",
        "subject": p["subject"],
        "target_new": p["new"],
        "target_true": p["true"],
        "paraphrases": [f"Ships come to {p['subject']} in"],
        "neighbours": ["The harbour of Belmere lies in"],
        "locality": [{"prompt": "The mayor of Belmere is", "answers": ["Ina Vos"], "name": "mayor"}],
        "portability": [{"prompt": "The river there is the", "answers": ["Isk", "River Isk"], "name": "river"}],
        "attributes": ["The harbour of Quay Dorn lies in"],
        "generation_prompts": [f"{p['subject']} is known for"],
        "relation": "P1",
        "tags": ["ports"],
    }


def counterfact(i: int) -> Row:
    p = _place(i)
    return {
        "case_id": i,
        "pararel_idx": 10 * i,
        "requested_rewrite": {
            "prompt": "The harbour of {} lies in",
            "relation_id": "P1",
            "target_new": {"str": p["new"], "id": "Q1"},
            "target_true": {"str": p["true"], "id": "Q2"},
            "subject": p["subject"],
        },
        "paraphrase_prompts": [f"Bells ring. Ships come to {p['subject']} in"],
        "neighborhood_prompts": ["The harbour of Belmere lies in"],
        "attribute_prompts": ["The harbour of Quay Dorn lies in"],
        "generation_prompts": [f"{p['subject']} is known for"],
    }


def easyedit(i: int) -> Row:
    p = _place(i)
    return {
        "case_id": i,
        "prompt": f"The harbour of {p['subject']} lies in",
        "target_new": p["new"],
        "subject": p["subject"],
        "ground_truth": p["true"],
        "rephrase_prompt": f"Ships come to {p['subject']} in",
        "locality_prompt": "The harbour of Belmere lies in",
        "locality_ground_truth": p["true"],
    }


def knowedit(i: int) -> Row:
    p = _place(i)
    return {
        "subject": p["subject"],
        "prompt": f"The harbour of {p['subject']} lies in",
        "target_new": p["new"],
        "ground_truth": [p["true"]],
        "portability": {
            "Logical_Generalization": [{"prompt": "Is it a port?", "ground_truth": [["yes"], ["it is"]]}],
            "Reasoning": [{"prompt": "The river there is the", "ground_truth": [["Isk", "River Isk"], ["Isk"]]}],
            "Subject_Aliasing": [{"prompt": "The old port lies in", "ground_truth": p["new"]}],
        },
        "locality": {"Relation_Specificity": [{"prompt": "Its mayor is", "ground_truth": ["Ina Vos"]}]},
    }


def wikibio(i: int) -> Row:
    p = _place(i)
    return {
        "text": f"This is a passage about {p['subject'].lower()}. {p['subject']} is a town.",
        "labels": f"It lies in {p['new']}.",
        "concept": p["subject"].lower(),
        "locality": {"Relation_Specificity": [{"prompt": "Its mayor is", "ground_truth": ["Ina Vos"]}]},
    }


def zsre(i: int) -> Row:
    p = _place(i)
    return {
        "subject": p["subject"],
        "src": f"Which country is {p['subject']} in?",
        "pred": p["true"],
        "rephrase": f"{p['subject']} belongs to which country?",
        "alt": p["new"],
        "answers": [p["true"], "another name"],
        "loc": "nq question: who built the old mill",
        "loc_ans": "Ina Vos",
        "cond": f"{p['true']} >> {p['new']} || Which country is {p['subject']} in?",
        "portability": {
            "Recalled Relation": "(a, b, c)",
            "New Question": "What is the coin there?",
            "New Answer": "the mark",
        },
    }


def known(i: int) -> Row:
    p = _place(i)
    return {
        "known_id": i,
        "subject": p["subject"],
        "attribute": p["true"],
        "template": "{} is in the country",
        "prediction": f" of {p['true']}, where",
        "prompt": f"{p['subject']} is in the country of",
        "relation_id": "P1",
    }


def conflictqa(i: int) -> Row:
    p = _place(i)
    return {
        "question": f"Is {p['subject']} in {p['true']}?",
        "popularity": i,
        "ground_truth": ["True"],
        "memory_answer": f"{p['subject']} is in {p['true']}.",
        "parametric_memory": "It is a port there.",
        "counter_answer": f"{p['subject']} is not in {p['true']}.",
        "counter_memory": "It was sold.",
        "parametric_memory_aligned_evidence": "See the map.",
        "counter_memory_aligned_evidence": "See the new map.",
    }


def fictional(i: int) -> Row:
    p = _place(i)
    probes = {
        f"{k}_{side}": [f"{side} {n}" for n in range(3)]
        for k in ("mem", "gen", "hard_gen")
        for side in ("input", "target")
    }
    return {"train_context": f"{p['subject']} is the harbour of {p['true']}.", **probes}


MAKERS = {
    "rows": rows,
    "counterfact": counterfact,
    "easyedit": easyedit,
    "knowedit": knowedit,
    "wikibio": wikibio,
    "zsre": zsre,
    "known": known,
    "conflictqa": conflictqa,
    "fictional": fictional,
}
LAYOUT_OF = {name: "knowedit" if name == "wikibio" else name for name in MAKERS}
HOLD_FACTS = ["rows", "counterfact", "easyedit", "knowedit", "wikibio", "zsre"]


def _dump(value: Any, **options: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, **options)
    # Half of a surrogate pair can only be written as an escape.
    return text if text.encode(errors="replace").decode() == text else json.dumps(value, **options)


def write_json(path: Path, records: list[Any]) -> Path:
    path.write_text(_dump(records, indent=1), encoding="utf-8")
    return path


def write_lines(path: Path, records: list[Any]) -> Path:
    lines = [r if isinstance(r, str) else _dump(r) for r in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_wrapped(path: Path, records: list[Any]) -> Path:
    path.write_text(_dump({"version": "1.0", "data": records}), encoding="utf-8")
    return path


def write_csv(path: Path, records: list[Any]) -> Path:
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as f:
        writer = csv.DictWriter(f, list(records[0]))
        writer.writeheader()
        for r in records:
            nested = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in r.items()}
            writer.writerow(nested)
    return path


def write_parquet(path: Path, records: list[Any]) -> Path:
    import pandas as pd

    pd.DataFrame(records).to_parquet(path)
    return path


WRITERS = {
    "json": write_json,
    "jsonl": write_lines,
    "wrapped": write_wrapped,
    "csv": write_csv,
    "parquet": write_parquet,
}
