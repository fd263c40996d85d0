"""Annotations as other programs write them: ids, names, encodings, missing fields; all faults in one line."""

import codecs
import copy
import json
import os
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import test_coco_annotations as cases
import test_evaluation
import voc_cases
from PIL import Image

from intl_bench.core.errors import InputError
from intl_bench.core.identity import identity
from transfer.detection.annotations.categories import match_categories
from transfer.detection.annotations.documents import decode_xml
from transfer.detection.annotations.objects import Annotations
from transfer.detection.annotations.split import read_split
from transfer.detection.config import AnnotatedDataConfig, DetectionConfig
from transfer.detection.evaluation.coco import evaluate_coco

Document = dict[str, Any]
read, valid_document = cases.read, cases.valid_document
root = cases.root  # the fixture
EVALUATORS = ["pycocotools", "faster-coco-eval"]


def write(root: Path, document: Document, split: str = "train2017") -> Path:
    return cases.write_annotations(root, json.dumps(document), split)


# Ids


def renumber(document: Document, new: Callable[[str, int], Any]) -> Document:
    """Replace all ids by new(list, id)."""
    changed = copy.deepcopy(document)
    for key in ("images", "categories", "annotations"):
        for row in changed[key]:
            row["id"] = new(key, row["id"])
    for row in changed["annotations"]:
        row["image_id"], row["category_id"] = new("images", row["image_id"]), new("categories", row["category_id"])
    return changed


FORMS: dict[str, Callable[[int], Any]] = {
    "number": lambda value: value,
    "text": str,
    "padded text": lambda value: f"{value:020d}",
    "float": lambda value: float(value) if abs(value) <= 2**53 else value,
}


@st.composite
def new_ids(draw: st.DrawFn, ordered: bool) -> Callable[[str, int], Any]:
    """Draw new ids of images, categories and annotations, in the same order if `ordered`, and how they are written."""
    known = {"images": range(100), "categories": range(100), "annotations": range(100)}
    value = st.one_of(st.integers(-5, 200), st.integers(-(2**63), 2**64 - 1), st.integers(2**53 - 60, 2**53 + 200))
    tables = {}
    for key, old in known.items():
        drawn = draw(st.lists(value, min_size=len(old), max_size=len(old), unique=True))
        tables[key] = dict(zip(old, sorted(drawn) if ordered else drawn, strict=True))
    form = FORMS[draw(st.sampled_from(sorted(FORMS)))]
    return lambda key, one: form(tables[key][one])


@hypothesis.settings(max_examples=40)
@hypothesis.given(new_ids(ordered=True))
def test_renumbered_ids_are_read_as_the_same_annotations(new: Callable[[str, int], Any]) -> None:
    document = valid_document()
    changed = renumber(document, new)
    with_ids = [cases_read(one) for one in (document, changed)]
    for field in ("heights", "widths", "file_names", "first", "last", "classes", "boxes", "crowd"):
        assert np.array_equal(getattr(with_ids[0], field), getattr(with_ids[1], field)), field
    assert with_ids[0].category_names == with_ids[1].category_names
    assert with_ids[1].category_ids == tuple(int(new("categories", one)) for one in (3, 7))
    assert with_ids[1].image_ids.tolist() == [int(new("images", one)) for one in (5, 9, 20)]
    assert [one.image_id for one in with_ids[1].images] == with_ids[1].image_ids.tolist()


_FOLDER: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A data set that all examples of a property share, because making its images takes longer than reading it."""
    folder = tmp_path_factory.mktemp("shared")
    for entry in valid_document()["images"]:
        (folder / "val2017" / entry["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"])).save(folder / "val2017" / entry["file_name"])
    _FOLDER[:] = [folder]


def cases_read(document: Document) -> Annotations:
    write(_FOLDER[0], document, "val2017")
    return read(_FOLDER[0], "test")


def score(document: Document, results: Any, evaluator: str) -> dict[str, float]:
    path = _FOLDER[0] / "truth.json"
    path.write_text(json.dumps(document))
    return evaluate_coco(path, results, evaluator=evaluator)


def renumber_results(results: list[Document], new: Callable[[str, int], Any]) -> list[Document]:
    return [
        {**one, "image_id": new("images", one["image_id"]), "category_id": new("categories", one["category_id"])}
        for one in results
    ]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_renumbered_ids_leave_all_numbers_equal(evaluator: str) -> None:
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    truth, results = test_evaluation.random_case(1)
    expected = score(truth, results, "pycocotools")

    @hypothesis.settings(max_examples=8)
    @hypothesis.given(new_ids(ordered=True), st.sampled_from(sorted(FORMS)), st.booleans())
    def check(new: Callable[[str, int], Any], form: str, as_file: bool) -> None:
        changed = renumber(truth, new)
        found = renumber_results(results, lambda key, one: FORMS[form](int(new(key, one))))
        if as_file:
            (_FOLDER[0] / "results.json").write_text(json.dumps(found))
        value = score(changed, _FOLDER[0] / "results.json" if as_file else found, evaluator)
        assert value == pytest.approx(expected, abs=1e-12)
        assert evaluator != "pycocotools" or value == expected

    check()


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_permuted_ids_and_rows_leave_all_numbers_equal(evaluator: str) -> None:
    """Detections with equal scores would count in another order, so their scores differ here."""
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    truth, results = test_evaluation.random_case(1)
    results = [{**one, "score": 1 - i / 1000} for i, one in enumerate(results)]
    expected = score(truth, results, "pycocotools")

    @hypothesis.settings(max_examples=6)
    @hypothesis.given(new_ids(ordered=False), st.randoms(use_true_random=False))
    def check(new: Callable[[str, int], Any], random: Any) -> None:
        changed, found = renumber(truth, new), renumber_results(results, new)
        for rows in (changed["images"], changed["categories"], changed["annotations"]):
            random.shuffle(rows)
        assert score(changed, found, evaluator) == pytest.approx(expected, abs=1e-9)

    check()


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("5x", "images[1]: id: '5x'; expected a whole number"),
        ("", "images[1]: id: ''; expected a whole number"),
        (2**53 + 2.0, "images[1]: id: 9007199254740994.0; expected a whole number"),
        ("20", "image 20: id: used twice"),
        (True, "images[1]: id: True; expected a whole number"),
    ],
)
def test_ids_that_are_no_whole_numbers_are_refused(root: Path, new: Any, message: str) -> None:
    document = valid_document()
    document["images"][1]["id"] = new
    path = write(root, document)
    with pytest.raises(InputError) as error:
        read(root)
    assert message in str(error.value)
    with pytest.raises(InputError) as error:
        evaluate_coco(path, [])
    assert message in str(error.value)


# Categories


@st.composite
def category_tables(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Draw new ids of the categories cat and dog in a test file, and the order of its list."""
    ids = draw(st.lists(st.integers(-3, 2**60), min_size=2, max_size=2, unique=True))
    return ids, draw(st.permutations([0, 1])), [3, 7]


@hypothesis.settings(max_examples=30)
@hypothesis.given(category_tables())
def test_categories_are_matched_by_name(case: tuple[list[int], list[int], list[int]]) -> None:
    ids, order, own = case
    document, changed = valid_document(), valid_document()
    new = dict(zip(own, ids, strict=True))  # cat is 3, dog is 7
    changed["categories"] = [{"id": ids[i], "name": ("cat", "dog")[i], "supercategory": "x"} for i in order]
    for row in changed["annotations"]:
        row["category_id"] = new[row["category_id"]]
    train, test = cases_read(document), cases_read(changed)
    found = match_categories(train, test)
    assert found.category_names == ("cat", "dog")
    assert found.category_ids == tuple(ids)  # of the test file, because the evaluation reads it
    assert np.array_equal(found.classes, train.classes)


@pytest.mark.parametrize(
    ("names", "other", "fragments"),
    [
        (["cat", "dog"], ["cat", "cow"], ["train.json has 'dog'", "test.json has 'cow'"]),
        (["cat", "dog"], ["Cat", "d og"], ["differ only in case, spaces or hyphens"]),
        (["cat", "dog"], ["cat"], ["only train.json has 'dog'; expected"]),
        (["cat"], ["cat", "dog"], [": only test.json has 'dog'; expected"]),
        (["cat", "cat"], ["cat", "dog"], ["the categories 1, 2 have the same name 'cat'"]),
        (["cat", "cat", "dog"], ["cat", "dog", "cat"], ["the categories 1, 2 have the same name 'cat'"]),
        (list("abcdefgh"), ["a"], ["has 'b', 'c', 'd', 'e', 'f' and 2 more"]),
    ],
)
def test_other_names_are_refused(names: list[str], other: list[str], fragments: list[str]) -> None:
    with pytest.raises(InputError) as error:
        match_categories(with_names(names, "train.json"), with_names(other, "test.json"))
    for fragment in fragments:
        assert fragment in str(error.value)


def with_names(names: list[str], path: str) -> Annotations:
    document = valid_document()
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    for row in document["annotations"]:
        row["category_id"] = 1
    found = cases_read(document)
    object.__setattr__(found, "path", Path(path))
    return found


def test_names_are_compared_in_nfc_and_without_spaces_around_them() -> None:
    one, other = with_names([" café", "dog"], "a"), with_names(["dog\u3000", unicodedata.normalize("NFD", "café")], "b")
    found = match_categories(one, other)
    assert found.category_ids == (2, 1)
    assert found.category_names == (" café", "dog")
    twice = with_names(["cat", "cat"], "a")
    assert match_categories(twice, twice) is twice


# Encodings

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("lines", ["\n", "\r\n"])
def test_json_in_every_encoding(root: Path, encoding: str, lines: str) -> None:
    document = valid_document()
    document["categories"][0]["name"] = "犬"
    text = json.dumps(document, ensure_ascii=False, indent=1).replace("\n", lines)
    path = write(root, document)
    expected = read(root)
    path.write_bytes(text.encode(encoding))
    found = read(root)
    assert found.category_names == expected.category_names == ("cat", "犬")
    assert np.array_equal(found.boxes, expected.boxes)
    truth, results = test_evaluation.random_case(0)
    (root / "truth.json").write_bytes(json.dumps(truth).encode(encoding))
    (root / "results.json").write_bytes(json.dumps(results).replace(", ", f",{lines}").encode(encoding))
    assert evaluate_coco(root / "truth.json", root / "results.json") == score(truth, results, "pycocotools")


def test_json_in_an_undeclared_encoding_is_refused(root: Path) -> None:
    document = valid_document()
    document["categories"][0]["name"] = "café"
    write(root, document).write_bytes(json.dumps(document, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(InputError, match=r"instances_train2017\.json: not valid JSON: .*save it as UTF-8"):
        read(root)


XML = '<?xml version="1.0" encoding="{0}"?>\n<a><b>ß犬</b></a>'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (XML.format("gb18030").encode("gb18030"), XML.format("gb18030")),
        (XML.format("utf-16").encode("utf-16"), XML.format("utf-16")),
        (XML.format("utf-16").encode("utf-16-le"), XML.format("utf-16")),
        (XML.format("utf-8").encode("utf-8-sig"), XML.format("utf-8")),
        (XML.format("utf-16").encode(), XML.format("utf-16")),  # .NET declares UTF-16 and writes UTF-8
        (XML.format("nonsense").encode(), XML.format("nonsense")),
        (XML.format("euc_jp").replace("ß", "").encode("euc_jp"), XML.format("euc_jp").replace("ß", "")),
        ("<a>ß</a>".encode(), "<a>ß</a>"),
        (codecs.BOM_UTF16_BE + "<a>ß</a>".encode("utf-16-be"), "<a>ß</a>"),
    ],
)
def test_xml_is_decoded_as_it_declares(content: bytes, text: str) -> None:
    assert decode_xml(content) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<a>ß</a>".encode("latin-1"), "not UTF-8 text"),
        (XML.format("utf-8").encode("gb18030"), "not UTF-8 text"),
        (XML.format("x-none").encode("gb18030"), "not X-NONE text"),
        (b'<?xml version="1.0" encoding="zlib"?><a>\xff</a>', "not ZLIB text"),
        (codecs.BOM_UTF16_LE + b"<", "not UTF-16 text"),
    ],
)
def test_xml_in_another_encoding_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        decode_xml(content)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "iso-8859-1", "shift_jis"])
@pytest.mark.parametrize("listing", ["utf-8", "utf-8-sig", "utf-16"])
def test_voc_in_every_declared_encoding(tmp_path: Path, encoding: str, listing: str) -> None:
    folder = voc_cases.write(tmp_path)
    expected = read_voc(folder)
    for path in folder.rglob("*.xml"):
        text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\r\n<!-- é犬 -->{path.read_text()}'
        path.write_bytes(text.encode(encoding, "ignore"))
    for path in folder.rglob("*.txt"):
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode(listing))
    found = read_voc(folder)
    assert np.array_equal(found.boxes, expected.boxes)
    assert found.file_names.tolist() == expected.file_names.tolist()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-7", "gb18030"])
def test_entities_are_refused_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    folder = voc_cases.write(tmp_path)
    path = next(folder.rglob("000005.xml"))
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "c">]>{path.read_text()}'
    path.write_bytes(text.encode(encoding) if encoding != "utf-7" else text.replace("<!", "+ADw-!").encode())
    with pytest.raises(InputError, match="declares a document type or entities"):
        read_voc(folder)


def read_voc(folder: Path, **values: Any) -> Annotations:
    config = AnnotatedDataConfig(kind="voc", root=str(folder), name="voc0712", test=voc_cases.LISTS, **values)
    return read_split(config, "test", masks=False)


# Names of files

NAMES = [
    *("犬.jpg", "café.jpg", "a b.jpg", "a\u3000b.jpg", "a\u00a0b.jpg", "a\u2009b.jpg", "Ω%20#?&.jpg", "\u200bx.jpg"),
    *('x\' "y".jpg', "深い/所/犬.jpg", "👩‍🔬.jpg", "ñ\u0303.jpg", "=1,2;[].jpg", "ﬁ.jpg"),
]


def with_file(root: Path, written: str, on_disk: list[str]) -> Path:
    """Rename the image b.jpg to all names `on_disk`, and write the name `written` into the annotations."""
    document = valid_document()
    document["images"][0]["file_name"] = written
    for name in on_disk:
        (root / "train2017" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40)).save(root / "train2017" / name)
    return write(root, document)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_with_any_letters_and_spaces(root: Path, name: str, written: Any, on_disk: Any) -> None:
    stored = unicodedata.normalize(on_disk, name)
    with_file(root, unicodedata.normalize(written, name), [stored])
    found = read(root)
    assert found.images[1].file_name == stored
    assert found.file(1).is_file()
    assert len(found.fingerprint()) == 64


def test_backslashes_of_windows(root: Path) -> None:
    with_file(root, "images\\new\\c.jpg", ["images/new/c.jpg"])
    assert read(root).images[1].file_name == "images/new/c.jpg"
    with_file(root, "images\\new\\c.jpg", ["images\\new\\c.jpg"])  # a file of this very name comes first
    assert read(root).images[1].file_name == "images\\new\\c.jpg"
    with_file(root, ".\\images\\new\\c.jpg", [])
    assert read(root).images[1].file_name == "images/new/c.jpg"


@pytest.mark.parametrize("stored", ["a b.jpg", "a\u00a0b.jpg", "a\u2009 b.jpg", "a\u3000b.jpg"])
def test_spaces_of_another_width(root: Path, stored: str) -> None:
    with_file(root, "a b.jpg", [stored])
    assert read(root).images[1].file_name == stored
    with_file(root, "a\u2003b.jpg", [stored, "a\u2008b.jpg"])
    with pytest.raises(InputError, match=r"image 20: .* can mean .* and .*; expected one file; correct the name"):
        read(root)


def test_two_files_that_a_name_can_mean_are_refused(root: Path) -> None:
    written = "e\u0301e\u0301.jpg"
    with_file(root, written, ["éé.jpg", "e\u0301é.jpg"])
    with pytest.raises(InputError, match=r"image 20: .* can mean 'e.*' and '.*'; expected one file; correct the name"):
        read(root)
    with_file(root, written, [written])
    assert read(root).images[1].file_name == written


def test_two_images_with_one_file_are_refused(root: Path) -> None:
    with_file(root, "é.jpg", ["é.jpg"])
    document = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    document["images"].append({**document["images"][0], "id": 21, "file_name": "e\u0301.jpg"})
    write(root, document)
    with pytest.raises(InputError, match=r"image 21: file_name: 'é.jpg' is used by another image"):
        read(root)


@pytest.mark.parametrize(
    "name",
    [
        "..\\b.jpg",
        "sub\\..\\..\\b.jpg",
        "\\b.jpg",
        "\\\\host\\b.jpg",
        "C:\\b.jpg",
        "/b.jpg",
        "a\x1b[31m.jpg",
        "a\u2028b",
    ],
)
def test_names_outside_the_folder_or_with_control_characters_are_refused(root: Path, name: str) -> None:
    with_file(root, name, [])
    with pytest.raises(InputError, match=r"image 20: file_name: .*; expected a file inside the image folder") as error:
        read(root)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_of_voc_with_any_letters_and_spaces(tmp_path: Path, name: str, on_disk: Any) -> None:
    folder, stem = voc_cases.write(tmp_path), name.removesuffix(".jpg")
    for part, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        place = folder / "VOC2007" / part
        os.rename(place / f"000005.{ending}", place / unicodedata.normalize(on_disk, f"{stem}.{ending}"))
    (folder / voc_cases.LISTS[0]).write_text(f"{stem}\r\n000007\r\n")
    found = read_voc(folder)
    assert [len(one.objects) for one in found.images] == [2, 1, 1]
    assert found.file(0).is_file()


def test_two_files_that_a_name_of_voc_can_mean_are_refused(tmp_path: Path) -> None:
    folder = voc_cases.write(tmp_path)
    place = folder / "VOC2007" / "Annotations"
    for name in ("a\u3000b.xml", "a\u00a0b.xml"):
        (place / name).write_text((place / "000005.xml").read_text())
    (folder / voc_cases.LISTS[0]).write_text("a b\n")
    with pytest.raises(InputError, match=r"'a b' can mean .*\.xml and .*\.xml; expected one file"):
        read_voc(folder)


# Missing fields


def test_missing_iscrowd_and_area_have_defaults_and_a_note(root: Path) -> None:
    document, bare = valid_document(), valid_document()
    for row in bare["annotations"]:
        del row["area"]
        if row["iscrowd"] == 0:
            row["iscrowd"] = None if row["id"] == 31 else False
            if row["id"] == 34:
                del row["iscrowd"]
        else:
            row["iscrowd"] = True
    write(root, bare, "val2017")
    found = read(root, "test")
    assert found.notes == [
        "annotations without iscrowd, which is 0 then: 2",
        "annotations without area, which is that of the mask then: 4",
    ]
    assert found.crowd.tolist() == [False, False, True, False]
    assert read(root, "test", masks=False).notes[1].endswith("which is that of the box then: 4")
    write(root, bare)
    assert read(root).crowd.tolist() == [False, False, True, False]

    from pycocotools import mask as coco_mask

    results = [
        {
            "image_id": 20,
            "category_id": 7,
            "score": 0.5,
            "bbox": [3, 5, 6, 25],
            "segmentation": {"size": [40, 30], "counts": cases.STRING},
        }
    ]
    for kinds in (("bbox",), ("bbox", "segm")):
        filled = copy.deepcopy(document)
        for row in filled["annotations"]:
            height, width = (50, 60) if row["image_id"] == 5 else (40, 30)
            outline = row["segmentation"]
            encoded = (
                coco_mask.frPyObjects(outline, height, width)
                if "STRING" not in str(outline) and not isinstance(outline, dict)
                else outline
            )
            if isinstance(outline, dict) and isinstance(outline["counts"], list):
                encoded = coco_mask.frPyObjects(outline, height, width)
            merged = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
            row["area"] = row["bbox"][2] * row["bbox"][3] if kinds == ("bbox",) else float(coco_mask.area(merged))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            one = evaluate_coco(write(root, bare, "val2017"), results, iou_types=kinds)
        assert "annotations without iscrowd, which is 0 then: 2" in str(caught[0].message)
        assert one == evaluate_coco(write(root, filled, "val2017"), results, iou_types=kinds)
        assert one


# All faults


def test_all_faults_are_reported_with_their_numbers_in_one_line(root: Path) -> None:
    document = valid_document()
    document["annotations"] *= 5
    document["annotations"] = [{**row, "id": i} for i, row in enumerate(document["annotations"], start=100)]
    for row in document["annotations"][:7]:
        row["bbox"] = [1, 2, -3, 4]
    document["annotations"][8]["category_id"] = 99
    document["annotations"][9]["iscrowd"] = 2
    document["images"][2]["width"] = 0
    (root / "train2017" / "b.jpg").unlink()
    path = write(root, document)
    with pytest.raises(InputError) as error:
        read(root)
    message = str(error.value)
    assert message.startswith(f"{path}: 11 faults of 5 kinds: (1) image 9: width: 0; expected a positive")
    assert f"{root}/train2017/b.jpg: no such file" in message
    assert "annotation 108: category_id: 99 is not in this file" in message
    assert "annotation 109: iscrowd: 2; expected 0 or 1" in message
    assert "annotation 100: bbox: [1, 2, -3, 4]; expected a width and a height of 0 or more (7 such: 100, " in message
    assert message.isprintable()
    assert len(message) < 1500


def test_a_message_is_short_whatever_the_number_of_faults(root: Path) -> None:
    document = valid_document()
    document["annotations"] = [
        {
            "id": i,
            "image_id": {},
            "category_id": "x" * 1000,
            "bbox": [[]] * 1000,
            "iscrowd": -1,
            "segmentation": 3,
            "area": "a",
            "ignore": 5,
        }
        for i in range(500)
    ]
    document["images"] = [{"id": i, "file_name": f"{i}" * 50, "width": -1, "height": None} for i in range(500)]
    write(root, document, "val2017")
    with pytest.raises(InputError, match=r"\d,\d{3} faults of \d+ kinds") as error:
        read(root, "test")
    assert len(str(error.value)) < 2000
    assert "more kinds" in str(error.value)


def test_all_faults_of_voc_are_reported(tmp_path: Path) -> None:
    folder = voc_cases.write(tmp_path)
    (folder / "VOC2007/Annotations/000005.xml").write_text(
        voc_cases.xml([("wolf", 0, (1, 1, 2, 2)), ("cat", 7, (1, 1, 99, 9))])
    )
    (folder / "VOC2007/Annotations/000007.xml").write_text("<annotation>")
    (folder / "VOC2012/JPEGImages/2008_000002.jpg").unlink()
    with pytest.raises(InputError) as error:
        read_voc(folder)
    message = str(error.value)
    assert message.startswith("4 faults of 4 kinds: (1) ")
    for part in (
        "object 1: name: 'wolf'",
        "object 2 (cat): difficult: '7'",
        "not complete XML",
        "2008_000002.jpg: no such file",
    ):
        assert part in message
    assert message.isprintable()


# Boxes beyond the image


def test_clipping_is_part_of_the_identity_only_where_it_is_set() -> None:
    default = DetectionConfig(engine="builtin")
    assert "boxes" not in identity(default)["data"]
    clipped = DetectionConfig(engine="builtin", data=AnnotatedDataConfig(boxes="clip"))
    assert identity(clipped)["data"]["boxes"] == "clip"
    with pytest.raises(ValueError, match=r"boxes=cut: expected refuse or clip"):
        AnnotatedDataConfig(boxes="cut")


def test_boxes_of_voc_beyond_the_image(tmp_path: Path) -> None:
    folder = voc_cases.write(tmp_path)
    (folder / "VOC2007/Annotations/000007.xml").write_text(voc_cases.xml([("cat", 0, (50, 1, 99, 9))]))
    with pytest.raises(InputError, match=r"object 1 \(cat\): bndbox: 50, 1, 99, 9; expected a box inside the image"):
        read_voc(folder)
    found = read_voc(folder, boxes="clip")
    assert found.images[1].objects[0].box.tolist() == [49, 0, 99, 9]
    assert any("boxes beyond their image, which training clips: 1" in note for note in found.notes)


def test_voc_from_0_to_1_is_refused(tmp_path: Path) -> None:
    folder = voc_cases.write(tmp_path)
    for path in folder.rglob("*.xml"):
        path.write_text(voc_cases.xml([("cat", 0, (0.1, 0.2, 0.5, 0.9))]))
    with pytest.raises(InputError, match=r"likely cause: coordinates from 0 to 1\) \(3 such"):
        read_voc(folder)


def test_a_file_without_objects_has_no_metrics(root: Path) -> None:
    document = valid_document()
    document["annotations"] = []
    assert evaluate_coco(write(root, document), []) == {}


def test_voc_as_x_y_width_and_height_is_refused_with_the_cause(tmp_path: Path) -> None:
    folder = voc_cases.write(tmp_path)
    for path in folder.rglob("*.xml"):
        path.write_text(voc_cases.xml([("cat", 0, (30, 20, 25, 28)), ("dog", 0, (2, 3, 50, 40))]))
    with pytest.raises(InputError, match=r"likely cause: the boxes are \[x, y, width, height\]\) \(3 such"):
        read_voc(folder)


def test_test_images_with_only_crowds_are_refused(root: Path) -> None:
    """No number could be computed from them after the whole training."""
    document = valid_document()
    for row in document["annotations"]:
        row["iscrowd"] = 1
    write(root, document, "val2017")
    config = AnnotatedDataConfig(root=str(root), name="mine", test_images="train2017")
    with pytest.raises(InputError, match=r"no object to score \(\d+ crowds\)"):
        read_split(config, "test", masks=False)
