"""`--engine auto`: Detectron2 where it can be imported and can do what is asked, else the built-in engine."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_bench import cli
from intl_bench.core.errors import InputError
from transfer.detection.config import DetectionConfig, ModelConfig
from transfer.detection.engines import choice, detectron2_settings

MODELS = st.builds(
    ModelConfig,
    blocks=st.sampled_from([(2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (1, 1, 1, 1), (2, 2, 2, 3)]),
    bottleneck=st.booleans(),
    width=st.sampled_from([8, 32, 64, 128]),
    stem=st.sampled_from(["imagenet", "cifar"]),
)


def can_build(model: ModelConfig) -> bool:
    try:
        detectron2_settings.depth(model)
    except InputError:
        return False
    return True


@given(model=MODELS, accumulate=st.sampled_from([1, 2]))
def test_the_engine_is_detectron2_exactly_where_it_can_do_what_is_asked(model: ModelConfig, accumulate: int) -> None:
    able = can_build(model) and accumulate == 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(choice, "find_import_problem", lambda: "")
        found = choice.resolve(DetectionConfig(model=model, accumulate=accumulate))
        assert found.engine == ("detectron2" if able else "builtin")
        explicit = DetectionConfig(model=model, accumulate=accumulate, engine="detectron2")
        if able:
            assert choice.resolve(explicit) == explicit
        else:
            with pytest.raises(InputError, match=r"^engine=detectron2: Detectron2 .*; use --engine builtin$") as error:
                choice.resolve(explicit)
            assert "\n" not in str(error.value)
    builtin = DetectionConfig(model=model, engine="builtin")
    assert choice.resolve(builtin) is builtin


def test_a_fallback_has_one_line_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "find_import_problem", lambda: "")
    choice.resolve(DetectionConfig(model=ModelConfig(stem="cifar")))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("engine: builtin, because Detectron2 cannot build a ResNet of [3, 4, 6, 3]")
    choice.resolve(DetectionConfig())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise AttributeError('undefined symbol')", "undefined symbol"),
        ("raise ImportError('libcudart.so.11:\\n no such file')", "libcudart.so.11: no such file"),
        ("", "No module named 'detectron2.config'"),
        ("def (", "invalid syntax"),
    ],
)
def test_a_broken_installation_breaks_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, reason: str
) -> None:
    """It is also what a folder `detectron2` in the working directory looks like."""
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(code)
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("detectron2", "detectron2_data", "detectron2_mapper"):
        monkeypatch.delitem(sys.modules, f"transfer.detection.engines.{name}", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["coco", "--init", "random", "--dry-run"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "engine builtin;" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("engine: builtin, because Detectron2 is installed and cannot be imported (")
    assert reason in line
    assert cli.main([*command, "--engine", "detectron2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; use --engine builtin")
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        del sys.modules[name]
