"""The example in docs/add_a_table.md works: the table has a column for each data set with k-NN records."""

from pathlib import Path

from documented import Copy
from table_cases import KNN, R18, make

from intl_bench.records import RecordStore


def test_the_documented_table_works(tmp_path: Path) -> None:
    copy = Copy(tmp_path, "add_a_table.md")
    assert copy.added == ["intl_bench/tables/neighbors.py", "intl_bench/tables/__init__.py"]
    module = tmp_path / "intl_bench" / "tables" / "__init__.py"
    start = "from intl_bench.tables import "
    text = module.read_text()
    assert text.count(start) == 1
    module.write_text(text.replace(start, f"{start}neighbors, "))
    store = RecordStore(tmp_path / "results" / "records")
    for dataset, score in (("cifar10", 90.0), ("flowers", 41.25)):
        store.append(make("knn", dataset, {"knn5": score}, {**KNN, **R18}))
    table = copy.run("-m", "intl_bench", "tables", "--table", "neighbors", "--format", "csv")
    assert "90.0" in table
    assert "41.25" in table or "41.2" in table
    assert "CIFAR-10 k-NN" in copy.run("-m", "intl_bench", "tables", "--table", "neighbors")
