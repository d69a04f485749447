from dataclasses import dataclass

import pytest

from toolkit import cli


@dataclass(frozen=True)
class Recipe:
    rate: float = 0.1
    steps: int = 10
    cosine: bool = False
    arms: tuple[str, ...] = ("a", "b")
    sizes: tuple[int, ...] = (1, 2)


def test_fields_are_replaced_in_their_own_type():
    changes = ["rate=1e-3", "steps=5", "cosine=true", "arms=c", "sizes=3,4"]
    assert cli.changed(Recipe(), changes) == Recipe(1e-3, 5, True, ("c",), (3, 4))


@pytest.mark.parametrize("change", ["speed=1", "rate", "steps=1.5", "cosine=yes", "sizes=a"])
def test_a_bad_change_is_refused(change):
    with pytest.raises(ValueError, match="--set"):
        cli.changed(Recipe(), [change])


def test_an_unknown_chapter_is_one_clear_line(capsys):
    assert cli.main(["run", "resnet"]) == 1
    error = capsys.readouterr().err
    assert "no chapter is called 'resnet'" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["build", "serve", "lab", "run", "course", "data", "doctor"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.slow
def test_the_doctor_says_what_is_there(capsys):
    cli.main(["doctor"])
    out = capsys.readouterr().out
    for name in ("python", "packages", "data", "browser", "disk", "site"):
        assert name in out
