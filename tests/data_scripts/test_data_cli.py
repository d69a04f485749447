import pytest

from data_scripts.__main__ import main
from data_scripts.sources import FetchError
from tests.data_scripts.conftest import use_manifest


def test_list_shows_state_size_and_licence(toy, capsys):
    assert main(["list"]) == 0
    assert "not prepared" in capsys.readouterr().out
    main(["fetch", "toy"])
    capsys.readouterr()
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "state", "size", "licence", "what", "it", "is"]
    assert lines[1].split() == ["toy", "verified", "0.0", "MB", "MIT", "bytes"]
    assert lines[2].startswith("toy --size large  not prepared  on demand")
    assert lines[-1] == f"in {toy.folder}"


def test_list_tells_damaged_and_outdated_sets(toy, tmp_path, monkeypatch, capsys):
    main(["fetch", "toy"])
    path = toy.folder / "toy" / "array.npy"
    path.write_bytes(b"?" * path.stat().st_size)
    main(["list"])
    assert "damaged" in capsys.readouterr().out
    assert path.exists()
    use_manifest(tmp_path, monkeypatch, version=2)
    main(["list"])
    assert "outdated" in capsys.readouterr().out


def test_plain_fetch_prepares_the_default_sets_only(toy, capsys):
    assert main(["fetch"]) == 0
    assert (toy.folder / "toy").exists()
    assert not (toy.folder / "toy_large").exists()
    assert main(["fetch"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_size_on_demand(toy):
    assert main(["fetch", "toy", "--size", "large"]) == 0
    assert (toy.folder / "toy_large").exists()


def test_no_network_is_one_message_without_traceback(toy, capsys):
    def offline(missing):
        raise FetchError("the npm registry does not answer; go online")

    toy.script.download = offline
    assert main(["fetch"]) == 1
    assert capsys.readouterr().err == "error: the npm registry does not answer; go online\n"


def test_unknown_name_lists_the_known_ones(toy, capsys):
    assert main(["fetch", "tyo"]) == 1
    assert "no data set 'tyo'; there are: toy, toy --size large" in capsys.readouterr().err


def test_size_needs_one_name(toy, capsys):
    assert main(["fetch", "--size", "large"]) == 1
    assert "--size goes with the name of one data set" in capsys.readouterr().err


def test_interrupt_ends_quietly(toy, capsys):
    def interrupted(folder, inputs, size):
        raise KeyboardInterrupt

    toy.script.prepare = interrupted
    assert main(["fetch"]) == 130
    assert "what is complete is kept" in capsys.readouterr().err


def test_verify_passes_and_fails(toy, capsys):
    main(["fetch", "toy"])
    assert main(["verify"]) == 0
    assert "toy: verified" in capsys.readouterr().out
    path = toy.folder / "toy" / "array.npy"
    path.write_bytes(b"?" * path.stat().st_size)
    assert main(["verify"]) == 1
    assert "fetch" in capsys.readouterr().err


def test_verify_of_a_set_that_is_not_there_fails(toy, capsys):
    assert main(["verify", "toy"]) == 1
    assert "toy is not prepared" in capsys.readouterr().out


def test_command_is_required(capsys):
    with pytest.raises(SystemExit):
        main([])
