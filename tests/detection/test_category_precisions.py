"""The average precision of each category and each class, as the details of a record hold it."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import random_case, write
from test_voc_evaluation import random_case as random_voc_case
from test_voc_evaluation import results_of

from transfer.detection.evaluation.coco import evaluate_coco, score_coco
from transfer.detection.evaluation.voc import evaluate_voc, score_voc


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("seed", range(3))
def test_the_ap_of_a_category_is_that_of_a_file_with_this_category_alone(
    tmp_path: Path, seed: int, evaluator: str
) -> None:
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    truth, results = random_case(seed)
    truth["categories"].append({"id": 50, "name": "without objects"})
    metrics, categories = score_coco(write(tmp_path, truth), results, evaluator=evaluator)
    assert metrics == evaluate_coco(write(tmp_path, truth), results, evaluator=evaluator)
    for kind in ("bbox", "segm"):
        found = categories[kind]
        assert list(found) == sorted(category["id"] for category in truth["categories"])
        assert found.pop(50) is None
        assert np.mean([value for value in found.values() if value is not None]) == pytest.approx(
            metrics[f"{kind}/AP"], abs=1e-9
        )
        for number, value in found.items():
            alone = json.loads(json.dumps(truth))
            alone["categories"] = [{"id": number, "name": "alone"}]
            alone["annotations"] = [entry for entry in alone["annotations"] if entry["category_id"] == number]
            own = [result for result in results if result["category_id"] == number]
            expected = evaluate_coco(write(tmp_path, alone, "alone.json"), own, iou_types=(kind,), evaluator=evaluator)
            assert value == pytest.approx(expected.get(f"{kind}/AP"), abs=1e-9)


def test_the_metrics_of_voc_are_the_means_over_the_classes() -> None:
    annotations, found = random_voc_case(0, ties=False)
    results = results_of(annotations, found)
    metrics, classes = score_voc(annotations, results)
    assert metrics == evaluate_voc(annotations, results)
    assert classes.keys() == metrics.keys()
    for key, values in classes.items():
        assert len(values) == len(annotations.category_names)
        assert np.mean(values) == pytest.approx(metrics[key], abs=1e-9)
    kept = annotations.category_ids[0]
    _, alone = score_voc(annotations, [result for result in results if result["category_id"] == kept])
    assert {key: values[0] for key, values in alone.items()} == {key: values[0] for key, values in classes.items()}
    assert {value for values in alone.values() for value in values[1:]} == {0.0}
